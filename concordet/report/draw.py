"""Draws detections on images, with colors that color-blind people can tell apart and labels that can be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from concordet.measures.reading.arrays import to_numpy

PALETTE: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#7f3c8d")
"""Okabe and Ito's colors, and one more; classes beyond the last color start again with the first."""

GROUND_TRUTH: Final = "#ffffff"

FALSE, MISSED = PALETTE[0], PALETTE[1]
"""Colors of false positives and of missed objects."""

MAX_LABELS: Final = 24
"""Largest number of labels in one picture; more would hide it."""


def class_color(label: int) -> str:
    """Color of a class, by its label 1..C; the same in every picture.

    Example:
        >>> class_color(1), class_color(9)
        ('#0072b2', '#0072b2')
    """
    return PALETTE[(label - 1) % len(PALETTE)]


def draw_detections(
    image: Image.Image,
    boxes: Any,
    labels: Any = None,
    scores: Any = None,
    class_names: Sequence[str] = (),
    *,
    ground_truth: Mapping[str, Any] | None = None,
    score_threshold: float = 0.3,
) -> Image.Image:
    """A copy of the image with detections drawn on it, and ground truth as white dashes.

    Widths of lines and sizes of letters are proportional to the image.

    Args:
        image: any mode; the result is RGB of the same size.
        boxes: ``[n, 4]`` xyxy in pixels, as array, tensor or list; or a detection mapping
            ``{"boxes", "labels", "scores"}`` as detectors return it, whose ``masks`` ``[n, 1, h, w]`` tint the image.
        labels: ``[n]`` 1..C.
        scores: ``[n]`` in [0, 1], or None to draw every box without a score.
        class_names: names of labels 1, 2, ...; labels beyond them are written as numbers.
        ground_truth: mapping with ``boxes [m, 4]`` and optionally ``labels [m]``.
        score_threshold: boxes with a lower score are left out.

    Returns:
        A new RGB image of the same size.

    Raises:
        ValueError: boxes, labels and scores differ in number.

    Example:
        >>> drawn = draw_detections(Image.new("L", (64, 48)), [[8, 8, 40, 40]], [1], [0.9], ["cell"])
        >>> drawn.mode, drawn.size
        ('RGB', (64, 48))
    """
    masks = None
    if isinstance(boxes, Mapping):
        masks = boxes.get("masks")
        boxes, labels, scores = boxes["boxes"], boxes.get("labels"), boxes.get("scores")
    corners = _array(boxes).reshape(-1, 4)
    numbers = _array(labels).astype(int) if labels is not None else np.ones(len(corners), int)
    confidences = None if scores is None else _array(scores)
    if len(numbers) != len(corners) or (confidences is not None and len(confidences) != len(corners)):
        raise ValueError(
            f"boxes, labels and scores must be equally many, got {len(corners)}, {len(numbers)} and "
            f"{'none' if confidences is None else len(confidences)}; give one label and one score per box"
        )
    drawn = image.convert("RGB")
    order = range(len(corners)) if confidences is None else np.argsort(confidences, kind="stable")
    kept = [i for i in order if confidences is None or confidences[i] >= score_threshold]
    if masks is not None:
        drawn = _tinted(drawn, masks, [(i, class_color(numbers[i])) for i in kept])
    pen = ImageDraw.Draw(drawn)
    width = max(1, round(min(drawn.size) / 160))
    font = ImageFont.load_default(size=max(9.0, min(drawn.size) / 23))
    if ground_truth is not None:
        for box in _array(ground_truth["boxes"]).reshape(-1, 4):
            _dashes(pen, drawn.size, box, width)
    for i in kept:
        pen.rectangle(_rectangle(corners[i]), outline=class_color(numbers[i]), width=width + (width > 1))
    taken: list[tuple[float, float, float, float]] = []
    for i in reversed(kept):  # after all boxes, so that none hides a label; the highest scores choose first
        text = _label_text(numbers[i], class_names, None if confidences is None else confidences[i])
        taken.append(_label(pen, drawn.size, corners[i], text, class_color(numbers[i]), font, taken))
    return drawn


