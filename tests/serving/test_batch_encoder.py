"""A batch encoder gives each row what the model gives it, in any process, however batches are cut."""

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest

import pyclattn
from pyclattn import _dispatch, _threads
from pyclattn.errors import ArgumentError, DTypeError, ModelFormatError, ShapeError
from pyclattn.functional.precision import missing_bfloat16
from pyclattn.graph.program import Value
from pyclattn.plan import Plan
from pyclattn.serving.batch_encoder import BatchEncoder, groups
from pyclattn.serving.batching import Rule
from tests.serving import workers
from tests.serving.models import encoder as program
from tests.serving.models import one_op, save, text

LENGTHS = [40, 3, 17, 40, 90, 1, 33, 39, 8, 64, 65, 5]
HIDDEN, POOLED = (v.name for v in program().outputs)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return save(tmp_path_factory.mktemp("batch") / "text.safetensors", program())


@pytest.fixture(scope="module")
def alone(path):
    """What the model gives each text by itself."""
    model = pyclattn.load(path, n_threads=1)
    return [model(**feeds) for feeds in text(LENGTHS)]


def ragged(lengths=LENGTHS):
    """The texts as an engine gives them: rows of several lengths, and a column of its own."""
    ids = np.empty(len(lengths), object)
    for i, feeds in enumerate(text(lengths)):
        ids[i] = feeds["input_ids"][0]
    return {"doc": np.arange(len(lengths)), "input_ids": ids}


def padded(lengths=LENGTHS):
    """The same as a rectangle with a mask."""
    ids, mask = (np.zeros((len(lengths), max(lengths)), np.int64) for _ in range(2))
    for i, feeds in enumerate(text(lengths)):
        ids[i, : lengths[i]], mask[i, : lengths[i]] = feeds["input_ids"][0], 1
    return {"doc": np.arange(len(lengths)), "input_ids": ids, "attention_mask": mask}


def same(found, other):
    """To the bit."""
    assert found.keys() == other.keys()
    for name in other:
        assert found[name].dtype == other[name].dtype
        assert len(found[name]) == len(other[name])
        for a, b in zip(found[name], other[name]):
            np.testing.assert_array_equal(a, b, strict=True)


def cut(batch, n):
    size = len(batch["doc"])
    return [{name: column[i : i + n] for name, column in batch.items()} for i in range(0, size, n)]


def test_a_mask_where_one_is_padding(path, tmp_path):
    """Whether it is left out or given, and cut off at the end of rows, as with one where one is a token."""
    other = save(tmp_path / "other.safetensors", program(mask="is_pad", token=0))
    same(BatchEncoder(other)(ragged()), BatchEncoder(path)(ragged()))
    given = padded()
    turned = {"doc": given["doc"], "input_ids": given["input_ids"], "is_pad": 1 - given["attention_mask"]}
    same(BatchEncoder(other)(turned), BatchEncoder(path)(given))


