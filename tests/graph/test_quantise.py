"""Programs whose weights are stored in fewer bits: the same layers, smaller files, the change that was measured."""

import json
import tracemalloc

import numpy as np
import pytest
from safetensors import safe_open

import pyclattn
from pyclattn import cli
from pyclattn.errors import (
    ArgumentError,
    DTypeError,
    ModelFormatError,
    PyclattnError,
    ShapeError,
    UnsupportedOpError,
)
from pyclattn.functional.dense import linear, pack_weight
from pyclattn.functional.dense_int8 import pack_int8, quantise_weight
from pyclattn.graph.program import Op, Program, Value
from pyclattn.graph.quantise import bfloat16_bits, layers, quantise
from pyclattn.graph.serial import load_program, save_program
from pyclattn.model import Model
from pyclattn.weights import SafeTensors

ROWS, WIDTH, HIDDEN = 70, 64, 96


def program(**changed):
    """Rows of an embedding through two dense layers with a residual; ``changed`` replaces constants."""
    rng = np.random.default_rng(0)
    constants = {
        "table": rng.standard_normal((ROWS, WIDTH), dtype=np.float32),
        "up": rng.standard_normal((WIDTH, HIDDEN), dtype=np.float32) / 8,
        "shift": rng.standard_normal(HIDDEN, dtype=np.float32),
        "down": rng.standard_normal((HIDDEN, WIDTH), dtype=np.float32) / 8,
        **changed,
    }
    ops = [
        Op("Gather", ("table", "ids"), ("x",), {"axis": 0}, "look up"),
        Op("pyclattn:Linear", ("x", "up", "shift"), ("h",), {"activation": "gelu"}, "widen"),
        Op("MatMul", ("h", "down"), ("z",), {}, "narrow"),
        Op("Add", ("z", "x"), ("y",)),
    ]
    return Program([Value("ids", "int64", ("b", "n"))], [Value("y", "float32", ("b", "n", WIDTH))], ops, constants)


IDS = np.random.default_rng(1).integers(-ROWS, ROWS, (2, 11))


def by_hand(constants, weights):
    """The model in NumPy: what is stored, widened; with int8 its layers round their input too."""
    table, up, down = (constants[name] for name in ("table", "up", "down"))
    if weights == "int8":
        codes, scale = quantise_weight(table.T)
        rows = (codes.T * scale[:, None])[IDS].astype(np.float32)
        first, second = (pack_int8(*quantise_weight(w)) for w in (up, down))
    else:

        def rounded(w):
            if weights == "fp16":
                return w.astype(np.float16).astype(np.float32)
            return (bfloat16_bits(w).astype(np.uint32) << 16).view(np.float32)

        rows, first, second = rounded(table)[IDS], pack_weight(rounded(up)), pack_weight(rounded(down))
    x = rows.reshape(-1, WIDTH)
    h = linear(x, first, constants["shift"], activation="gelu")
    return (linear(h, second) + x).reshape(*IDS.shape, WIDTH)


SHARE = {"int8": 0.3, "fp16": 0.52, "bf16": 0.52}


@pytest.mark.parametrize("weights", ["int8", "fp16", "bf16"])
def test_the_layers_of_a_quantised_program(weights):
    source = program()
    small, refused = quantise(source, weights)
    assert not refused
    model = Model(small)
    assert model.weight_bytes < SHARE[weights] * Model(source).weight_bytes
    np.testing.assert_allclose(model(ids=IDS)["y"], by_hand(source.constants, weights), rtol=1e-5, atol=1e-5)
    assert all(array.dtype == np.float32 for array in source.constants.values())  # the source is as it was


@pytest.mark.parametrize("weights", ["int8", "fp16", "bf16"])
def test_a_file_holds_what_is_stored(weights, tmp_path):
    small, _ = quantise(program(), weights)
    path = tmp_path / "small.safetensors"
    save_program(path, small)
    before, after = Model(small)(ids=IDS)["y"], pyclattn.load(path)(ids=IDS)["y"]
    np.testing.assert_array_equal(before, after)
    with safe_open(path, "np") as file:  # another reader of the format
        kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert kinds["up"] == kinds["table"] == {"int8": "I8", "fp16": "F16", "bf16": "BF16"}[weights]
    assert kinds["shift"] == "F32"
    assert ("up.scale" in kinds) == (weights == "int8")
    if weights == "bf16":
        np.testing.assert_array_equal(SafeTensors(path)["up"].view(np.uint32) >> 16, small.constants["up"])
        assert load_program(path).constants["up"].dtype == np.uint16
        with pytest.raises(ModelFormatError, match="tensor 'shift' must be BF16, is F32"):
            SafeTensors(path).bits("shift")


