"""Convolutions whose weights are packed at load: the same results as of weights that a run is given."""

import numpy as np
import pytest
from build import program_of
from compare import relative_error

from pyclattn import _dispatch
from pyclattn.functional.precision import missing_bfloat16
from pyclattn.graph.executor import Executor
from pyclattn.graph.program import Op, Program, Value
from pyclattn.graph.spec import Settings

rng = np.random.default_rng(0)

CASES = {
    "plain": ("Conv", (2, 64, 13, 17), (128, 64, 3, 3), {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
    "groups": ("Conv", (1, 130, 9, 11), (128, 65, 3, 3), {"group": 2, "dilations": [2, 1], "pads": [1, 1, 1, 1]}),
    "pointwise": ("Conv", (1, 256, 7, 9), (256, 256, 1, 1), {}),
    "one axis": ("Conv", (2, 64, 50), (256, 64, 5), {"pads": [2, 2], "strides": [2]}),
    "transposed": ("ConvTranspose", (1, 128, 13, 9), (128, 64, 4, 4), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "transposed, more stride than kernel": ("ConvTranspose", (1, 192, 5, 4), (192, 96, 2, 2), {"strides": [3, 2]}),
    "transposed, cut": (
        "ConvTranspose",
        (2, 96, 7, 30),
        (96, 48, 4, 4),
        {"strides": [2, 2], "pads": [0, 3, 5, 0], "output_padding": [1, 0], "group": 2},
    ),
    "transposed, groups": ("ConvTranspose", (1, 128, 6, 40), (128, 40, 4, 4), {"strides": [2, 3], "group": 2}),
    "transposed, one axis": ("ConvTranspose", (1, 128, 30), (128, 80, 8), {"strides": [4], "pads": [2, 1]}),
    "size decides": ("Conv", (1, 64, 12, 10), (128, 64, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
}


def normal(shape):
    return rng.standard_normal(shape, dtype=np.float32)


def filters_of(executor):
    return [spec.packed for spec in executor.planner.constant_specs.values() if spec.packed is not None]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_packed_as_given(case, precision):
    kind, shape, weight_shape, attributes = CASES[case]
    x, weight = normal(shape), normal(weight_shape)
    bias = normal(weight_shape[0] if kind == "Conv" else weight_shape[1] * attributes.get("group", 1))
    program, feeds = program_of(kind, [x, weight, bias], attributes)
    want = Executor(program, Settings(n_threads=2))(feeds)["y0"]
    program, feeds = program_of(kind, [x, weight, bias], attributes, constants=(1, 2))
    with _dispatch.forced("reference" if precision == "bfloat16" and missing_bfloat16() else None):
        executor = Executor(program, Settings(n_threads=2, precision=precision))
        got = executor(feeds)["y0"]
        packed = filters_of(executor)
    is_kept = case == "size decides" or (case == "pointwise" and precision == "float32")
    assert len(packed) == (0 if is_kept else 1)
    if is_kept or precision == "float32":
        assert relative_error(got, want) < 1e-6
        return
    assert packed[0].is_paired
    terms = 36 / 16 if case in ("transposed", "transposed, cut") else 1  # as Winograd's products need them
    assert packed[0].nbytes < 0.6 * terms * weight.nbytes
    assert 1e-4 < relative_error(got, want) < 1e-2
    assert executor.planner.constant_specs["x1"].value is None


@pytest.mark.parametrize("size", [4, 3])
def test_relu_behind_a_transposed_convolution(size):
    """Where its sums are written, or after them."""
    x, weight = normal((1, 128, 9, 11)), normal((128, 64, size, size))
    ops = [Op("ConvTranspose", ("x", "w"), ("c",), {"strides": [2, 2]}), Op("Relu", ("c",), ("y",))]
    values = [Value(n, "float32", ("...",)) for n in "xy"]
    program = Program(values[:1], values[1:], ops, {"w": weight})
    executor = Executor(program, Settings(n_threads=2))
    assert [op.kind for op in executor.ready.ops] == ["ConvTranspose"]
    want = Executor(program, Settings(prepares=False))({"x": x})["y"]
    assert (want == 0).mean() > 0.3
    assert relative_error(executor({"x": x})["y"], want) < 1e-6


def test_one_weight_of_two_convolutions():
    """What was packed for one is not what the other reads."""
    x, weight = normal((1, 64, 12, 14)), normal((128, 64, 3, 3))
    values = [Value(n, "float32", ("...",)) for n in ("x", "y", "z", "same")]
    ops = [
        Op("Conv", ("x", "w"), ("y",), {"strides": [2, 2]}),
        Op("ConvTranspose", ("y", "w"), ("z",), {"strides": [2, 2]}),
        Op("Conv", ("x", "w"), ("same",), {"strides": [2, 2]}),
    ]
    program = Program(values[:1], values[1:], ops, {"w": weight})
    got = Executor(program)({"x": x})
    plain = Executor(program, Settings(prepares=False))({"x": x})
    for name, want in plain.items():
        assert relative_error(got[name], want) < 1e-6
    np.testing.assert_array_equal(got["y"], got["same"])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_input_in_another_order(precision):
    """Tokens with features last, looked at as an image."""
    x, weight = normal((2, 63, 96)), normal((96, 64, 4, 4))
    ops = [
        Op("Transpose", ("x",), ("t",), {"perm": [0, 2, 1]}),
        Op("Reshape", ("t", "shape"), ("image",)),
        Op("ConvTranspose", ("image", "w"), ("y",), {"strides": [2, 2]}),
    ]
    values = [Value(n, "float32", ("...",)) for n in "xy"]
    program = Program(values[:1], values[1:], ops, {"w": weight, "shape": np.array([2, 96, 7, 9])})
    with _dispatch.forced("reference" if precision == "bfloat16" and missing_bfloat16() else None):
        got = Executor(program, Settings(precision=precision))({"x": x})["y"]
    image = x.swapaxes(1, 2).reshape(2, 96, 7, 9)
    one = Program([Value("image", "float32", ("...",))], values[1:], ops[2:], {"w": weight})
    want = Executor(one, Settings(prepares=False))({"image": np.ascontiguousarray(image)})["y"]
    assert relative_error(got, want) < (1e-6 if precision == "float32" else 1e-2)


@pytest.mark.parametrize("attributes", [{"strides": [2]}, {"strides": "ab"}, {"group": 3}])
def test_attributes_that_do_not_fit_are_told_of_by_the_operator(attributes):
    program, feeds = program_of("Conv", [normal((1, 64, 9, 9)), normal((128, 64, 3, 3))], attributes, constants=(1,))
    with pytest.raises(Exception, match="the_node") as caught:
        Executor(program)(feeds)
    assert type(caught.value).__module__ == "pyclattn.errors" or isinstance(caught.value, (ValueError, TypeError))