def test_rows_of_several_lengths(path, alone):
    found = BatchEncoder(path)(ragged())
    assert list(found) == ["doc", HIDDEN, POOLED]
    np.testing.assert_array_equal(found["doc"], np.arange(len(LENGTHS)))
    assert found[HIDDEN].dtype == object
    assert found[POOLED].dtype == np.float32
    for i, wanted in enumerate(alone):
        np.testing.assert_allclose(found[HIDDEN][i], wanted[HIDDEN][0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[POOLED][i], wanted[POOLED][0], rtol=1e-5, atol=1e-6)


def test_a_padded_rectangle_gives_the_same_bits_and_zeros_behind(path):
    encoder = BatchEncoder(path)
    found, wanted = encoder(padded()), encoder(ragged())
    assert found[HIDDEN].shape == (len(LENGTHS), max(LENGTHS), 16)
    same({POOLED: found[POOLED]}, {POOLED: wanted[POOLED]})
    for n, row, own in zip(LENGTHS, found[HIDDEN], wanted[HIDDEN]):
        np.testing.assert_array_equal(row[:n], own)
        assert not row[n:].any()


def test_precision_goes_with_the_pickle_and_to_the_model(path):
    with _dispatch.forced("reference" if missing_bfloat16() else None):
        encoder = pickle.loads(pickle.dumps(BatchEncoder(path, precision="bfloat16")))
        assert encoder._loaded()[0].precision == "bfloat16"
        found, wanted = encoder(ragged()), BatchEncoder(path)(ragged())
        difference = np.linalg.norm(found[POOLED] - wanted[POOLED]) / np.linalg.norm(wanted[POOLED])
        assert 1e-4 < difference < 1e-2
        for piece, at in zip(cut(ragged(), 5), (0, 5, 10)):
            np.testing.assert_array_equal(encoder(piece)[POOLED], found[POOLED][at : at + 5])


def test_padding_is_not_computed(path, monkeypatch):
    seen = []
    call = pyclattn.Model.__call__
    encoder = BatchEncoder(path)
    encoder({name: column[:1] for name, column in padded().items()})
    monkeypatch.setattr(pyclattn.Model, "__call__", lambda m, **x: seen.append(x["input_ids"].shape) or call(m, **x))
    encoder(padded())
    assert sum(a * b for a, b in seen) <= sum(n + max(7, n // 16) for n in LENGTHS)
    assert seen[0] == (1, 96)  # longest first


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("budget", [0, 50, 4096])
def test_bits_do_not_depend_on_the_cut(path, n, budget):
    encoder, whole = BatchEncoder(path, max_batch_tokens=budget), BatchEncoder(path)(ragged())
    parts = [encoder(batch) for batch in cut(ragged(), n)]
    for name in whole:
        rows = [row for part in parts for row in part[name]]
        assert len(rows) == len(whole[name])
        for a, b in zip(rows, whole[name]):
            np.testing.assert_array_equal(a, b, strict=True)


def test_lists_in_columns_and_other_integers(path):
    batch = ragged()
    lists = np.empty(len(LENGTHS), object)
    for i, ids in enumerate(batch["input_ids"]):
        lists[i] = ids.tolist()
    wanted = BatchEncoder(path)(batch)
    same(BatchEncoder(path)({**batch, "input_ids": lists}), wanted)
    for i, ids in enumerate(batch["input_ids"]):
        lists[i] = ids.astype(np.int32)
    same(BatchEncoder(path)({**batch, "input_ids": lists}), wanted)


def test_a_column_of_rows_is_of_one_type_in_all_batches(path):
    """Rows that happen to be equally long are still an array of arrays."""
    found = BatchEncoder(path)(ragged([5, 5]))[HIDDEN]
    assert found.dtype == object
    assert [row.shape for row in found] == [(5, 16)] * 2


def test_some_outputs(path):
    found = BatchEncoder(path, outputs=[POOLED])(ragged())
    same(found, {name: column for name, column in BatchEncoder(path)(ragged()).items() if name != HIDDEN})


def test_no_rows(path):
    found = BatchEncoder(path)({name: column[:0] for name, column in padded().items()})
    assert {name: column.shape for name, column in found.items()} == {"doc": (0,), HIDDEN: (0, 0, 16), POOLED: (0, 16)}
    assert BatchEncoder(path)({name: column[:0] for name, column in ragged().items()})[HIDDEN].dtype == object


def test_models_whose_rows_depend_on_each_other_run_row_by_row(tmp_path):
    file = save(tmp_path / "sum.safetensors", one_op("CumSum", constants={"axis": np.array(0)}))
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(BatchEncoder(file)({"x": x})["y"], x)


def test_groups_keep_to_the_budget():
    ids, rule = Value("ids", "int64", ("batch", "length")), Rule("padded", {"ids": 1})
    requests = [{"ids": np.zeros((1, n))} for n in (5, 60, 8, 7, 61, 100, 3, 64)]
    found = groups(rule, [ids], requests, 128)
    assert sorted(i for group in found for i in group) == list(range(len(requests)))
    assert found == [[5], [1, 4], [7], [0, 2, 3, 6]]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"input_ids": None}, ArgumentError, "no input is among them; the model takes input_ids, attention_mask"),
        ({"doc": np.arange(3)}, ShapeError, "equally many rows"),
        ({POOLED: np.arange(len(LENGTHS))}, ArgumentError, "have the name of an output"),
        (
            {"input_ids": np.zeros((len(LENGTHS), 4))},
            DTypeError,
            "row 0: column 'input_ids' must be int64",
        ),
        ({"input_ids": np.array(["a"] * len(LENGTHS))}, DTypeError, "must be int64"),
        ({"input_ids": np.arange(len(LENGTHS))}, ShapeError, r"row 0: input 'input_ids' must have shape"),
        ({"input_ids": np.array([None] * len(LENGTHS))}, DTypeError, "row 0: column 'input_ids'"),
    ],
)
def test_columns_that_do_not_fit(path, change, error, message):
    batch = {name: column for name, column in {**ragged(), **change}.items() if column is not None}
    with pytest.raises(error, match=message):
        BatchEncoder(path)(batch)


