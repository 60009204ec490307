"""Warped images are where their homography says."""

import numpy as np
import pytest

from bench.tasks import photographs

RNG = np.random.default_rng(0)


def blobs(places, width=96, height=64):
    """Smooth spots at places (N, 2), (height, width, 3)."""
    y, x = np.mgrid[:height, :width]
    spots = sum(np.exp(-((x - a) ** 2 + (y - b) ** 2) / 8) for a, b in places)
    return np.repeat((200 * spots)[..., None], 3, -1)


def test_corners_go_where_they_should():
    corners, moved = np.array([[0, 0], [9, 0], [9, 5], [0, 5]], float), RNG.uniform(0, 9, (4, 2))
    homography = photographs.homography_of(corners, moved)
    np.testing.assert_allclose(photographs.project(homography, corners), moved, atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_random_homographies_move_corners_by_their_share(seed):
    homography = photographs.random_homography(640, 480, 0.1, np.random.default_rng(seed))
    corners = np.array([[0, 0], [639, 0], [639, 479], [0, 479]], float)
    moved = np.abs(photographs.project(homography, corners) - corners) / [639, 479]
    assert 0.001 < moved.max() <= 0.1 + 1e-9
    points = RNG.uniform(0, 400, (20, 2))
    there = photographs.project(homography, points)
    np.testing.assert_allclose(photographs.project(np.linalg.inv(homography), there), points, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_a_spot_is_warped_to_its_place(seed):
    place = np.array([[50.0, 30.0]])
    homography = photographs.random_homography(96, 64, 0.12, np.random.default_rng(seed))
    gray = photographs.warped(blobs(place), homography)[..., 0]
    y, x = np.mgrid[:64, :96]
    centre = np.array([(x * gray).sum(), (y * gray).sum()]) / gray.sum()
    np.testing.assert_allclose(centre, photographs.project(homography, place)[0], atol=0.15)


def test_a_shift_by_whole_pixels_is_a_shift():
    pixels = blobs(RNG.uniform(10, 50, (5, 2)))
    shift = np.array([[1, 0, 3], [0, 1, 2], [0, 0, 1]], float)
    found = photographs.warped(pixels, shift)
    np.testing.assert_allclose(found[2:, 3:], pixels[:-2, :-3], atol=0.01)
    assert not found[:2].any()


def test_exposure_and_noise():
    pixels = np.full((200, 200, 3), 100.0)
    found = photographs.degraded(pixels, 5.0, 0.8, 1.2, np.random.default_rng(0))
    assert found.dtype == np.uint8
    assert abs(found.mean() - 255 * 0.8 * (100 / 255) ** 1.2) < 0.1
    assert abs(found.std() - 5) < 0.1


def test_images_are_cut_to_what_the_extractor_takes(tmp_path):
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "x.png"
    image.fromarray(np.arange(70 * 40, dtype=np.uint8).reshape(40, 70)).save(path)
    assert photographs.image(path).shape == (32, 64, 3)
    assert photographs.image(path, (140, 100)).shape == (96, 128, 3)


def test_opencv_matrices(tmp_path):
    path = tmp_path / "h.xml"
    path.write_text("<H><rows>2</rows><cols>3</cols><dt>d</dt><data>\n 1. 2.5e-1\n -3 4 5 6</data></H>")
    assert photographs.opencv_matrix(path).tolist() == [[1, 0.25, -3], [4, 5, 6]]
