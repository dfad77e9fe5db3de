"""The parts of a scene's drawing against SciPy and scalar arithmetic."""

import math

import numpy as np
import pytest
from scipy import ndimage

from concordet.data.digits import scenes
from concordet.data.digits.scenes import Draws, handwritten_digits


def catmull_rom(values, at):
    """The cubic through four neighbors with their mean slopes, as in Catmull and Rom 1974."""
    low = math.floor(at)
    t = at - low
    p = [values[i] if 0 <= i < len(values) else 0.0 for i in range(low - 1, low + 3)]
    slope0, slope1 = (p[2] - p[0]) / 2, (p[3] - p[1]) / 2
    return (
        (2 * t**3 - 3 * t**2 + 1) * p[1]
        + (t**3 - 2 * t**2 + t) * slope0
        + (-2 * t**3 + 3 * t**2) * p[2]
        + (t**3 - t**2) * slope1
    )


def test_interpolation_is_catmull_rom():
    rows = np.random.default_rng(0).random((1, 3, 12)).astype(np.float32)
    result = scenes._interpolate(rows)
    expected = [[catmull_rom(row, (i + 0.5) / 4 - 0.5) for i in range(48)] for row in rows[0].tolist()]
    np.testing.assert_allclose(result[0], expected, atol=1e-6)


def test_sampling_is_bilinear():
    random = np.random.default_rng(1)
    grid = random.random((48, 48)).astype(np.float32)
    x, y = (random.uniform(0, 46.9, (9, 11)).astype(np.float32) for _ in range(2))
    np.testing.assert_allclose(scenes._sample(grid, x, y), ndimage.map_coordinates(grid, [y, x], order=1), atol=1e-5)


def test_interpolated_digits_keep_their_ink():
    from sklearn.datasets import load_digits

    ink, numerals = handwritten_digits()
    np.testing.assert_array_equal(numerals, load_digits().target)
    images = load_digits().images / 16
    np.testing.assert_allclose(ink.sum((1, 2)) / 16, images.sum((1, 2)), rtol=1e-5)
    blocks = ink[:, 8:-8, 8:-8].reshape(1797, 8, 4, 8, 4).mean((2, 4))
    assert min(np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(blocks, images, strict=True)) > 0.97


def test_rotation_is_one_within_its_limit():
    draws = Draws(5)
    angles = []
    for _ in range(500):
        cos, sin = scenes._rotation(draws, 0.13)
        assert cos * cos + sin * sin == pytest.approx(1)
        angles.append(math.degrees(math.atan2(sin, cos)))
    assert max(map(abs, angles)) <= math.degrees(2 * math.atan(0.13))
    assert abs(np.mean(angles)) < 1.5


def test_numbers_are_uniform():
    draws = Draws(1, 2, 3)
    numbers = np.array([draws.uniform(2, 5) for _ in range(4000)])
    assert 2 <= numbers.min() < 2.01 < 4.99 < numbers.max() < 5
    assert np.bincount([draws.below(4) for _ in range(4000)]).min() > 900
    noise = draws.noise((3, 50, 50))
    assert noise.min() == -0.5
    assert noise.max() == 0.5
    assert abs(noise.mean()) < 0.02
    assert Draws(1, 2, 3).uniform() == Draws(1, 2, 3).uniform() != Draws(1, 2, 4).uniform()


def test_a_mask_that_hides_more_than_a_third_is_refused():
    ink = np.zeros((1, 48, 48), bool)
    ink[0, 10:20, 10:30] = True
    hidden = np.zeros_like(ink)
    hidden[0, 10:20, 10:14] = True
    mask = np.zeros((48, 48), bool)
    mask[10:20, 12:17] = True
    assert not scenes._hides_too_much(mask, hidden, ink)
    mask[10, 17] = True
    assert scenes._hides_too_much(mask, hidden, ink)
    assert not scenes._hides_too_much(mask, hidden[:0], ink[:0])
