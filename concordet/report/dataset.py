"""The page of a data set: tables of counts and sizes, faults, and sample images with their boxes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from concordet.report.draw import class_color, draw_detections
from concordet.report.page import data_uri, fit, render, write_page

FAULTS_SHOWN: Final = 200
"""Faults on the page; the JSON report has more."""


@dataclass(frozen=True)
class Photograph:
    """One of the sample images.

    Attributes:
        name: File name.
        split: Split of the data set.
        image: Picture, not resized.
        boxes: ``[n, 4]`` xyxy in its pixels.
        labels: ``[n]`` 1..C.
    """

    name: str
    split: str
    image: Image.Image
    boxes: np.ndarray
    labels: np.ndarray


def write_dataset(
    title: str,
    sentence: str,
    report: dict[str, Any],
    photographs: Iterable[Photograph],
    class_names: Sequence[str],
    out: str | Path,
) -> Path:
    """Writes the page of a data set.

    Args:
        title: Name of the data set.
        sentence: Summary at the top: format, numbers of images and classes.
        report: Result of :func:`concordet.data.statistics.dataset_statistics`.
        photographs: Sample images.
        class_names: Names by label.
        out: HTML file.

    Returns:
        The file.

    Raises:
        ValueError: The file cannot be written.
    """
    pictures = []
    for photograph in photographs:
        image, factor = fit(photograph.image)
        drawn = draw_detections(image, photograph.boxes * factor, photograph.labels, None, class_names)
        number = len(photograph.boxes)
        pictures.append(
            {
                "uri": data_uri(drawn),
                "name": photograph.name,
                "split": photograph.split,
                "count": f"{number} object{'s' * (number != 1)}",
            }
        )
    splits = report["splits"]
    names = list(dict.fromkeys(name for split in splits.values() for name in split["classes"]))
    colors = {name: class_color(label) for label, name in enumerate(class_names, start=1)}
    classes = [
        {
            "name": name,
            "color": colors.get(name, "#888888"),
            "counts": [split["classes"].get(name, 0) for split in splits.values()],
        }
        for name in names
    ]
    text = render(
        "dataset.html.jinja",
        title=title,
        sentence=sentence,
        splits=splits,
        classes=classes,
        faults=report["faults"][:FAULTS_SHOWN],
        n_faults=len(report["faults"]),
        pictures=pictures,
    )
    return write_page(text, Path(out))
