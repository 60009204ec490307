"""Points on the surfaces of ten families of solids, turned, scaled and shaken at random.

Each solid has proportions of its own; the label is the family.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

NOISE = 0.02  # of the solid's size
Rng = np.random.Generator


def generate(n: int, n_points: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Clouds and their families.

    Parameters
    ----------
    n, n_points : int
        Clouds, and points of each.
    seed : int

    Returns
    -------
    points : float32 array (n, n_points, 3)
        Their mean is 0.
    labels : int64 array (n,)
        Places in `FAMILIES`.

    Examples
    --------
    >>> points, labels = generate(20, 64, seed=0)
    >>> points.shape, [list(FAMILIES)[label] for label in labels[:3]]
    ((20, 64, 3), ['ellipsoid', 'box', 'cylinder'])
    """
    rng = np.random.default_rng(seed)
    families = list(FAMILIES.values())
    labels = np.arange(n) % len(families)
    points = np.empty((n, n_points, 3), np.float32)
    for row, label in enumerate(labels):
        solid = families[label](rng, n_points)
        solid = solid - solid.mean(0)
        solid = solid / np.sqrt((solid**2).sum(1).mean()) + NOISE * rng.standard_normal(solid.shape)
        points[row] = rng.uniform(0.7, 1.4) * solid @ rotation(rng).T
    return points - points.mean(1, keepdims=True), labels


def rotation(rng: Rng) -> np.ndarray:
    """One of all rotations, each as likely: (3, 3)."""
    w, x, y, z = (q := rng.standard_normal(4)) / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


# -- surfaces ---------------------------------------------------------------------------------------------------------


def _directions(rng: Rng, n: int) -> np.ndarray:
    x = rng.standard_normal((n, 3))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def _disc(rng: Rng, n: int) -> np.ndarray:
    """Points of the unit disc at height 0."""
    radius, angle = np.sqrt(rng.random(n)), rng.uniform(0, 2 * np.pi, n)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), np.zeros(n)], 1)


def _of_parts(rng: Rng, n: int, areas: list[float]) -> list[int]:
    """How many of n points fall on each part of a surface."""
    return list(rng.multinomial(n, np.array(areas) / sum(areas)))


def _wall(rng: Rng, n: int, height: float) -> np.ndarray:
    """Points of a cylinder's side, 0 to height."""
    angle = rng.uniform(0, 2 * np.pi, n)
    return np.stack([np.cos(angle), np.sin(angle), rng.uniform(0, height, n)], 1)


def _triangles(rng: Rng, n: int, corners: np.ndarray, faces: list[tuple[int, int, int]]) -> np.ndarray:
    """Points of a surface of triangles."""
    a, b, c = (corners[list(each)] for each in zip(*faces))
    areas = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    chosen = rng.choice(len(faces), n, p=areas / areas.sum())
    s, t = np.sqrt(rng.random((n, 1))), rng.random((n, 1))
    return (1 - s) * a[chosen] + s * (1 - t) * b[chosen] + s * t * c[chosen]


def ellipsoid(rng: Rng, n: int) -> np.ndarray:
    return _directions(rng, n) * rng.uniform(0.8, 1.2, 3)


def box(rng: Rng, n: int) -> np.ndarray:
    x = rng.uniform(-1, 1, (n, 3))
    sides = rng.uniform(0.7, 1.3, 3)
    axis = rng.choice(3, n, p=1 / sides / (1 / sides).sum())  # a face's area goes with the product of the others
    x[np.arange(n), axis] = np.sign(x[np.arange(n), axis])
    return x * sides


def cylinder(rng: Rng, n: int) -> np.ndarray:
    height = rng.uniform(1.5, 3)
    side, top, bottom = _of_parts(rng, n, [2 * height, 1, 1])
    return np.concatenate([_wall(rng, side, height), _disc(rng, top) + [0, 0, height], _disc(rng, bottom)])


def cone(rng: Rng, n: int) -> np.ndarray:
    height = rng.uniform(1.5, 3)
    side, bottom = _of_parts(rng, n, [np.hypot(1, height), 1])
    x = _disc(rng, side)
    x[:, 2] = height * (1 - np.hypot(x[:, 0], x[:, 1]))
    return np.concatenate([x, _disc(rng, bottom)])


def torus(rng: Rng, n: int) -> np.ndarray:
    radius = rng.uniform(0.25, 0.5)
    around, angle = rng.uniform(0, 2 * np.pi, (2, 4 * n))
    kept = rng.random(4 * n) * (1 + radius) < 1 + radius * np.cos(angle)  # the outer side has more area
    around, angle = around[kept][:n], angle[kept][:n]
    distance = 1 + radius * np.cos(angle)
    return np.stack([distance * np.cos(around), distance * np.sin(around), radius * np.sin(angle)], 1)


def pyramid(rng: Rng, n: int) -> np.ndarray:
    corners = np.array([[1, 1, 0], [-1, 1, 0], [-1, -1, 0], [1, -1, 0], [0, 0, rng.uniform(1.2, 2.4)]])
    return _triangles(rng, n, corners, [(0, 1, 4), (1, 2, 4), (2, 3, 4), (3, 0, 4), (0, 1, 2), (0, 2, 3)])


def prism(rng: Rng, n: int) -> np.ndarray:
    angle, height = 2 * np.pi * np.arange(3) / 3, rng.uniform(1.2, 2.4)
    base = np.stack([np.cos(angle), np.sin(angle), np.zeros(3)], 1)
    faces = [(0, 1, 2), (3, 4, 5)]
    for i, j in ((0, 1), (1, 2), (2, 0)):
        faces += [(i, j, i + 3), (j, j + 3, i + 3)]
    return _triangles(rng, n, np.concatenate([base, base + [0, 0, height]]), faces)


def octahedron(rng: Rng, n: int) -> np.ndarray:
    corners = np.concatenate([np.eye(3), -np.eye(3)]) * np.tile(rng.uniform(0.8, 1.2, 3), 2)[:, None]
    return _triangles(rng, n, corners, [(x, y, z) for x in (0, 3) for y in (1, 4) for z in (2, 5)])


def capsule(rng: Rng, n: int) -> np.ndarray:
    height = rng.uniform(1, 2.5)
    side, ends = _of_parts(rng, n, [height, 2])
    balls = _directions(rng, ends)
    balls[:, 2] += np.where(balls[:, 2] > 0, height, 0)
    return np.concatenate([_wall(rng, side, height), balls])


def half_ball(rng: Rng, n: int) -> np.ndarray:
    cap, bottom = _of_parts(rng, n, [2, 1])
    x = _directions(rng, cap)
    x[:, 2] = np.abs(x[:, 2])
    return np.concatenate([x, _disc(rng, bottom)]) * [1, 1, rng.uniform(0.8, 1.2)]


_ALL = (ellipsoid, box, cylinder, cone, torus, pyramid, prism, octahedron, capsule, half_ball)
FAMILIES: dict[str, Callable[[Rng, int], np.ndarray]] = {family.__name__: family for family in _ALL}
N_CLASSES = len(FAMILIES)
