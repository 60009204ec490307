"""Working arrays kept from call to call: given back, bounded, never shared by two that run at once."""

import os
import threading
import time

import numpy as np
import pytest

from pyclattn.functional import _scratch
from pyclattn.functional._scratch import scratch

LARGE = (3, _scratch.LEAST)  # three times the least size in bytes times four


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(_scratch, "_free", [])


def test_the_same_memory_again():
    """Also for somewhat less; not for much less, nor while it is in use."""
    with scratch(LARGE) as first:
        assert first.shape == LARGE
        assert first.ctypes.data % 64 == 0
        with scratch(LARGE) as second:
            assert not np.shares_memory(first, second)
    with scratch((2, _scratch.LEAST)) as again:
        assert np.shares_memory(again, first) or np.shares_memory(again, second)
    with scratch(LARGE) as one, scratch(LARGE) as other, scratch(LARGE) as third:
        assert not np.shares_memory(one, other)
        assert not np.shares_memory(one, third)
        assert not np.shares_memory(other, third)
    kept = len(_scratch._free)
    with scratch((_scratch.LEAST,)) as less:
        assert not np.shares_memory(less, first)
        assert not np.shares_memory(less, second)
    assert len(_scratch._free) == kept + 1


def test_small_arrays_are_not_kept():
    with scratch((2, 0, 3)) as empty, scratch((5, 7)) as small:
        assert empty.shape == (2, 0, 3)
        small[...] = 1
    assert _scratch._free == []


def test_no_more_than_so_many_bytes(monkeypatch):
    monkeypatch.setattr(_scratch, "KEPT", 9 * _scratch.LEAST)
    arrays = [scratch((n * _scratch.LEAST // 4,)) for n in (5, 3, 6)]
    for array in arrays:
        array.__enter__()
    for array in arrays:
        array.__exit__(None, None, None)
    assert [memory.nbytes for memory in _scratch._free] == [n * _scratch.LEAST for n in (3, 6)]


def test_given_back_after_an_error():
    with pytest.raises(ValueError, match="inside"), scratch(LARGE):
        raise ValueError("inside")
    assert len(_scratch._free) == 1


def test_threads_never_share():
    wrong = []

    def work(number):
        for _ in range(50):
            with scratch((_scratch.LEAST // 4,)) as array:
                array[::1000] = number
                time.sleep(0.0005)  # the others' turn
                if (array[::1000] != number).any():
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_forked_under_the_lock_goes_on():
    with _scratch._lock:
        child = os.fork()
        if child == 0:
            with scratch(LARGE):
                os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
