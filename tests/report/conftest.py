"""Run folders as `concordet train` leaves them, made in a moment, with boxes whose scores and IoUs are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.measures.reference import box_iou

CLASSES = ["disc", "box", "<ring> & co"]
SIZE = (160, 120)


def make_run(
    folder: Path,
    *,
    loss: str = "focal",
    seed: int = 0,
    spread: float = 0.1,
    metrics: dict[str, Any] | None = None,
    n_images: int = 24,
    lr: float = 0.01,
) -> Path:
    """Objects and images are those of seed 0; detections are the objects moved by ``spread`` of their size."""
    scenes, rng = np.random.default_rng(0), np.random.default_rng(seed + 1)
    (folder / "samples").mkdir(parents=True)
    truth: dict[str, Any] = {
        "images": [{"id": i, "width": SIZE[0], "height": SIZE[1], "file_name": f"{i}.png"} for i in range(n_images)],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
        "annotations": [],
    }
    detections: list[dict[str, Any]] = []
    scores, ious, image_ids, labels = [], [], [], []
    for i in range(n_images):
        picture = Image.new("RGB", SIZE, (70, 80, 90))
        for _ in range(3):
            side = scenes.uniform(24, 48)
            x, y = scenes.uniform(0, SIZE[0] - side), scenes.uniform(0, SIZE[1] - side)
            label = int(scenes.integers(1, 4))
            ImageDraw.Draw(picture).ellipse([x, y, x + side, y + side], fill=(200, 60 * label, 90))
            bbox = [x, y, side, side]
            truth["annotations"].append({"id": len(truth["annotations"]) + 1, "image_id": i, "category_id": label,
                                         "bbox": bbox, "area": side * side, "iscrowd": 0})  # fmt: skip
            for _ in range(2):
                moved = np.array(bbox) + rng.normal(0, spread * side, 4)
                moved[2:] = moved[2:].clip(min=4)
                iou = float(box_iou(bbox, moved))
                score = float(np.clip(0.3 + 0.5 * iou + rng.normal(0, 0.15), 0.01, 0.99))
                detections.append({"image_id": i, "category_id": label, "bbox": moved.tolist(), "score": score})
                scores.append(score), ious.append(iou), image_ids.append(i), labels.append(label)
        if i < 8:
            picture.save(folder / "samples" / f"{i}.png")
    values = {"AP": 0.412, "AP50": 0.71, "AP75": 0.43, "AP90": 0.12, "beta_img": 0.31, "beta_cls": 0.42, "oLRP": 0.66,
               "AIC": 12.0, "AIC_mean": 0.153, "seconds_per_iteration": 0.2104}  # fmt: skip
    per_class = [{"name": name, "AP": 0.3 + 0.05 * i + 0.01 * seed, "AP75": 0.4 - 0.1 * i, "oLRP": 0.6,
                  "beta_cls": None if i == 2 else 0.4, "lrp_threshold": 0.45}
                 for i, name in enumerate(CLASSES)]  # fmt: skip
    evaluation = {"metrics": values | (metrics or {}), "per_class": per_class, "loss": loss, "detector": "fcos",
                  "class_names": CLASSES, "environment": {"torch": "2.14.1", "device": "cpu"}}  # fmt: skip
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    (folder / "ground_truth.json").write_text(json.dumps(truth))
    (folder / "detections.json").write_text(json.dumps(detections))
    np.savez(folder / "positives.npz", scores=scores, ious=ious, image_ids=image_ids, labels=labels)
    (folder / "config.yaml").write_text(
        f"detector: fcos\nloss: {loss}\nseed: 0\nout: {folder}\noptim:\n  lr: {lr}\n  weight_decay: 0.0001\n"
    )
    rows = ["epoch,step,train/total,train/classification,train/box,lr,val/AP"]
    for step in range(200):
        total = 2 * np.exp(-step / 60) + 0.3 + rng.normal(0, 0.08)
        rows.append(f"{step // 50},{step},{total:.4f},{0.6 * total:.4f},{0.4 * total:.4f},{lr * (1 - step / 200):.6f},")
        if step % 50 == 49:
            rows.append(f"{step // 50},{step},,,,,{0.4 * (1 - np.exp(-step / 60)):.4f}")
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    return folder


class PageReader(HTMLParser):
    """What the tests ask of a page: tags with attributes, visible text, and tables as lists of rows of cell texts."""

    VOID = frozenset({"meta", "link", "img", "br", "wbr", "input"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.text = ""
        self.headings: list[str] = []
        self.open: list[str] = []
        self._table: list[list[str]] | None = None
        self.feed(page)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.tags.append((tag, found))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self._table = self.tables.setdefault((found.get("class") or "").split()[0], [])
        elif tag in {"h1", "h2", "h3"}:
            self.headings.append("")
        elif tag == "tr" and self._table is not None:
            self._table.append([])
        elif tag in {"td", "th"} and self._table is not None:
            self._table[-1].append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()
        if tag == "table":
            self._table = None

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in {"style", "script"}:
            self.text += data
            if {"h1", "h2", "h3"} & set(self.open):
                self.headings[-1] += data
            if self._table is not None and {"td", "th"} & set(self.open):
                self._table[-1][-1] += data

    def with_class(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.tags if name in (attributes.get("class") or "").split()]


@pytest.fixture
def run_folders(tmp_path: Path) -> list[Path]:
    """A default loss and a coupled one that is better in AP75 and worse in AP."""
    coupled = {"AP": 0.398, "AP75": 0.45, "beta_img": 0.52, "AIC_mean": 0.101, "AP90": None}
    return [
        make_run(tmp_path / "default", loss="focal"),
        make_run(tmp_path / "coupled", loss="focal+concordance(0.3)", seed=1, spread=0.07, metrics=coupled, lr=0.02),
    ]


@pytest.fixture
def build_run() -> Callable[..., Path]:
    return make_run


@pytest.fixture
def read_page() -> Callable[[str], PageReader]:
    return PageReader
