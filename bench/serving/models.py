"""The model that is served: all-MiniLM-L6-v2 with its positions repeated up to 8,192, so that long requests exist.

Weights are the published ones; only the table of positions is longer. It is exported once, kept in the cache, and gives
the first token's vector, so that an answer is small. pyclattn and ONNX Runtime get the same file.
"""

from __future__ import annotations

import json
from pathlib import Path

from bench.tasks.conversions import converted
from bench.tasks.exported import MINILM
from bench.tasks.fetch import fetch
from pyclattn import _config

LENGTH = 8192


def served() -> tuple[Path, Path]:
    """(ONNX file, converted file), made where they are not there yet."""
    source = _config.cache_dir() / "files" / "serving" / "minilm.onnx"
    if not source.exists():
        source.parent.mkdir(parents=True, exist_ok=True)
        _export(source)
    return source, converted(source)


def _export(path: Path) -> None:
    import onnx
    import torch
    import transformers

    from bench.tasks.architectures import OPEN, Example, export_example
    from pyclattn.weights import SafeTensors

    weights, config, _ = fetch(*MINILM)
    settings = json.loads(config.read_text(encoding="utf-8"))
    state = {name.removeprefix("bert."): torch.from_numpy(a.copy()) for name, a in SafeTensors(weights).items()}
    places = state["embeddings.position_embeddings.weight"]
    state["embeddings.position_embeddings.weight"] = places.repeat(LENGTH // len(places), 1)
    state.pop("embeddings.position_ids", None)
    model = transformers.BertModel(
        transformers.BertConfig(**{**settings, "max_position_embeddings": LENGTH}), add_pooling_layer=False
    )
    model.load_state_dict(state, strict=False)
    ids = torch.randint(5, 99, (2, 9))
    whole = path.with_suffix(".whole")
    export_example(Example(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, OPEN, 0), whole, "script")
    graph = onnx.load(whole)
    graph.graph.initializer.append(onnx.helper.make_tensor("first", onnx.TensorProto.INT64, [], [0]))
    graph.graph.node.append(onnx.helper.make_node("Gather", ["out", "first"], ["embedding"], axis=1))
    del graph.graph.output[:]
    width = settings["hidden_size"]
    output = onnx.helper.make_tensor_value_info("embedding", onnx.TensorProto.FLOAT, ["batch", width])
    graph.graph.output.append(output)
    onnx.checker.check_model(graph)
    onnx.save(graph, path.with_suffix(".part"))
    whole.unlink()
    path.with_suffix(".part").replace(path)
