"""``--weights``: a model converted and stored in fewer bits at once."""

import numpy as np
import onnx
import pytest
from onnx_models import Builder

from pyclattn.errors import ArgumentError
from pyclattn.model import load
from pyclattn_export import cli, convert

D = 72


@pytest.fixture
def source(tmp_path):
    g = Builder()
    x = g.input("x", ["n", D], np.zeros((5, D)))
    y = g("MatMul", g("Relu", g("MatMul", x, g.weight(D, D))), g.weight(D, D))
    path = tmp_path / "layers.onnx"
    onnx.save(g.model(y), path)
    return path


SAMPLE = np.random.default_rng(0).standard_normal((5, D), dtype=np.float32)


@pytest.mark.parametrize(("weights", "dtype", "most"), [("int8", np.int8, 0.05), ("fp16", np.float16, 1e-3)])
def test_weights_are_stored_in_fewer_bits(source, tmp_path, weights, dtype, most):
    plain, small = tmp_path / "plain.safetensors", tmp_path / "small.safetensors"
    convert(source, plain)
    result = convert(source, small, weights=weights, inputs={"x": SAMPLE})
    model = load(small)
    assert {array.dtype for array in model.program.constants.values() if array.ndim == 2} == {np.dtype(dtype)}
    (got,), (want,) = model.run(None, {"x": SAMPLE}), load(plain).run(None, {"x": SAMPLE})
    change = np.linalg.norm(got - want) / np.linalg.norm(want)
    assert result.quantized.change == pytest.approx(change)
    assert 0 < change < most
    assert convert(source, plain).quantized is None


def test_command_line_says_what_changed(source, tmp_path, capsys):
    target, sample = tmp_path / "small.safetensors", tmp_path / "x.npz"
    np.savez(sample, x=SAMPLE)
    given = ["onnx", str(source), "-o", str(target), "--weights", "int8", "--input", str(sample)]
    assert cli.main([*given, "--keep-above", "1e-9"]) == 0
    assert "0 of 2 weights are int8" in capsys.readouterr().out
    assert cli.main([*given, "--verify"]) == 0
    assert "with what weights in fewer bits change" in capsys.readouterr().out
    assert cli.main(given) == 0
    printed = capsys.readouterr().out
    assert "2 of 2 weights are int8" in printed
    assert "change of the output on the samples" in printed


def test_a_limit_needs_a_sample(source, tmp_path):
    target = tmp_path / "small.safetensors"
    with pytest.raises(ArgumentError, match="give samples too"):
        convert(source, target, weights="int8", keep_above=0.1)
    with pytest.raises(ArgumentError, match="keep_above goes with weights"):
        convert(source, target, keep_above=0.1)
    assert not target.exists()
