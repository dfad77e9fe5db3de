"""Generated ground truth and detections of several shapes, in COCO form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "crowds": {"crowd": 0.2},
    "ignores": {"crowd": 0.1, "ignore": 0.3},
    "ties": {"score_levels": 4},
    "many_classes": {"n_classes": 40, "n_images": 60, "n_objects": 200, "n_detections": 900},
    "dense": {"n_images": 3, "n_classes": 1, "n_objects": 40, "n_detections": 700},
    "few_objects": {"n_objects": 3, "n_detections": 40},
    "no_object": {"n_objects": 0, "n_detections": 20},
    "small_only": {"side": (4, 20)},
    "exact_boxes": {"jitter": 0.0},
    "big_ids": {"id_step": 123_456_789},
}


def make_scene(
    seed: int = 0,
    *,
    n_images: int = 20,
    n_classes: int = 5,
    n_objects: int = 80,
    n_detections: int = 400,
    crowd: float = 0.0,
    ignore: float = 0.0,
    score_levels: int | None = None,
    side: tuple[float, float] = (8, 160),
    jitter: float = 0.12,
    id_step: int = 1,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Objects at random; detections around them, some with a wrong class or nowhere near one."""
    rng = np.random.default_rng(seed)
    image_ids = [1 + id_step * i for i in range(n_images)]
    classes = [{"id": 1 + 2 * i, "name": f"class {i}"} for i in range(n_classes)]
    annotations = []
    for i in range(n_objects):
        w, h = rng.uniform(*side, 2)
        x, y = rng.uniform(0, 400, 2)
        annotations.append(
            {
                "id": 1 + i,
                "image_id": image_ids[rng.integers(n_images)],
                "category_id": classes[rng.integers(n_classes)]["id"],
                "bbox": [x, y, w, h],
                "area": w * h * rng.uniform(0.5, 1),
                "iscrowd": int(rng.random() < crowd),
                "ignore": int(rng.random() < ignore),
            }
        )
    detections = []
    for _ in range(n_detections):
        score = rng.random()
        if score_levels:
            score = round(score * score_levels) / score_levels
        if annotations and rng.random() < 0.8:
            target = annotations[rng.integers(n_objects)]
            x, y, w, h = target["bbox"]
            x, y = x + rng.normal(0, jitter) * w, y + rng.normal(0, jitter) * h
            w, h = w * np.exp(rng.normal(0, jitter)), h * np.exp(rng.normal(0, jitter))
            image, label = target["image_id"], target["category_id"]
            if rng.random() < 0.1:
                label = classes[rng.integers(n_classes)]["id"]
        else:
            (x, y), (w, h) = rng.uniform(0, 400, 2), rng.uniform(*side, 2)
            image, label = image_ids[rng.integers(n_images)], classes[rng.integers(n_classes)]["id"]
        box = [float(x), float(y), float(w), float(h)]
        detections.append({"image_id": image, "category_id": label, "bbox": box, "score": float(score)})
    images = [{"id": i, "width": 640, "height": 640} for i in image_ids]
    return {"images": images, "categories": classes, "annotations": annotations}, detections


def write_scene(folder: Path, truth: Any, found: Any) -> tuple[Path, Path]:
    """Both sides as JSON files."""
    paths = folder / "truth.json", folder / "found.json"
    for path, content in zip(paths, (truth, found), strict=True):
        path.write_text(json.dumps(content))
    return paths
