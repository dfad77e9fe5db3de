"""Drawing of digit scenes, with additions, multiplications, divisions and square roots only.

IEEE 754 fixes those to the last bit, while sines, exponentials, matrix products and image resamplers differ between
processors and library versions. Random numbers come from the raw words of a bit generator, whose stream NumPy
guarantees. A scene is therefore the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

SMALLEST_DIGIT: Final = 18
"""Height in pixels of the smallest cell of a digit; below it the classes cannot be told apart."""

_MARGIN = 2  # empty cells around the 8 x 8 digit
_SAMPLES = 4  # samples of the interpolated digit per original pixel
_SIDE = (8 + 2 * _MARGIN) * _SAMPLES
_MAX_HIDDEN = 0.35  # of a digit's ink, by later digits and clutter together
_MAX_OVERLAP = 0.45  # of the smaller of two boxes
_TRIES = 12


@dataclass(frozen=True)
class Scene:
    """One drawn scene with n digits.

    Attributes:
        image: ``[3, size, size]`` uint8.
        boxes: ``[n, 4]`` float32 xyxy pixels, tight around each digit's ink within the image, occluded or not.
        digits: ``[n]`` int64 numerals 0..9.
        sources: ``[n]`` int64 index of each digit's image in scikit-learn's data set.
        ink: ``[n, size, size]`` bool, each digit's ink, occluded or not.
    """

    image: NDArray[np.uint8]
    boxes: Array
    digits: NDArray[np.int64]
    sources: NDArray[np.int64]
    ink: Mask


@dataclass(frozen=True)
class _Patch:
    """Opacity of something to draw, and the position of its upper left pixel in the scene."""

    alpha: Array  # [h, w] in 0..1
    left: int
    top: int


class Draws:
    """Random numbers that are the same on every machine and with every version of NumPy."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(key))
        self._pool: list[float] = []

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number in [low, high)."""
        if not self._pool:
            self._pool = ((self._bits.random_raw(256) >> np.uint64(11)) * 2.0**-53).tolist()
        return low + (high - low) * self._pool.pop()

    def below(self, n: int) -> int:
        """An integer in 0..n-1."""
        return int(self.uniform() * n)

    def noise(self, shape: tuple[int, ...]) -> Array:
        """Independent numbers in [-0.5, 0.5] of 256 levels."""
        count = int(np.prod(shape))
        words = self._bits.random_raw((count + 7) // 8).astype("<u8")
        values = words.view(np.uint8)[:count].reshape(shape).astype(np.float32)
        return values * np.float32(1 / 255) - np.float32(0.5)


@lru_cache(maxsize=1)
def handwritten_digits() -> tuple[Array, NDArray[np.int64]]:
    """The 1797 digits of scikit-learn, interpolated: ``[1797, 48, 48]`` ink in about 0..1, and ``[1797]`` numerals."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "digit scenes need scikit-learn's handwritten digits: pip install 'concordet[train]'"
        ) from error
    images, numerals = load_digits(return_X_y=True)
    ink = np.zeros((len(images), 8 + 2 * _MARGIN, 8 + 2 * _MARGIN), np.float32)
    ink[:, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN] = images.reshape(-1, 8, 8) / 16
    ink = _interpolate(_interpolate(ink).transpose(0, 2, 1)).transpose(0, 2, 1)
    return np.ascontiguousarray(ink), numerals.astype(np.int64)


@lru_cache(maxsize=1)
def split_digits() -> dict[str, list[NDArray[np.int64]]]:
    """Indices of each split's digit images, per numeral: every fourth image of a numeral is for validation."""
    _, numerals = handwritten_digits()
    train, val = [], []
    for numeral in range(10):
        indices = np.flatnonzero(numerals == numeral)
        held_out = np.arange(len(indices)) % 4 == 3
        train.append(indices[~held_out])
        val.append(indices[held_out])
    return {"train": train, "val": val}


