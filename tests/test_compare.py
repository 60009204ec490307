"""Comparators must reject what is not equal: each has cases that must pass and cases that must not."""

import compare
import numpy as np
import pytest

NAN, INF = np.nan, np.inf


def rejected(comparator, *arguments, **options):
    with pytest.raises(AssertionError):
        comparator(*arguments, **options)


def f32(*values):
    return np.array(values, np.float32)


def test_relative_error_of_known_pairs():
    assert compare.relative_error([3.0, 4.0], [3.0, 4.0]) == 0.0
    assert compare.relative_error([3.0, 4.5], [3.0, 4.0]) == pytest.approx(0.1)
    assert compare.relative_error([0.0, 0.0], [0.0, 0.0]) == 0.0
    assert compare.relative_error([0.0, 1e-30], [0.0, 0.0]) == INF
    assert compare.relative_error([1e300, 2e300], [1e300, 2e300]) == 0.0
    assert compare.relative_error([1e-300, 3e-300], [1e-300, 1e-300]) == pytest.approx(2**0.5)
    assert compare.relative_error([], []) == 0.0


@pytest.mark.parametrize(
    ("got", "want"),
    [
        ([1.0, NAN], [1.0, 2.0]),
        ([1.0, 2.0], [1.0, NAN]),
        ([1.0, INF], [1.0, 2.0]),
        ([1.0, -INF], [1.0, INF]),
        ([1.0, 2.0], [1.0, INF]),
        ([1.0], [1.0, 2.0]),
        ([[1.0, 2.0]], [1.0, 2.0]),
    ],
)
def test_relative_error_is_infinite_where_nothing_can_be_compared(got, want):
    assert compare.relative_error(got, want) == INF


def test_close():
    compare.assert_close(f32(1, 2, NAN), [1, 2 + 1e-6, NAN], 1e-6)
    rejected(compare.assert_close, f32(1, 2), [1, 2.001], 1e-5)
    rejected(compare.assert_close, np.array([1.0, 2.0]), [1.0, 2.0], 1e-5)  # float64
    rejected(compare.assert_close, f32(1, 2)[None], [1.0, 2.0], 1e-5)
    rejected(compare.assert_close, f32(1, NAN), [1.0, 2.0], 1e-5)
    compare.assert_close(f32([1], [9]), [[1.0], [2.0]], 1e-6, where=np.array([True, False]))
    rejected(compare.assert_close, f32([1], [9]), [[1.0], [2.0]], 1e-6, where=np.array([True, True]))
    rejected(compare.assert_close, f32([1], [9]), [[1.0], [2.0]], 1e-6, where=np.array([True]))


def test_rows_close():
    got, want = f32(*([[1.0]] * 20)), np.ones((20, 1))
    margin = np.full(20, 1.0)
    compare.assert_rows_close(got, want, 1e-6, margin)
    got[0], margin[0] = 5.0, 0.0  # one row of twenty hangs on a tie
    compare.assert_rows_close(got, want, 1e-6, margin)
    margin[0] = 1.0
    rejected(compare.assert_rows_close, got, want, 1e-6, margin)
    rejected(compare.assert_rows_close, f32([1]), [[1.0]], 1e-6, np.zeros(1))  # nothing left to compare


def test_same_bits():
    compare.assert_same_bits(f32(1, NAN), f32(1, NAN))
    rejected(compare.assert_same_bits, f32(0.0), f32(-0.0))
    rejected(compare.assert_same_bits, f32(1), np.nextafter(f32(1), f32(2)))
    rejected(compare.assert_same_bits, f32(1), np.array([1.0]))
    rejected(compare.assert_same_bits, f32(1), f32(1)[None])


def test_same_partition():
    compare.assert_same_partition([0, 0, 1, -1], [5, 5, 2, -1])
    rejected(compare.assert_same_partition, [0, 1], [0, 0])
    rejected(compare.assert_same_partition, [0, 0], [0, 1])
    rejected(compare.assert_same_partition, [0, 1, -1], [0, 1, 2])
    rejected(compare.assert_same_partition, [0, 1, 2], [0, 1, -1])
    rejected(compare.assert_same_partition, [[0, 1], [0, 0]], [[0, 1], [0, 1]])
    rejected(compare.assert_same_partition, [0, 1], [0, 1, 2])
    compare.assert_same_partition([[0, 1], [0, 1]], [[0, 1], [1, 0]])  # each row numbers its own clusters


def test_same_topk():
    logits = [3.0, 1.0, 2.0, 2.0, 0.0]
    compare.assert_same_topk([0, 2], logits, 2)
    compare.assert_same_topk([3, 0], logits, 2)  # a tie, in another order
    compare.assert_same_topk([0, 1, 2, 3, 4, -1], logits, 6)
    rejected(compare.assert_same_topk, [0, 1], logits, 2)
    rejected(compare.assert_same_topk, [2, 3], logits, 2)  # the largest is missing
    rejected(compare.assert_same_topk, [0, 0], logits, 2)
    rejected(compare.assert_same_topk, [0, -1], logits, 2)
    rejected(compare.assert_same_topk, [0, 2, 3], logits, 2)
    rejected(compare.assert_same_topk, [0, 7], logits, 2)
    rejected(compare.assert_same_topk, [0, -2], logits, 2)
    rejected(compare.assert_same_topk, [0, 1], [1.0, 1.0 - 1e-6, 1.0], 2)
    compare.assert_same_topk([0, 1], [1.0, 1.0 - 1e-6, 1.0], 2, tie=1e-5)


def test_sorted_by_label():
    labels, rows = [1, 0, 1], [4, 6, 9]
    compare.assert_sorted_by_label([6, 4, 9], [0, 1, 3], labels, rows)
    compare.assert_sorted_by_label([6, 4, 9], [7, 8, 10], labels, rows)
    compare.assert_sorted_by_label([6, 4, 9], [0, 1, 3, 3], labels, rows)
    rejected(compare.assert_sorted_by_label, [6, 9, 4], [0, 1, 3], labels, rows)
    rejected(compare.assert_sorted_by_label, [4, 6, 9], [0, 1, 3], labels, rows)
    rejected(compare.assert_sorted_by_label, [6, 4, 9], [0, 2, 3], labels, rows)
    rejected(compare.assert_sorted_by_label, [6, 4], [0, 1, 2], labels, rows)
