"""What equal means: comparators that raise AssertionError. `test_compare` holds what each must reject."""

import numpy as np

# Relative errors against the float64 definition, measured as the norm of the difference over the norm.
EXACT = 2e-6
CLUSTERED = 1e-5
# Rows whose choice of keys hangs on less than this (relative to |center| |key|) are decided by rounding: the error of
# a float32 product of 128 terms is about 2e-7 of it.
TIE = 2e-6


def relative_error(got, want):
    """||got - want|| / ||want||; NaN must stand where NaN stands, and what should be zero must be zero."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if got.shape != want.shape or (np.isnan(got) != np.isnan(want)).any():
        return np.inf
    got, want = got[~np.isnan(want)], want[~np.isnan(want)]
    infinite = np.isinf(want)
    if (np.isinf(got) != infinite).any() or (got[infinite] != want[infinite]).any():
        return np.inf
    got, want = got[~infinite], want[~infinite]
    size = np.abs(want).max(initial=0.0)
    if size == 0.0:
        return 0.0 if not got.any() else np.inf
    return float(np.linalg.norm((got - want) / size) / np.linalg.norm(want / size))


def assert_close(got, want, tolerance, where=None):
    """The same shape, float32, and a relative error within the tolerance (over rows ``where``, if given)."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.dtype == np.float32, got.dtype
    assert got.shape == want.shape, (got.shape, want.shape)
    if where is not None:
        assert where.shape == got.shape[:-1], (where.shape, got.shape)
        got, want = got[where], want[where]
    error = relative_error(got, want)
    assert error <= tolerance, f"relative error {error:.3g}, tolerance {tolerance:.3g}"


def assert_rows_close(got, want, tolerance, margin, at_least=0.75):
    """As `assert_close`, leaving out rows decided by rounding; most rows must remain."""
    decided = margin > TIE
    assert decided.size == 0 or decided.mean() >= at_least, f"only {decided.mean():.3f} of the rows are decided"
    assert_close(got, want, tolerance, decided)


def assert_same_bits(got, want):
    """The same type, shape and bytes."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.dtype == want.dtype, (got.dtype, want.dtype)
    assert got.shape == want.shape, (got.shape, want.shape)
    if got.tobytes() != want.tobytes():
        differ = got != want
        raise AssertionError(f"{np.count_nonzero(differ)} of {got.size} differ, first at {np.argwhere(differ)[:1]}")


def assert_same_partition(got, want):
    """The same groups under other numbers: a bijection of labels, with padding (-1) kept."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, (got.shape, want.shape)
    for row, other in zip(got.reshape(-1, got.shape[-1]).tolist(), want.reshape(-1, want.shape[-1]).tolist()):
        there, back = {-1: -1}, {-1: -1}
        for a, b in zip(row, other):
            assert there.setdefault(a, b) == b, f"label {a} stands for both {there[a]} and {b}"
            assert back.setdefault(b, a) == a, f"labels {back[b]} and {a} both stand for {b}"


def assert_same_topk(got, logits, topk, tie=0.0):
    """``got`` are the numbers of the ``topk`` largest logits, up to ties within ``tie``; -1 fills empty places."""
    got, logits = np.asarray(got), np.asarray(logits, np.float64)
    chosen = got[got >= 0]
    n_chosen = min(topk, len(logits))
    assert got.shape == (topk,), (got.shape, topk)
    assert len(chosen) == n_chosen, f"{len(chosen)} keys chosen, expected {n_chosen}"
    assert (got >= -1).all()
    assert len(set(chosen.tolist())) == n_chosen, "a key was chosen twice"
    assert (chosen < len(logits)).all()
    if n_chosen:
        threshold = np.sort(logits)[-n_chosen]
        worst = logits[chosen].min()
        assert worst >= threshold - tie, f"a chosen logit is {worst}, the {topk}-th largest is {threshold}"
        missed = np.setdiff1d(np.flatnonzero(logits > threshold + tie), chosen)
        assert len(missed) == 0, f"keys {missed} are larger and were not chosen"


def assert_sorted_by_label(order, member_offsets, labels, rows):
    """``order`` lists the rows of label 0, 1, ... ascending, with the borders in ``member_offsets``."""
    order, member_offsets, labels, rows = (np.asarray(x) for x in (order, member_offsets, labels, rows))
    assert member_offsets[-1] - member_offsets[0] == len(rows), "not every row is in a cluster"
    for c in range(len(member_offsets) - 1):
        members = order[member_offsets[c] - member_offsets[0] : member_offsets[c + 1] - member_offsets[0]]
        assert members.tolist() == rows[labels == c].tolist(), f"members of cluster {c}"
