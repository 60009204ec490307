"""Data of the examples: the labels are right, the shapes are what they are called, a seed gives the same again."""

import doctest
import itertools
import statistics

import numpy as np
import pytest
from scipy.spatial import ConvexHull

from pyclattn_export.examples.data import listops, pixels, point_clouds, tokens

# -- ListOps ----------------------------------------------------------------------------------------------------------


def parse(expression):
    """An expression as nested lists, by recursion; what is left of it."""
    head, *rest = expression
    if head not in listops.OPERATORS:
        return int(head), rest
    arguments = []
    while rest[0] != "]":
        argument, rest = parse(rest)
        arguments.append(argument)
    return [head, *arguments], rest[1:]


def value(tree):
    if isinstance(tree, int):
        return tree
    functions = {
        "[MIN": min,
        "[MAX": max,
        "[SM": lambda values: sum(values) % 10,
        "[MED": lambda values: int(statistics.median(values)),
    }
    return functions[tree[0]]([value(argument) for argument in tree[1:]])


def depth(tree):
    return 0 if isinstance(tree, int) else 1 + max(depth(argument) for argument in tree[1:])


def lists(tree):
    return [] if isinstance(tree, int) else [tree, *itertools.chain(*map(lists, tree[1:]))]


@pytest.mark.parametrize(("kind", "n"), [(listops.SHORT, 200), (listops.LONG_RANGE_ARENA, 12)], ids=["short", "arena"])
def test_listops_are_what_long_range_arena_says(kind, n):
    ids, padding, labels = listops.generate(n, 5, kind)
    assert ids.shape == padding.shape == (n, kind.longest)
    assert not ids[padding].any()
    for row, padded, label in zip(ids, padding, labels):
        expression = [listops.VOCABULARY[token] for token in row[~padded]]
        assert kind.shortest <= len(expression) <= kind.longest
        assert not padded[: len(expression)].any()
        tree, left = parse(expression)
        assert left == []
        assert value(tree) == label == listops.evaluate(expression)
        assert depth(tree) < kind.max_depth
        assert all(2 <= len(each) - 1 <= kind.max_args for each in lists(tree))


def test_every_operator_and_answer_occurs():
    ids, _, labels = listops.generate(200, 1)
    assert set(np.unique(ids)) == set(range(len(listops.VOCABULARY)))
    assert set(labels.tolist()) == set(range(10))


def test_a_list_that_is_not_closed_has_no_value():
    with pytest.raises(ValueError, match="not closed"):
        listops.evaluate(["[MAX", "1", "2"])


# -- pixels -----------------------------------------------------------------------------------------------------------


def test_images_are_interpolated_between_pixels():
    ramp = np.broadcast_to(np.arange(8) * 2, (1, 8, 8))
    np.testing.assert_allclose(pixels.sequences(ramp).reshape(32, 32)[5, 2:-2], np.arange(28) / 32 + 1 / 64, atol=1e-6)


def test_images_move_and_leave_nothing_behind():
    images = np.random.default_rng(0).integers(1, 17, (3, 8, 8))
    still = pixels.sequences(images).reshape(3, 32, 32)
    moved = pixels.sequences(images, np.array([[2, -1], [0, 0], [-3, 3]])).reshape(3, 32, 32)
    np.testing.assert_array_equal(moved[0, 2:, :-1], still[0, :-2, 1:])
    assert not moved[0, :2].any()
    assert not moved[0, :, -1].any()
    np.testing.assert_array_equal(moved[1], still[1])
    np.testing.assert_array_equal(moved[2, :-3, 3:], still[2, 3:, :-3])


def test_images_are_split_in_two():
    train, test = pixels.split()
    assert len(test) == pixels.N_TEST
    assert sorted([*train, *test]) == list(range(1797))


# -- point clouds -----------------------------------------------------------------------------------------------------


def test_rotations_are_rotations():
    rng = np.random.default_rng(0)
    for _ in range(20):
        turn = point_clouds.rotation(rng)
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(turn) == pytest.approx(1)


def cone(x):
    """Distances from the bottom and from the side, whose height any point above the bottom tells."""
    radius = np.hypot(x[:, 0], x[:, 1])
    top = x[:, 2].argmax()
    return [x[:, 2], x[:, 2] - x[top, 2] * (1 - radius) / (1 - radius[top])]