def test_a_memory_limit_gives_the_same_numbers():
    small, _ = quantise(program())
    free = Model(small)
    needed = free.estimate(ids=IDS.shape)
    bound = Model(small, max_memory=needed + (1 << 20))
    np.testing.assert_array_equal(free(ids=IDS)["y"], bound(ids=IDS)["y"])
    assert bound.estimate(ids=IDS.shape) <= needed
    assert needed < Model(program()).estimate(ids=IDS.shape)


def test_the_estimate_counts_packed_weights():
    small, _ = quantise(program(up=np.ones((WIDTH, 960), np.float32), shift=np.ones(960, np.float32),
                                down=np.ones((960, WIDTH), np.float32)))  # fmt: skip
    plan = Model(small)._executor.plan({"ids": pyclattn.graph.spec.Spec((1, 1), np.int64)})
    assert plan.folded >= 2 * 960 * WIDTH


def test_what_other_operators_read_stays():
    source = program()
    source.ops.append(Op("Identity", ("up",), ("w",)))
    source.outputs.append(Value("w", "float32", (WIDTH, HIDDEN)))
    assert [(layer.name, layer.kind) for layer in layers(source)] == [("table", "embedding"), ("down", "dense")]
    source.outputs.append(Value("down", "float32", (HIDDEN, WIDTH)))
    assert [layer.name for layer in layers(source)] == ["table"]
    small, _ = quantise(source)
    model = Model(small)
    np.testing.assert_array_equal(model(ids=IDS)["w"], source.constants["up"])


def test_a_stored_weight_that_others_read_is_widened():
    """A program someone else wrote: the widened weight is an output too."""
    small, _ = quantise(program())
    wide = next(op.outputs[0] for op in small.ops if op.inputs[0] == "up")
    small.outputs.append(Value(wide, "float32", (WIDTH, HIDDEN)))
    for model in (Model(small), Model(small, max_memory=1 << 24)):
        got = model(ids=IDS)[wide]
        np.testing.assert_array_equal(got, small.constants["up"] * small.constants["up.scale"])


BAD = {
    "nan": (np.nan, "NaN or an infinity"),
    "infinity": (np.inf, "NaN or an infinity"),
    "outlier": (1e6, "of the rest would be lost"),
}


@pytest.mark.parametrize("name", BAD)
def test_weights_that_int8_cannot_hold_stay_and_are_named(name):
    number, reason = BAD[name]
    up = program().constants["up"].copy()
    up[3, 5] = number
    found = pyclattn.quantize(Model(program(up=up, down=np.zeros((HIDDEN, WIDTH), np.float32))))
    assert set(found.kept) == {"up", "down"}
    assert reason in found.kept["up"]
    assert "all of it is zero" in found.kept["down"]
    assert found.model.program.constants["up"].dtype == np.float32
    assert reason in str(found)
    assert found.change is None


def test_numbers_beyond_float16_stay():
    up = program().constants["up"].copy()
    up[0, 0] = 70000
    _, refused = quantise(program(up=up), "fp16")
    assert "a number beyond 65504" in refused["up"]
    assert not quantise(program(up=up), "bf16")[1]


@pytest.mark.parametrize(("weights", "factor"), [("fp16", 1e-7), ("fp16", 1e-12), ("bf16", 1e-39)])
def test_numbers_too_small_for_halves_stay(weights, factor):
    up = (program().constants["up"] * factor).astype(np.float32)
    _, refused = quantise(program(up=up), weights)
    assert "so small that" in refused["up"]
    assert not quantise(program(up=np.zeros_like(up)), weights)[1]


def test_bfloat16_rounds_to_even():
    """Ties, the largest numbers below the overflow, denormals, zeros of both signs."""
    torch_like = {0x3F808000: 0x3F80, 0x3F818000: 0x3F82, 0x3F808001: 0x3F81, 0x7F7F0000: 0x7F7F, 0x00000001: 0,
                  0x80000000: 0x8000, 0x00018000: 0x0002}  # fmt: skip
    given = np.array(list(torch_like), np.uint32).view(np.float32)
    assert bfloat16_bits(given).tolist() == list(torch_like.values())


def test_loading_bfloat16_reads_no_weight(tmp_path):
    """The file is mapped: nothing the size of a weight is allocated, widened or not."""
    table = np.ones((20_000, WIDTH), np.float32)
    Model(quantise(program(table=table), "bf16")[0]).save(tmp_path / "small.safetensors")
    tracemalloc.start()
    try:
        loaded = load_program(tmp_path / "small.safetensors")
        assert tracemalloc.get_traced_memory()[1] < loaded.constants["table"].nbytes / 4
    finally:
        tracemalloc.stop()


SAMPLES = [{"ids": IDS}, {"ids": IDS[:1, :5]}]


