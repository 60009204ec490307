"""Pairs of images of which every point's place in the other is known."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.tasks.fetch import ASTRONAUT, COFFEE, HUBBLE, WIDE_BASELINE, fetch
from bench.tasks.xfeat import MULTIPLE

# Public domain, each about a million pixels when enlarged to these (width, height).
PHOTOGRAPHS = {
    "astronaut": (ASTRONAUT, (1024, 1024)),
    "coffee": (COFFEE, (1248, 832)),
    "hubble": (HUBBLE, (1152, 992)),
}
WALL = "wall"
PAIRS = (WALL, *PHOTOGRAPHS)
# What makes the second image of a warped pair: corners moved by up to this share of a side, gray noise, exposure.
CORNERS, NOISE, GAIN, GAMMA = 0.16, 6.0, 0.8, 1.2


@dataclass(frozen=True)
class Pair:
    """Two images (height, width, 3) uint8, and the homography (3, 3) from x, y of the first to those of the second."""

    name: str
    first: np.ndarray
    second: np.ndarray
    homography: np.ndarray


def pair(name: str) -> Pair:
    """The wide-baseline pair ("wall"), or a photograph and its warped self."""
    if name == WALL:
        first, second, truth = fetch(*WIDE_BASELINE)
        return Pair(name, image(first), image(second), opencv_matrix(truth))
    file, size = PHOTOGRAPHS[name]
    first = image(fetch(file)[0], size)
    rng = np.random.default_rng(sum(name.encode()))
    height, width = first.shape[:2]
    homography = random_homography(width, height, CORNERS, rng)
    return Pair(name, first, degraded(warped(first, homography), NOISE, GAIN, GAMMA, rng), homography)


def image(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """An image file as (height, width, 3) uint8, enlarged to (width, height); sides are cut to multiples of 32."""
    from PIL import Image

    with Image.open(path) as opened:
        pixels = opened.convert("RGB")
    if size is not None:
        pixels = pixels.resize(size, Image.Resampling.BICUBIC)
    width, height = (n - n % MULTIPLE for n in pixels.size)
    return np.asarray(pixels)[:height, :width]


def opencv_matrix(path: Path) -> np.ndarray:
    """The matrix of an OpenCV XML file that has one."""
    text = path.read_text(encoding="utf-8")
    rows, columns = (int(re.search(rf"<{name}>\s*(\d+)", text)[1]) for name in ("rows", "cols"))
    return np.array(re.search(r"<data>(.*?)</data>", text, re.DOTALL)[1].split(), float).reshape(rows, columns)


# -- homographies -----------------------------------------------------------------------------------------------------


def homography_of(corners: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """The homography (3, 3) that takes four points (4, 2) to four others.

    Examples
    --------
    >>> square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
    >>> homography_of(square, 2 * square + 3).round(6) + 0
    array([[2., 0., 3.],
           [0., 2., 3.],
           [0., 0., 1.]])
    """
    rows, wanted = [], []
    for (x, y), (u, v) in zip(corners, moved):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        wanted += [u, v]
    return np.append(np.linalg.solve(rows, wanted), 1).reshape(3, 3)


def random_homography(width: int, height: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """One that moves each corner by up to ``share`` of the sides."""
    sides = np.array([width - 1, height - 1], float)
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * sides
    return homography_of(corners, corners + rng.uniform(-share, share, (4, 2)) * sides)


def project(homography: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Where points (N, 2) go."""
    x = np.column_stack([points, np.ones(len(points))]) @ homography.T
    return x[:, :2] / x[:, 2:]


def warped(pixels: np.ndarray, homography: np.ndarray) -> np.ndarray:
    """An image (height, width, 3) as the homography moves it, by cubic splines; black where nothing comes from."""
    from scipy.ndimage import map_coordinates

    height, width = pixels.shape[:2]
    y, x = np.mgrid[:height, :width]
    source = project(np.linalg.inv(homography), np.stack([x.ravel(), y.ravel()], 1))
    places = source[:, ::-1].T.reshape(2, height, width)
    channels = [map_coordinates(c, places, order=3) for c in np.moveaxis(pixels.astype(np.float32), -1, 0)]
    return np.clip(np.stack(channels, -1), 0, 255)


def degraded(pixels: np.ndarray, noise: float, gain: float, gamma: float, rng: np.random.Generator) -> np.ndarray:
    """Another exposure, ``255 gain (x / 255) ** gamma``, and Gaussian noise; as uint8."""
    exposed = 255 * gain * (pixels / 255) ** gamma
    return np.clip(np.rint(exposed + rng.normal(0, noise, pixels.shape)), 0, 255).astype(np.uint8)