SURFACES = {  # every point of a solid fulfils one of these
    "cone": cone,
    "cylinder": lambda x: [np.hypot(*x[:, :2].T) - 1, x[:, 2], x[:, 2] - x[:, 2].max()],
    "capsule": lambda x: [
        np.hypot(*x[:, :2].T) - 1,
        (x**2).sum(1) - 1,
        (x[:, :2] ** 2).sum(1) + (x[:, 2] - (x[:, 2].max() - 1)) ** 2 - 1,
    ],
    "half_ball": lambda x: [x[:, 2], np.hypot(*x[:, :2].T) ** 2 + (x[:, 2] / x[:, 2].max()) ** 2 - 1],
    "octahedron": lambda x: [np.abs(x / np.abs(x).max(0)).sum(1) - 1],
    "box": lambda x: list((np.abs(x) / np.abs(x).max(0) - 1).T),
    "ellipsoid": lambda x: [((x / np.abs(x).max(0)) ** 2).sum(1) - 1],
}


@pytest.mark.parametrize("family", SURFACES)
def test_points_lie_on_their_solid(family):
    x = point_clouds.FAMILIES[family](np.random.default_rng(3), 4000)
    assert x.shape == (4000, 3)
    distances = np.abs(SURFACES[family](x)).min(0)
    assert distances.max() < 0.05  # the solid's proportions are read off its outermost points


def test_a_torus_has_points_in_proportion_to_its_area():
    x = point_clouds.torus(np.random.default_rng(0), 20_000)
    distance = np.hypot(x[:, 0], x[:, 1])
    radius = x[:, 2].max()
    np.testing.assert_allclose((distance - 1) ** 2 + x[:, 2] ** 2, radius**2, rtol=1e-2)
    # Pappus: the outer half of the tube has 1/2 + radius / pi of the area
    assert (distance > 1).mean() == pytest.approx(0.5 + radius / np.pi, abs=0.02)


@pytest.mark.parametrize("family", ["pyramid", "prism"])
def test_points_lie_on_all_sides_of_a_solid_of_triangles(family):
    """On its convex hull, and as many on one side of the axis as on the other: no side is missing."""
    x = point_clouds.FAMILIES[family](np.random.default_rng(1), 20_000)
    planes = ConvexHull(x).equations
    assert (np.abs(x @ planes[:, :3].T + planes[:, 3]).min(1) < 2e-2).all()
    np.testing.assert_allclose(x[:, :2].mean(0), 0, atol=0.02)


def test_clouds_are_centred_and_of_all_families():
    points, labels = point_clouds.generate(30, 200, seed=4)
    assert points.dtype == np.float32
    np.testing.assert_allclose(points.mean(1), 0, atol=1e-6)
    size = np.sqrt((points**2).sum(2).mean(1))
    assert size.min() > 0.65
    assert size.max() < 1.5
    assert sorted(labels) == sorted([*range(10)] * 3)


# -- tokens -----------------------------------------------------------------------------------------------------------


def test_the_label_is_the_word_planted_most():
    letters, labels = tokens.generate(60, seed=7)
    known = tokens.words()
    slots = letters.reshape(len(letters), -1, tokens.WORD)
    agreeing = (slots[:, :, None] == known).sum(-1)  # (sequences, slots, words)
    counts = (agreeing >= tokens.WORD - 3).sum(1)
    np.testing.assert_array_equal(counts.argmax(1), labels)
    assert counts.sum(1).mean() == pytest.approx(tokens.OFTEN + tokens.N_OTHERS * tokens.SELDOM, rel=0.1)


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: listops.generate(5, seed)[0],
        lambda seed: point_clouds.generate(5, 20, seed)[0],
        lambda seed: tokens.generate(5, seed)[0],
    ],
    ids=["listops", "point_clouds", "tokens"],
)
def test_a_seed_gives_the_same_again(make):
    np.testing.assert_array_equal(make(11), make(11))
    assert (make(11) != make(12)).any()


@pytest.mark.parametrize("module", [listops, pixels, point_clouds, tokens], ids=lambda module: module.__name__)
def test_examples_in_docstrings(module):
    found = doctest.testmod(module)
    assert found.attempted
    assert found.failed == 0