def test_the_change_is_measured():
    source = Model(program())
    found = pyclattn.quantize(source, "int8", SAMPLES)
    want = [
        np.linalg.norm(found.model(**s)["y"] - source(**s)["y"]) / np.linalg.norm(source(**s)["y"]) for s in SAMPLES
    ]
    assert found.change == pytest.approx(max(want))
    assert 1e-3 < found.change < 0.1
    assert not found.kept
    assert not found.errors


def test_the_worst_layers_are_kept_until_the_change_is_small_enough():
    """A layer whose input has one dominant number loses the rest of it."""
    source = program()
    source.constants["shift"][0] = 300  # gelu passes it on: the rows that "down" reads have an outlier
    model = Model(source)
    free = pyclattn.quantize(model, "int8", SAMPLES)
    limit = free.change / 3
    found = pyclattn.quantize(model, "int8", SAMPLES, keep_above=limit)
    assert found.change <= limit < free.change
    assert set(found.errors) == {"table", "up", "down"}
    worst = max(found.errors, key=found.errors.get)
    assert worst in found.kept
    assert len(found.kept) < 3
    assert f"{found.errors[worst]:.1e}" in str(found)
    everything = pyclattn.quantize(model, "int8", SAMPLES, keep_above=1e-9)
    assert set(everything.kept) == {"table", "up", "down"}
    assert everything.change == 0


def test_a_plan_in_the_file_goes_along():
    from pyclattn.model import PLAN_KEY
    from pyclattn.plan import Plan

    source = program()
    model = Model(source)
    source.metadata[PLAN_KEY] = Plan(model=model.fingerprint).to_json()
    small = pyclattn.quantize(Model(source), "fp16", SAMPLES).model
    assert small.plan.model == model.fingerprint != small.fingerprint


@pytest.mark.parametrize("weights", ["int8", "fp16", "bf16"])
def test_a_plan_for_the_model_before_holds_for_its_smaller_weights(weights, tmp_path):
    """From the file too, and where weights were made smaller twice; a plan for any other model is refused."""
    from pyclattn.plan import Plan

    model = Model(program())
    Plan(model=model.fingerprint).save(tmp_path / "plan.json")
    first = Model(quantise(model.program, weights, {"up", "down"})[0])
    second = Model(quantise(first.program, "fp16")[0])
    second.save(tmp_path / "small.safetensors")
    loaded = pyclattn.load(tmp_path / "small.safetensors", str(tmp_path / "plan.json"))
    assert loaded.origins == (model.fingerprint, first.fingerprint)
    assert loaded.plan.model == model.fingerprint != loaded.fingerprint
    for held in (Plan(model=first.fingerprint), Plan(model=second.fingerprint)):
        assert Model(second.program, attention=held).plan == held
    for plan, small in ((Plan(model="0" * 32), second), (Plan(model=second.fingerprint), model)):
        with pytest.raises(ArgumentError, match=f"another model.*{small.fingerprint}"):
            Model(small.program, attention=plan)


def test_limits_of_such_a_plan_are_kept_at_run_time():
    """The head whose estimate is above the limit is computed exactly."""
    from pyclattn.plan import Choice, Plan

    tokens, width = 1200, 64
    rng = np.random.default_rng(0)
    x = Value("x", "float32", ("b", "n", width))
    ops = [
        Op("MatMul", ("x", "w"), ("flat",)),
        Op("Reshape", ("flat", "heads"), ("h",)),
        Op("pyclattn:Attention", ("h", "h", "h"), ("y",), {"name": "first", "layout": "blhd"}),
    ]
    weight = rng.standard_normal((width, width), dtype=np.float32) / 8
    source = Program(
        [x], [Value("y", "float32", ("b", "n", 2, 32))], ops, {"w": weight, "heads": np.array([0, 0, 2, 32])}
    )
    near = Choice("coclustered", {"n_exact": 16, "max_error": 1e-9})
    plan = Plan(by_name={"first": near}, model=Model(source).fingerprint)
    small = quantise(source)[0]
    given = {"x": rng.standard_normal((1, tokens, width), dtype=np.float32)}
    got, report = Model(small, attention=plan).run(None, given, report=True)
    assert report.attentions[0].fell_back.all()
    assert np.array_equal(got[0], Model(small).run(None, given)[0])


@pytest.mark.parametrize("told", ["3f" * 16, [5, None], {"a": 1}, None])
def test_origins_that_were_altered(told, tmp_path):
    from pyclattn.graph.identity import ORIGINS_KEY

    small, _ = quantise(program())
    small.metadata[ORIGINS_KEY] = told
    save_program(tmp_path / "odd.safetensors", small)
    assert pyclattn.load(tmp_path / "odd.safetensors").origins == ()