def test_an_error_names_the_row_at_fault(path):
    batch = ragged()
    batch["input_ids"][7] = np.full(39, 10_000)
    with pytest.raises(ArgumentError, match="row 7:"):
        BatchEncoder(path)(batch)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"max_batch_tokens": -1}, ArgumentError),
        ({"max_batch_tokens": 1.5}, DTypeError),
        ({"n_threads": 0}, ArgumentError),
        ({"outputs": "out"}, ArgumentError),
        ({"outputs": []}, ArgumentError),
        ({"plan": "best"}, ArgumentError),
        ({"plan": "missing.json"}, ModelFormatError),
        ({"precision": "float16"}, ArgumentError),
    ],
)
def test_arguments_that_cannot_be_used(arguments, error):
    with pytest.raises(error):
        BatchEncoder("somewhere.safetensors", **arguments)


def test_what_is_wrong_with_the_model_is_told_by_the_first_call(path, tmp_path):
    with pytest.raises(ModelFormatError, match=r"none\.safetensors: cannot be read"):
        BatchEncoder(tmp_path / "none.safetensors")(ragged())
    with pytest.raises(ArgumentError, match="outputs best do not exist"):
        BatchEncoder(path, outputs=["best"])(ragged())


def test_a_pickle_has_the_path_and_the_plan_but_no_weights(path, tmp_path, monkeypatch):
    plan = tmp_path / "plan.json"
    Plan.of("coclustered").save(plan)
    monkeypatch.chdir(path.parent)
    encoder = BatchEncoder(path.name, plan=plan, max_batch_tokens=64)
    plan.unlink()
    encoder(ragged())
    sent = pickle.dumps(encoder)
    monkeypatch.chdir(tmp_path)
    received = pickle.loads(sent)
    same(received(ragged()), encoder(ragged()))
    assert len(sent) < 1000
    assert received._loaded()[0].plan == Plan.of("coclustered")


def test_encoders_that_come_with_every_task_load_the_model_once(path, tmp_path):
    n_loads, _ = workers.loads_of(BatchEncoder(path), cut(ragged(), 3))
    assert n_loads == 1
    file = save(tmp_path / "text.safetensors", program())
    encoder = BatchEncoder(file)
    old = encoder(ragged())
    save(file, program(seed=1))
    same(encoder(ragged()), old)  # what lives as long as its worker keeps the model it began with
    assert not np.array_equal(pickle.loads(pickle.dumps(encoder))(ragged())[POOLED], old[POOLED])


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes(path, method):
    encoder, batches = BatchEncoder(path), cut(ragged(), 3)
    with ProcessPoolExecutor(2, multiprocessing.get_context(method)) as pool:
        found = list(pool.map(encoder, batches))
        assert pool.submit(_threads.of_worker).result() == 1
    for a, b in zip(found, batches):
        same(a, encoder(b))