def draw_scene(draws: Draws, sources: list[NDArray[np.int64]], size: int) -> Scene:
    """Draws one scene from the digit images in ``sources`` (one array of image indices per class).

    Example:
        >>> scene = draw_scene(Draws(0, 0, 0), split_digits()["train"], 128)
        >>> scene.image.shape, len(scene.boxes) == len(scene.digits)
        ((3, 128, 128), True)
    """
    _, numerals = handwritten_digits()
    canvas = _background(draws, size)
    level = float(canvas[:, ::8, ::8].min() + canvas[:, ::8, ::8].max()) / 2
    hidden = np.zeros((0, size, size), bool)
    ink = np.zeros((0, size, size), bool)
    for _ in range(draws.below(4)):
        _paint(canvas, _clutter(draws, size, sources, None), _color(draws, level))

    count = 0 if draws.uniform() < 0.02 else 1 + draws.below(6)
    boxes: list[tuple[int, int, int, int]] = []
    chosen: list[int] = []
    for _ in range(count):
        cls = draws.below(len(sources))
        source = int(sources[cls][draws.below(len(sources[cls]))])
        alpha = _digit(draws, source, size)
        for _ in range(_TRIES):
            placed = _place(draws, alpha, size)
            mask = _covers(placed, size)
            box = _extent(mask)
            if box is None or max((_overlap(box, other) for other in boxes), default=0.0) > _MAX_OVERLAP:
                continue
            if _hides_too_much(mask, hidden, ink):
                continue
            _paint(canvas, placed, _color(draws, level))
            hidden = np.concatenate([hidden | mask, np.zeros_like(mask)[None]])
            ink = np.concatenate([ink, mask[None]])
            boxes.append(box)
            chosen.append(source)
            break

    for _ in range(draws.below(2 + len(boxes) // 2)):
        near = boxes[draws.below(len(boxes))] if boxes and draws.uniform() < 0.6 else None
        patch = _clutter(draws, size, sources, near)
        mask = _covers(patch, size)
        if not _hides_too_much(mask, hidden, ink):
            hidden = hidden | mask
            _paint(canvas, patch, _color(draws, level))

    canvas += draws.noise(canvas.shape) * np.float32(draws.uniform(0.02, 0.15))
    image = (np.clip(canvas, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    images = np.array(chosen, np.int64)
    return Scene(image, np.array(boxes, np.float32).reshape(-1, 4), numerals[images], images, ink)


def _interpolate(rows: Array) -> Array:
    """Cubic (Catmull-Rom) interpolation along the last axis: ``[n, h, w] -> [n, h, w * _SAMPLES]``."""
    width = rows.shape[-1]
    padded = np.pad(rows, ((0, 0), (0, 0), (2, 2)))
    out = np.empty((*rows.shape[:-1], width, _SAMPLES), np.float32)
    for phase in range(_SAMPLES):
        t = (phase + 0.5) / _SAMPLES - 0.5  # offset from the pixel's center
        first, t = (1, t + 1) if t < 0 else (2, t)
        weights = (
            -0.5 * t + t * t - 0.5 * t * t * t,
            1 - 2.5 * t * t + 1.5 * t * t * t,
            0.5 * t + 2 * t * t - 1.5 * t * t * t,
            -0.5 * t * t + 0.5 * t * t * t,
        )
        taps = [padded[..., first - 1 + i : first - 1 + i + width] * np.float32(weights[i]) for i in range(4)]
        out[..., phase] = taps[0] + taps[1] + taps[2] + taps[3]
    return out.reshape(*rows.shape[:-1], width * _SAMPLES)


def _rotation(draws: Draws, half_tangent: float) -> tuple[float, float]:
    """Cosine and sine of an angle up to 2 atan(half_tangent) either way, without a trigonometric function."""
    t = draws.uniform(-half_tangent, half_tangent)
    return (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)


def _digit(draws: Draws, source: int, size: int) -> Array:
    """Opacity ``[h, w]`` of one digit at a random scale, aspect, rotation, stroke width and sharpness."""
    ink, _ = handwritten_digits()
    ratio = size / 2 / SMALLEST_DIGIT
    u = draws.uniform()
    # roughly uniform in the logarithm: small sizes are more frequent
    height = SMALLEST_DIGIT * (1 + (ratio - 1) * (0.35 * u + 0.65 * u * u))
    step_y = height / 8 / _SAMPLES  # pixels per sample
    step_x = step_y * draws.uniform(0.8, 1.25)
    cos, sin = _rotation(draws, 0.13)
    slant = draws.uniform(-0.2, 0.2)
    reach_x, reach_y = 5 * _SAMPLES * step_x, 4 * _SAMPLES * step_y
    half_w = int(abs(cos) * reach_x + abs(sin) * reach_y) + 1
    half_h = int(abs(sin) * reach_x + abs(cos) * reach_y) + 1
    dx = (np.arange(-half_w, half_w, dtype=np.float32) + np.float32(draws.uniform()))[None]
    dy = (np.arange(-half_h, half_h, dtype=np.float32) + np.float32(draws.uniform()))[:, None]
    v = (dy * np.float32(cos) - dx * np.float32(sin)) * np.float32(1 / step_y)
    u_ = (dx * np.float32(cos) + dy * np.float32(sin)) * np.float32(1 / step_x) + v * np.float32(slant)
    value = _sample(ink[source], u_ + np.float32((_SIDE - 1) / 2), v + np.float32((_SIDE - 1) / 2))
    threshold = draws.uniform(0.3, 0.62)  # higher is thinner
    soft = draws.uniform(0.25, 0.7) if draws.uniform() < 0.3 else draws.uniform(0.08, 0.25)
    alpha = (value - np.float32(threshold)) * np.float32(1 / soft) + np.float32(0.5)
    return np.clip(alpha, 0, 1, out=alpha)


def _sample(grid: Array, x: Array, y: Array) -> Array:
    """Bilinear interpolation of ``grid`` at ``x``, ``y``; 0 outside, because the grid's margin is empty."""
    x = np.clip(x, 0, _SIDE - 1.001)
    y = np.clip(y, 0, _SIDE - 1.001)
    left, top = x.astype(np.int32), y.astype(np.int32)
    fx, fy = x - left, y - top
    flat = grid.ravel()
    at = top * np.int32(_SIDE) + left
    upper = flat[at]
    upper = upper + (flat[at + 1] - upper) * fx
    lower = flat[at + _SIDE]
    lower = lower + (flat[at + _SIDE + 1] - lower) * fx
    return upper + (lower - upper) * fy


def _place(draws: Draws, alpha: Array, size: int) -> _Patch:
    """The digit at a random position, at most an eighth of its width or height outside the image."""
    box = _extent(alpha >= 0.5)
    if box is None:
        return _Patch(alpha, 0, 0)
    left, top, right, bottom = box
    over = 0.125 if draws.uniform() < 0.2 else 0.0
    spill_x, spill_y = over * (right - left), over * (bottom - top)
    x = draws.uniform(-spill_x, size - (right - left) + spill_x)
    y = draws.uniform(-spill_y, size - (bottom - top) + spill_y)
    return _Patch(alpha, int(x + size) - size - left, int(y + size) - size - top)


def _window(patch: _Patch, size: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The window of the scene that the patch covers, and the same window of the patch."""
    height, width = patch.alpha.shape
    x0, x1 = max(patch.left, 0), max(min(patch.left + width, size), 0)
    y0, y1 = max(patch.top, 0), max(min(patch.top + height, size), 0)
    scene = (slice(y0, max(y1, y0)), slice(x0, max(x1, x0)))
    return scene, (
        slice(y0 - patch.top, max(y1, y0) - patch.top),
        slice(x0 - patch.left, max(x1, x0) - patch.left),
    )


def _paint(canvas: Array, patch: _Patch, color: Array) -> None:
    """Blends ``color`` ``[3]`` into the canvas with the patch's opacity."""
    scene, inner = _window(patch, canvas.shape[-1])
    region = canvas[(slice(None), *scene)]
    region += patch.alpha[inner] * (color[:, None, None] - region)


def _covers(patch: _Patch, size: int) -> Mask:
    """``[size, size]`` True where the patch's opacity is at least one half."""
    mask = np.zeros((size, size), bool)
    scene, inner = _window(patch, size)
    mask[scene] = patch.alpha[inner] >= 0.5
    return mask


def _hides_too_much(mask: Mask, hidden: Mask, ink: Mask) -> bool:
    """Whether drawing ``mask`` over the scene would hide too much of a digit."""
    if not len(ink):
        return False
    hidden_ink = ((hidden | mask) & ink).sum((1, 2))
    return bool((hidden_ink > _MAX_HIDDEN * ink.sum((1, 2))).any())


def _extent(mask: Mask) -> tuple[int, int, int, int] | None:
    """xyxy of the true pixels, or None where there are too few to see."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if len(columns) < 2 or len(rows) < 4:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _overlap(box: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """Intersection over the smaller box."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    areas = ((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
    return max(width, 0) * max(height, 0) / min(areas)


def _background(draws: Draws, size: int) -> Array:
    """``[3, size, size]`` a smooth field of colors from a coarse random grid."""
    cells = 3 + draws.below(4)
    base, contrast, tint = draws.uniform(0.15, 0.45), draws.uniform(0.05, 0.3), draws.uniform(0.0, 0.25)
    shade = draws.noise((1, cells + 1, cells + 1)) * np.float32(contrast)
    grid = shade + draws.noise((3, cells + 1, cells + 1)) * np.float32(tint) + np.float32(base)
    at = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(cells / size)
    low = np.minimum(at.astype(np.int64), cells - 1)
    part = at - low
    rows = grid[:, low] + (grid[:, low + 1] - grid[:, low]) * part[:, None]
    return rows[:, :, low] + (rows[:, :, low + 1] - rows[:, :, low]) * part


def _color(draws: Draws, level: float) -> Array:
    """``[3]`` a color lighter than the background's level by 0.3 to 0.75."""
    gray = level + draws.uniform(0.3, 0.75)
    tint = [draws.uniform(-0.12, 0.12) for _ in range(3)]
    return np.array([min(max(gray + t, 0.0), 1.0) for t in tint], np.float32)


def _clutter(
    draws: Draws, size: int, sources: list[NDArray[np.int64]], near: tuple[int, int, int, int] | None
) -> _Patch:
    """A stroke, a blob or a fragment of a digit, none of them an object; on the edge of the box ``near``, if given."""
    if near is None:
        x, y = draws.uniform(0, size), draws.uniform(0, size)
    else:
        x, y = draws.uniform(near[0], near[2]), draws.uniform(near[1], near[3])
        side = draws.below(4)
        x, y = (near[0], y) if side == 0 else (near[2], y) if side == 1 else (x, near[1]) if side == 2 else (x, near[3])
    choice = draws.uniform()
    if choice < 0.45:
        return _stroke(draws, x, y, size)
    if choice < 0.65:
        return _blob(draws, x, y, size)
    return _fragment(draws, x, y, size, sources)


def _stroke(draws: Draws, x: float, y: float, size: int) -> _Patch:
    """A thin line of two straight segments that begins at (x, y)."""
    points = [(x, y)]
    for _ in range(2):
        last = points[-1]
        points.append((last[0] + draws.uniform(-0.2, 0.2) * size, last[1] + draws.uniform(-0.2, 0.2) * size))
    half = draws.uniform(0.5, 1.8)
    left, top = int(min(p[0] for p in points) - 4 + size) - size, int(min(p[1] for p in points) - 4 + size) - size
    right, bottom = int(max(p[0] for p in points)) + 4, int(max(p[1] for p in points)) + 4
    px = np.arange(left, right, dtype=np.float32)[None]
    py = np.arange(top, bottom, dtype=np.float32)[:, None]
    nearest = np.full((bottom - top, right - left), 1e9, np.float32)
    for (ax, ay), (bx, by) in pairwise(points):
        ex, ey = bx - ax, by - ay
        length = max(ex * ex + ey * ey, 1e-6)
        along = (px - np.float32(ax)) * np.float32(ex / length) + (py - np.float32(ay)) * np.float32(ey / length)
        along = np.clip(along, 0, 1)
        dx = px - np.float32(ax) - along * np.float32(ex)
        dy = py - np.float32(ay) - along * np.float32(ey)
        nearest = np.minimum(nearest, dx * dx + dy * dy)
    return _Patch(np.clip(np.float32(half + 0.5) - np.sqrt(nearest), 0, 1), left, top)


def _blob(draws: Draws, x: float, y: float, size: int) -> _Patch:
    """An ellipse with a soft rim, centered at (x, y)."""
    a, b = draws.uniform(0.02, 0.09) * size, draws.uniform(0.02, 0.09) * size
    cos, sin = _rotation(draws, 1.0)
    half = int(max(a, b)) + 2
    left, top = int(x) - half, int(y) - half
    dx = np.arange(-half, half + 1, dtype=np.float32)[None]
    dy = np.arange(-half, half + 1, dtype=np.float32)[:, None]
    u = (dx * np.float32(cos) + dy * np.float32(sin)) * np.float32(1 / a)
    v = (dy * np.float32(cos) - dx * np.float32(sin)) * np.float32(1 / b)
    return _Patch(np.clip((np.float32(1) - u * u - v * v) * np.float32(draws.uniform(1, 6)), 0, 1), left, top)


def _fragment(draws: Draws, x: float, y: float, size: int, sources: list[NDArray[np.int64]]) -> _Patch:
    """At most 45 % of a digit's ink, cut off by a straight line, centered at (x, y)."""
    cls = draws.below(len(sources))
    alpha = _digit(draws, int(sources[cls][draws.below(len(sources[cls]))]), size)
    height, width = alpha.shape
    cos, sin = _rotation(draws, 1.0)
    side = (np.arange(width, dtype=np.float32) - np.float32(width / 2))[None] * np.float32(cos) + (
        np.arange(height, dtype=np.float32) - np.float32(height / 2)
    )[:, None] * np.float32(sin)
    ink = alpha >= 0.5
    whole = max(int(ink.sum()), 1)
    offset = 0.0
    while int((ink & (side > offset)).sum()) > 0.45 * whole:
        offset += 1.0
    alpha *= side > np.float32(offset)
    return _Patch(alpha, int(x - width / 2 + size) - size, int(y - height / 2 + size) - size)
