"""Small random models of `transformers`, exported to ONNX by both of torch's exporters.

One table for the tests and for ``python -m bench.parity``: a model, the names of its inputs, an example of them with
padding where the model takes a mask, and which axes are open.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers as hf

EXPORTERS = ("script", "dynamo")
# Where torch's own exporter fails (torch 2.13, transformers 5): no ONNX file comes out of it.
NOT_EXPORTED = {
    ("longformer", "dynamo"): "torch.export cannot follow its windows written in place",
}
# torch cannot decompose the fused attention of these (a view of a transposed result); the plain one it can.
EAGER = {("swin", "dynamo"), ("t5", "dynamo")}
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 99,
    "max_position_embeddings": 64,
}
OPEN = {"input_ids": {0: "batch", 1: "length"}, "attention_mask": {0: "batch", 1: "length"}}
IMAGE = {key: SIZES[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}
WHISPER = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 99, "num_mel_bins": 16, "max_source_positions": 50,
    "max_target_positions": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip


@dataclass
class Example:
    """A model and what it is run on."""

    model: torch.nn.Module
    inputs: dict[str, torch.Tensor]
    open_axes: dict[str, dict[int, str]]
    n_attentions: int  # Softmax operators that are attentions
    options: dict | None = None


class _Positional(torch.nn.Module):
    """The exporters want positional arguments and a tensor."""

    def __init__(self, example: Example):
        super().__init__()
        self.model, self.names, self.options = example.model, list(example.inputs), example.options or {}

    def forward(self, *arguments):
        return self.model(**dict(zip(self.names, arguments)), **self.options).last_hidden_state


def _text(length: int = 9) -> dict[str, torch.Tensor]:
    mask = torch.ones(2, length, dtype=torch.int64)
    mask[1, length - 3 :] = 0
    return {"input_ids": torch.randint(5, 99, (2, length)), "attention_mask": mask}


def _image(size: int = 32) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(2, 3, size, size)}


def bert() -> Example:
    return Example(hf.BertModel(hf.BertConfig(**SIZES)), _text(), OPEN, 2)


def roberta() -> Example:
    return Example(hf.RobertaModel(hf.RobertaConfig(**SIZES)), _text(), OPEN, 2)


def distilbert() -> Example:
    config = hf.DistilBertConfig(
        vocab_size=99, max_position_embeddings=64, dim=32, n_layers=2, n_heads=4, hidden_dim=64
    )
    return Example(hf.DistilBertModel(config), _text(), OPEN, 2)


def albert() -> Example:
    return Example(hf.AlbertModel(hf.AlbertConfig(embedding_size=16, **SIZES)), _text(), OPEN, 2)


def deberta() -> Example:
    config = hf.DebertaV2Config(
        relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=8, norm_rel_ebd="layer_norm",
        share_att_key=True, **SIZES,
    )  # fmt: skip
    return Example(hf.DebertaV2Model(config), _text(), OPEN, 2)


def modernbert() -> Example:
    config = hf.ModernBertConfig(
        local_attention=8, global_attn_every_n_layers=2, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1,
        sep_token_id=2, **SIZES,
    )  # fmt: skip
    return Example(hf.ModernBertModel(config), _text(), OPEN, 2)


def gpt2() -> Example:
    config = hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=99, n_positions=64)
    return Example(hf.GPT2Model(config), _text(), OPEN, 2, {"use_cache": False})


def t5() -> Example:
    config = hf.T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=99)
    return Example(hf.T5EncoderModel(config), _text(), OPEN, 2)


def longformer() -> Example:
    config = hf.LongformerConfig(attention_window=[8, 8], pad_token_id=1, **{**SIZES, "max_position_embeddings": 66})
    batch = {name: {0: "batch"} for name in OPEN}
    return Example(hf.LongformerModel(config), _text(16), batch, 0)  # its windows are no plain attention


def vit() -> Example:
    model = hf.ViTModel(hf.ViTConfig(image_size=32, patch_size=8, **IMAGE))
    return Example(model, _image(), {"pixel_values": {0: "batch"}}, 2)


def deit() -> Example:
    model = hf.DeiTModel(hf.DeiTConfig(image_size=32, patch_size=8, **IMAGE))
    return Example(model, _image(), {"pixel_values": {0: "batch"}}, 2)


def swin() -> Example:
    config = hf.SwinConfig(image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4)
    model = hf.SwinModel(config)
    for name, parameter in model.named_parameters():
        if "relative_position_bias_table" in name:  # zeros at first; a trained model's are not
            torch.nn.init.normal_(parameter)
    return Example(model, _image(), {"pixel_values": {0: "batch"}}, 4)


def wav2vec2() -> Example:
    config = hf.Wav2Vec2Config(
        conv_dim=(16, 16, 16), conv_stride=(5, 2, 2), conv_kernel=(10, 3, 3), num_feat_extract_layers=3,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, feat_extract_norm="layer",
        do_stable_layer_norm=True, **IMAGE,
    )  # fmt: skip
    mask = torch.ones(2, 800, dtype=torch.int64)
    mask[1, 600:] = 0
    names = ("input_values", "attention_mask")
    open_axes = {name: {0: "batch", 1: "samples"} for name in names}
    return Example(hf.Wav2Vec2Model(config), dict(zip(names, (torch.randn(2, 800), mask))), open_axes, 2)


def whisper_encoder() -> Example:
    model = hf.WhisperModel(hf.WhisperConfig(**WHISPER)).encoder
    return Example(model, {"input_features": torch.randn(2, 16, 100)}, {"input_features": {0: "batch"}}, 2)


def whisper_decoder() -> Example:
    model = hf.WhisperModel(hf.WhisperConfig(**WHISPER)).decoder
    inputs = {**_text(7), "encoder_hidden_states": torch.randn(2, 50, 32)}
    open_axes = {**OPEN, "encoder_hidden_states": {0: "batch", 1: "frames"}}
    return Example(model, inputs, open_axes, 4, {"use_cache": False})


ARCHITECTURES: dict[str, Callable[[], Example]] = {
    function.__name__: function
    for function in (
        bert, roberta, distilbert, albert, deberta, modernbert, vit, deit, swin, wav2vec2, whisper_encoder,
        whisper_decoder, t5, gpt2, longformer,
    )
}  # fmt: skip


def export(name: str, exporter: str, path: Path) -> Example:
    """Write a random model of this architecture to an ONNX file; returns it with the input it is to be run on."""
    torch.manual_seed(0)
    example = ARCHITECTURES[name]()
    if (name, exporter) in EAGER:
        example.model.set_attn_implementation("eager")
    export_example(example, path, exporter)
    return example


def export_example(example: Example, path: Path, exporter: str) -> None:
    """One call of torch.onnx.export, its warnings and progress kept quiet."""
    module = _Positional(example).eval()
    names, tensors = list(example.inputs), tuple(example.inputs.values())
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if exporter == "dynamo":
                axes = tuple(dict.fromkeys(example.open_axes.get(name, {}), torch.export.Dim.AUTO) for name in names)
                torch.onnx.export(
                    module, tensors, path, dynamo=True, input_names=names, output_names=["out"], verbose=False,
                    dynamic_shapes=(axes,), external_data=False, report=False,
                )  # fmt: skip
            else:
                torch.onnx.export(
                    module, tensors, path, dynamo=False, input_names=names, output_names=["out"], opset_version=17,
                    dynamic_axes=example.open_axes,
                )  # fmt: skip
    finally:
        logging.disable(logging.NOTSET)


def feeds(example: Example, batch: int | None = None, length: int | None = None) -> dict[str, np.ndarray]:
    """The example's input, or one of another batch and length where its axes are open."""
    arrays = {name: tensor.numpy() for name, tensor in example.inputs.items()}
    for axis, wanted in ((0, batch), (1, length)):
        for name, array in arrays.items():
            if wanted and axis in example.open_axes.get(name, {}):
                repeats = [1] * array.ndim
                repeats[axis] = -(-wanted // array.shape[axis])
                arrays[name] = np.tile(array, repeats).take(range(wanted), axis)
    mask = arrays.get("attention_mask")
    if mask is not None and length:  # ones, then padding: the pattern of the example, not a repetition of it
        mask[:] = 1
        mask[-1, 3 * mask.shape[1] // 4 :] = 0
    return arrays