def test_a_killed_worker_loses_nothing(path, tmp_path):
    """The pool breaks with the worker; what it had not given back is given to the next one."""
    encoder, batches = BatchEncoder(path), cut(ragged(), 2)
    found, n_broken = {}, 0
    while len(found) < len(batches):
        left = [i for i in range(len(batches)) if i not in found]
        with ProcessPoolExecutor(2, multiprocessing.get_context("forkserver")) as pool:
            marker = str(tmp_path / "died")
            futures = {i: pool.submit(workers.apply_but_die_once, encoder, batches[i], marker) for i in left}
            for i, future in futures.items():
                try:
                    found[i] = future.result()
                except BrokenProcessPool:
                    n_broken += 1
    assert n_broken
    for i, batch in enumerate(batches):
        same(found[i], encoder(batch))


@pytest.mark.parametrize(
    ("variables", "n"),
    [
        ({}, 6),
        ({"OMP_NUM_THREADS": "2"}, 2),
        ({"OMP_NUM_THREADS": "3,2"}, 3),
        ({"OMP_NUM_THREADS": "64"}, 6),
        ({"OMP_NUM_THREADS": "many"}, 6),
        ({"OMP_NUM_THREADS": "0"}, 6),
        ({"OMP_NUM_THREADS": "2", "PYCLATTN_NUM_THREADS": "4"}, 4),
    ],
)
def test_threads_are_what_the_engine_gave(path, monkeypatch, variables, n):
    monkeypatch.setattr(_threads, "available_cpus", lambda: 6)
    for name in ("OMP_NUM_THREADS", "PYCLATTN_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert BatchEncoder(path)._loaded()[0].n_threads == n
    assert BatchEncoder(path, n_threads=5)._loaded()[0].n_threads == 5


def test_a_row_whose_padding_would_pass_the_last_position_runs_without(tmp_path):
    """A table of 20 positions has none for the 24 that 20 tokens are padded to."""
    small = program(n_positions=20)
    encoder = BatchEncoder(save(tmp_path / "text.safetensors", small), n_threads=1)
    found = encoder(ragged([20, 3, 19]))
    model = pyclattn.Model(small, n_threads=1)
    for i, feeds in enumerate(text([20, 3, 19])):
        wanted = model(**feeds)
        np.testing.assert_allclose(found[POOLED][i], wanted[POOLED][0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[HIDDEN][i], wanted[HIDDEN][0], rtol=1e-5, atol=1e-6)
    with pytest.raises(ShapeError, match=r"row 1: .*index 20 is beyond a table of 20"):
        encoder(ragged([5, 21]))


class Labelled:
    """A column of pandas: an index is a label, iteration gives rows."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __iter__(self):
        return iter(self.rows)

    def __getitem__(self, label):
        return self.rows[-1 - label]


def test_rows_of_a_column_with_labels_keep_their_order(path):
    batch = ragged()
    found = BatchEncoder(path)({**batch, "input_ids": Labelled(list(batch["input_ids"]))})
    same({name: found[name] for name in (HIDDEN, POOLED)}, {n: BatchEncoder(path)(batch)[n] for n in (HIDDEN, POOLED)})


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (None, "column 'input_ids' must be an array or a list of rows, got NoneType"),
        (np.array(3), "column 'input_ids' must be an array or a list of rows, got ndarray"),
        ({"a": [1]}, "column 'input_ids' must be an array or a list of rows, got dict"),
        ({1}, "column 'input_ids' must be an array or a list of rows, got set"),
        ((row for row in [[1]]), "column 'input_ids' must be an array or a list of rows, got generator"),
        ([[1, 2], None], "row 1: column 'input_ids' must hold an array a row, got None"),
        (np.ma.masked_array([[1, 2], [3, 4]], [[0, 0], [0, 1]]),
         "row 1: column 'input_ids' must hold an array a row, got a masked array"),
    ],
)  # fmt: skip
def test_what_is_no_column_is_refused_by_name(path, column, words):
    with pytest.raises(DTypeError) as told:
        BatchEncoder(path)({"input_ids": column})
    assert words in str(told.value)


def test_an_empty_list_is_an_empty_row_whatever_numpy_calls_its_type(path):
    with pytest.raises(ShapeError, match=r"row 1: .*a table of 0 rows"):  # its first token is wanted
        BatchEncoder(path)({"input_ids": [[1, 2], []]})