def draw_errors(
    image: Image.Image,
    missed: Sequence[tuple[Sequence[float], str]],
    false: Sequence[tuple[Sequence[float], str]],
    right: Sequence[Sequence[float]],
) -> Image.Image:
    """A copy of the image with missed objects in one color, false positives in another, and right boxes as dashes.

    Args:
        image: Any mode; the result is RGB of the same size.
        missed: xyxy box in pixels and label of each missed object.
        false: xyxy box and label of each false positive, the most confident first.
        right: xyxy boxes of the true positives.
    """
    drawn = image.convert("RGB")
    pen = ImageDraw.Draw(drawn)
    width = max(1, round(min(drawn.size) / 160))
    font = ImageFont.load_default(size=max(9.0, min(drawn.size) / 23))
    for box in right:
        _dashes(pen, drawn.size, np.asarray(box, float), width)
    colored = [*((*each, FALSE) for each in false), *((*each, MISSED) for each in missed)]
    for box, _, color in colored:
        pen.rectangle(_rectangle(np.asarray(box, float)), outline=color, width=width + (width > 1))
    taken: list[tuple[float, float, float, float]] = []
    for box, text, color in colored[:MAX_LABELS]:
        taken.append(_label(pen, drawn.size, np.asarray(box, float), text, color, font, taken))
    return drawn


def _tinted(image: Image.Image, masks: Any, chosen: Sequence[tuple[int, str]]) -> Image.Image:
    """The image with the masks at these indices, above 0.5, in their colors; what is below them shows through."""
    pixels = np.asarray(image, dtype=float).copy()
    for index, color in chosen:
        inside = _array(masks[index])[0] > 0.5
        pixels[inside] = 0.55 * pixels[inside] + 0.45 * np.array(ImageColor.getrgb(color))
    return Image.fromarray(pixels.round().astype(np.uint8))


def _array(values: Any) -> np.ndarray:
    return np.asarray(to_numpy(values), dtype=float)


def _label_text(label: int, class_names: Sequence[str], score: float | None) -> str:
    name = class_names[label - 1] if 0 < label <= len(class_names) else str(label)
    return name if score is None else f"{name} {score_text(score)}"


def _rectangle(box: np.ndarray) -> list[float]:
    x1, y1, x2, y2 = (float(value) for value in box)
    return [min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)]


def _label(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    box: np.ndarray,
    text: str,
    color: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    taken: Sequence[tuple[float, float, float, float]],
) -> tuple[float, float, float, float]:
    """Writes a label at the first corner of its box where it fits and overlaps no other; returns its rectangle."""
    x1, y1, x2, y2 = _rectangle(box)
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    margin = max(1.0, (bottom - top) / 5)
    width, height = right - left + 2 * margin, bottom - top + 2 * margin
    corners = [(x1, y1 - height), (x1, y2), (x2 - width, y1 - height), (x2 - width, y2), (x1, y1), (x1, y2 - height)]
    positions = [_inside(x, y, width, height, size) for x, y in corners]
    free = [
        position
        for position, (_, y) in zip(positions, corners, strict=True)
        if abs(position[1] - y) < 1 and not any(_overlap(position, other) for other in taken)
    ]
    position = free[0] if free else positions[4]
    pen.rectangle(position, fill=color)
    pen.text((position[0] + margin - left, position[1] + margin - top), text, fill=_ink_on(color), font=font)
    return position


def _inside(
    x: float, y: float, width: float, height: float, size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """A label's rectangle, moved into the image."""
    x = min(max(0.0, x), max(0.0, size[0] - width))
    y = min(max(0.0, y), max(0.0, size[1] - height))
    return x, y, x + width, y + height


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _ink_on(color: str) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 120 else "#ffffff"


def _dashes(pen: ImageDraw.ImageDraw, size: tuple[int, int], box: np.ndarray, width: int) -> None:
    """Draws white dashes on a dark line, visible on bright and on dark images; sides far outside are moved closer."""
    x1, y1, x2, y2 = np.clip(_rectangle(box), -4.0 * width, [side + 4.0 * width for side in (*size, *size)]).tolist()
    pen.rectangle([x1, y1, x2, y2], outline="#202020", width=width)
    length = 4.0 * width
    for (ax, ay), (bx, by) in (
        ((x1, y1), (x2, y1)),
        ((x2, y1), (x2, y2)),
        ((x2, y2), (x1, y2)),
        ((x1, y2), (x1, y1)),
    ):
        whole = max(abs(bx - ax), abs(by - ay))
        for start in np.arange(0.0, whole, 2 * length):
            stop = min(start + length, whole)
            pen.line(
                [(ax + (bx - ax) * t / whole, ay + (by - ay) * t / whole) for t in (start, stop)],
                fill=GROUND_TRUTH,
                width=width,
            )


def score_text(score: float) -> str:
    """A score in two decimals, or two significant digits if it is low.

    Example:
        >>> score_text(0.5), score_text(0.0234), score_text(0.0001)
        ('0.50', '0.023', '<0.001')
    """
    if score < 0.001:
        return "<0.001"
    return f"{score:.2f}" if score >= 0.0995 else f"{score:.2g}"
