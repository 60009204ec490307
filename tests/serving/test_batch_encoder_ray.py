"""The batch encoder under Ray Data, unchanged: `make ray`."""

import os
import signal

import numpy as np
import pytest

from pyclattn import BatchEncoder
from tests.serving.models import encoder as program
from tests.serving.models import save, text

pytestmark = pytest.mark.ray

N_DOCUMENTS, BATCH = 240, 8


@pytest.fixture(scope="module")
def data():
    from bench.scale.engine import ray_data

    with ray_data(2) as data:
        yield data


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return save(tmp_path_factory.mktemp("ray") / "text.safetensors", program())


@pytest.fixture(scope="module")
def columns():
    ids = np.empty(N_DOCUMENTS, object)
    for i, feeds in enumerate(text(np.random.default_rng(0).integers(1, 200, N_DOCUMENTS))):
        ids[i] = feeds["input_ids"][0]
    return {"doc": np.arange(N_DOCUMENTS), "input_ids": ids}


def dataset(data, columns):
    import pyarrow as pa

    table = pa.table({"doc": columns["doc"], "input_ids": [row.tolist() for row in columns["input_ids"]]})
    return data.from_arrow([table.slice(i, BATCH) for i in range(0, N_DOCUMENTS, BATCH)])


def same(rows, wanted):
    """Every document once, to the bit, its ragged output too."""
    rows = sorted(rows, key=lambda row: row["doc"])
    assert [row["doc"] for row in rows] == list(range(N_DOCUMENTS))
    for i, row in enumerate(rows):
        for name in wanted:
            np.testing.assert_array_equal(np.asarray(row[name]), wanted[name][i])


@pytest.mark.parametrize("how", ["actors", "tasks"])
def test_map_batches(data, path, columns, how):
    mapped = dataset(data, columns)
    if how == "actors":
        mapped = mapped.map_batches(BatchEncoder, fn_constructor_args=(path,), batch_size=BATCH, concurrency=2)
    else:
        mapped = mapped.map_batches(BatchEncoder(path), batch_size=BATCH)
    same(mapped.take_all(), BatchEncoder(path)(columns))


def test_a_killed_actor_loses_nothing(data, path, columns):
    from bench.scale.engine import workers

    mapped = dataset(data, columns).map_batches(
        BatchEncoder, fn_constructor_args=(path,), batch_size=BATCH, concurrency=2, num_cpus=1
    )
    rows, killed = [], []
    for row in mapped.iter_rows():
        rows.append(row)
        if not killed:
            killed = workers()[:1]
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
    assert killed
    same(rows, BatchEncoder(path)(columns))


@pytest.mark.parametrize("n_cpus", [0.5, 1, 2])
def test_threads_are_num_cpus(data, path, columns, n_cpus):
    from bench.scale.engine import Timed

    mapped = dataset(data, columns).map_batches(
        Timed, fn_constructor_args=(path,), batch_size=BATCH, concurrency=1, num_cpus=n_cpus
    )
    assert {row["n_threads"] for row in mapped.take_all()} == {max(1, int(n_cpus))}
