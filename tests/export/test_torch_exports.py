"""Random models of the common architectures, through both of torch's exporters (``make parity``)."""

import pytest

from pyclattn.model import load
from pyclattn_export import convert
from pyclattn_export.verify import TOLERANCE, compare

pytestmark = pytest.mark.torch
NAMES = [
    "bert", "roberta", "distilbert", "albert", "deberta", "modernbert", "vit", "deit", "swin", "wav2vec2",
    "whisper_encoder", "whisper_decoder", "t5", "gpt2", "longformer",
]  # fmt: skip


@pytest.mark.parametrize("exporter", ["script", "dynamo"])
@pytest.mark.parametrize("name", NAMES)
def test_parity(name, exporter, tmp_path):
    """Loads, runs at the exported and at another size, agrees; every attention is found, or the report says why not."""
    from bench.tasks import architectures

    assert list(architectures.ARCHITECTURES) == NAMES
    source, target = tmp_path / "m.onnx", tmp_path / "m.safetensors"
    if (name, exporter) in architectures.NOT_EXPORTED:
        with pytest.raises(Exception, match=r"export"):  # torch's own: if it learns to, this line is to go
            architectures.export(name, exporter, source)
        return
    example = architectures.export(name, exporter, source)
    report = convert(source, target).report
    assert len(report.attentions) == example.n_attentions
    softmaxes = sum(op.kind == "Softmax" for op in load(target).program.ops)
    assert len(report.kept) == softmaxes
    assert all(kept.reason for kept in report.kept)
    if "attention_mask" in example.inputs and example.n_attentions:
        assert all("key padding" in found.mask or found.mask in ("none", "pairs + bias") for found in report.attentions)
    for inputs in (architectures.feeds(example), architectures.feeds(example, batch=3, length=OTHER.get(name, 23))):
        result = compare(source, target, inputs=inputs)
        assert result.tolerance == TOLERANCE
        assert result.passed, f"{name} by {exporter}\n{result}"


# What is cut into windows must be a multiple of them; samples must be long enough for the convolutions.
OTHER = {"wav2vec2": 1000}