def test_bad_calls():
    model = Model(program())
    with pytest.raises(ArgumentError, match="weights must be one of"):
        pyclattn.quantize(model, "int4")
    with pytest.raises(ArgumentError, match="give samples too"):
        pyclattn.quantize(model, keep_above=0.1)
    with pytest.raises(ArgumentError, match="above 0, got -1"):
        pyclattn.quantize(model, "int8", SAMPLES, keep_above=-1)
    with pytest.raises(ArgumentError, match=r"samples\[0\].*missing ids"):
        pyclattn.quantize(model, "int8", [{}])
    with pytest.raises(ArgumentError, match="no weight of a dense layer or embedding in float32"):
        pyclattn.quantize(Model(quantise(program())[0]))


def test_operators_that_were_altered():
    for change, error in (
        ({"up": np.zeros((WIDTH, HIDDEN), np.int32)}, DTypeError),
        ({"up.scale": np.zeros(HIDDEN - 1, np.float32)}, ShapeError),
        ({"up.scale": np.zeros(HIDDEN, np.float64)}, ShapeError),
    ):
        small, _ = quantise(program())
        small.constants.update(change)
        with pytest.raises(error, match=r"up\.float32"):
            Model(small)(ids=IDS)


@pytest.mark.parametrize("prepares", [True, False])
@pytest.mark.parametrize("op", [Op("pyclattn:Dequantize", (), ("odd",)), Op("pyclattn:Dequantize", ("up",), ())])
def test_operators_without_inputs_or_outputs(op, prepares, tmp_path):
    """What only an altered file has: an error of ours, or nothing where no one reads the result."""
    small, _ = quantise(program(), "bf16")
    small.ops.insert(0, op)
    save_program(tmp_path / "odd.safetensors", small)
    try:
        pyclattn.load(tmp_path / "odd.safetensors", max_memory=None if prepares else 1 << 24)(ids=IDS)
    except PyclattnError as error:
        message = str(error)
    else:
        message = ""
    assert message == "" or "Dequantize" in message


def test_an_older_reader_says_what_it_lacks(monkeypatch, tmp_path):
    from pyclattn.graph import executor

    small, _ = quantise(program())
    monkeypatch.delitem(executor.TABLE, "pyclattn:Dequantize")
    with pytest.raises(UnsupportedOpError, match="pyclattn:Dequantize"):
        Model(small)


def test_command_line(tmp_path, capsys):
    source, target, sample = (str(tmp_path / name) for name in ("a.safetensors", "b.safetensors", "s.npz"))
    save_program(source, program())
    np.savez(sample, ids=IDS)
    assert cli.main(["quantize", source, "-o", target, "--samples", sample, "--keep-above", "0.5"]) == 0
    printed = capsys.readouterr().out
    assert "3 of 3 weights are int8" in printed
    assert "change of the output on the samples" in printed
    assert pyclattn.load(target).program.constants["up"].dtype == np.int8
    assert cli.main(["quantize", source, "-o", source]) == 1
    assert "same file" in capsys.readouterr().err
    assert cli.main(["quantize", source, "-o", str(tmp_path / "b.npz")]) == 1
    assert "must end in .safetensors" in capsys.readouterr().err
    with safe_open(target, "np") as file:
        assert json.loads(file.metadata()["pyclattn.program"])["constants"]["up"] == "up"


@pytest.mark.parametrize("weights", ["fp16", "bf16"])
def test_halves_are_packed_from_what_is_stored(weights):
    """Of a size that is packed: no float32 of it is kept beside the panels, and a limit changes no number."""
    rng = np.random.default_rng(2)
    wide = {"up": (WIDTH, 1100), "down": (1100, WIDTH)}
    constants = {name: rng.standard_normal(shape, dtype=np.float32) / 16 for name, shape in wide.items()}
    small, _ = quantise(program(**constants, shift=np.zeros(1100, np.float32)), weights)
    model = Model(small)
    specs = model._executor.planner.constant_specs
    packed = [spec for spec in specs.values() if spec.packed is not None]
    assert len(packed) == 2
    assert all(spec.value is None for spec in packed)
    limited = Model(small, max_memory=1 << 24)
    np.testing.assert_allclose(model(ids=IDS)["y"], limited(ids=IDS)["y"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        model(ids=IDS)["y"], by_hand(dict(program().constants, **constants, shift=np.zeros(1100, np.float32)), weights),
        rtol=1e-5, atol=1e-5,
    )  # fmt: skip


def test_a_residual_is_added_by_the_layer():
    """As with float32 weights: the programs made ready have the same operators."""
    source = program()
    source.ops[2].kind = "pyclattn:Linear"
    plain, small = Model(source), Model(quantise(source)[0])
    shape = pyclattn.graph.spec.Spec(IDS.shape, np.int64)
    before, after = ([step.op.kind for step in model._executor.plan({"ids": shape}).steps] for model in (plain, small))
    assert before == ["Gather", "pyclattn:Linear", "pyclattn:Linear"]
    assert after == ["Gather", "Gather", "pyclattn:Dequantize", *before[1:]]
