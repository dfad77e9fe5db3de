"""Results of a study: a small JSON file per finished run, so that run folders may be deleted and studies merged."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any, Final

import numpy as np

from concordet.calibration.runs import run_sample
from concordet.engine.config import MAY_CHANGE, TrainConfig, flat, load_config
from concordet.files import read_json, write_text
from concordet.measures import analyze
from concordet.measures.bootstrap import MEASURES, Sample, draw_weights, evaluate_weighted
from concordet.measures.reading.arrays import Floats
from concordet.measures.reading.records import is_federated
from concordet.study.grid import Cell, Study

FORMAT: Final = 1
PARTS: Final = {"metrics", "per_class", "curve", "processor_ms", "images", "draws"}
"""What a comparison reads from a result."""

DIGITS: Final = 6
"""Decimals of the draws in a result: rounding changes intervals far less than another seed of the draws."""


def result_path(study: Study, cell: Cell) -> Path:
    """The file of a cell's result."""
    return study.folder / "results" / f"{cell.name}.json"


def read_result(study: Study, cell: Cell) -> dict[str, Any]:
    """The result of a finished cell, computed from its run folder on the first call.

    Returns:
        ``metrics`` (of ``evaluation.json``, AP by the number of objects, and AP with the best ranking), ``per_class``
        (name to AP), ``curve`` (pairs of update and AP), ``by_threshold`` (pairs of IoU threshold and AP),
        ``processor_ms`` per update, ``environment``, ``n_images``, ``images`` (a hash of their ids), ``trained_with``
        (the settings of the run) and ``draws``: ``[1 + resamples][measures]`` of
        :data:`concordet.measures.bootstrap.MEASURES` on all images, and on each draw. Older results have neither
        ``by_threshold`` nor ``trained_with``.

    Raises:
        ValueError: the file is not a result, it has draws for another number of resamples, or its run was trained with
            other settings than those of the study.
    """
    path = result_path(study, cell)
    if not path.is_file():
        _write_result(study, cell)
    result = read_json(path)
    if not isinstance(result, dict) or result.get("format") != FORMAT or not result.keys() >= PARTS:
        raise ValueError(f"{path} must be the result of a study's run, got something else; delete it to make it again")
    if len(result["draws"]) != 1 + study.resamples:
        raise ValueError(
            f"{path} must have {study.resamples} resamples, got {len(result['draws']) - 1}; delete it to make it again"
        )
    asked = _settings(study.config_of(cell))
    for name, value in result.get("trained_with", {}).items():
        if name in asked and asked[name] != value:
            raise ValueError(
                f"{name} must be {asked[name]}, as in the study, got {value} in {path}; delete that file and its run "
                "to train it again"
            )
    return result


def _settings(config: TrainConfig) -> dict[str, Any]:
    """The settings that a result depends on, by dotted name."""
    return {k: v for k, v in flat(config).items() if k not in MAY_CHANGE or k == "data.batch_size"}


def draws_of(result: dict[str, Any]) -> Floats:
    """``[1 + resamples, measures]`` as an array, NaN where a measure is undefined."""
    return np.array(result["draws"], np.float64)


def _write_result(study: Study, cell: Cell) -> None:
    folder = study.run_folder(cell)
    evaluation = read_json(folder / "evaluation.json")
    truth, detections = (read_json(folder / f"{name}.json") for name in ("ground_truth", "detections"))
    lvis = is_federated(truth)
    sample = run_sample(truth, detections, lvis=lvis, cross_fit=evaluation.get("calibration") is not None)
    summary = analyze(truth, detections, lvis=lvis).summary
    thresholds = summary["ap_by_threshold"]
    n = len(sample.image_ids)
    weights = [np.ones(n, np.int64), *draw_weights(n, study.resamples, seed=0)]
    draws = [evaluate_weighted(sample, w) for w in weights]
    digits = [17] + study.resamples * [DIGITS]  # the first row, of all images, is not rounded
    rounded = [
        [None if np.isnan(v) else round(float(v), d) for v in draw] for draw, d in zip(draws, digits, strict=True)
    ]
    timing = read_json(folder / "timing.json") if (folder / "timing.json").is_file() else {}
    config = load_config(folder / "config.yaml")
    seconds = timing.get("processor_seconds_per_iteration")
    result = {
        "format": FORMAT,
        "detector": cell.detector,
        "loss": cell.loss,
        "settings": dict(cell.settings),
        "seed": cell.seed,
        "metrics": evaluation["metrics"]
        | {"calibration": None, "AP_upper": summary["AP_upper"]}
        | ap_by_crowding(sample),
        "per_class": {entry["name"]: entry["AP"] for entry in evaluation["per_class"]},
        "curve": _curve(folder / "metrics.csv"),
        "by_threshold": [pair for pair in zip(thresholds["iou"], thresholds["AP"], strict=True) if pair[1] is not None],
        "trained_with": _settings(config),
        "updates": timing.get("updates"),
        "processor_ms": None if seconds is None else 1000 * seconds * config.optim.accumulate,
        "environment": evaluation.get("environment"),
        "n_images": n,
        "images": hashlib.sha256(np.asarray(sample.image_ids).astype("<i8").tobytes()).hexdigest(),
        "measures": list(MEASURES),
    }
    path = result_path(study, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = json.dumps(result, indent=1, allow_nan=False).removesuffix("\n}")
    rows = ",\n".join("  " + json.dumps(row) for row in rounded)
    write_text(path, f'{lines},\n "draws": [\n{rows}\n ]\n}}\n')  # a line per draw


def ap_by_crowding(sample: Sample) -> dict[str, float | None]:
    """AP on the images with at most the median number of objects, and on the others; None without objects."""
    objects = np.bincount(sample.object_images, minlength=len(sample.image_ids))
    few = objects <= np.median(objects) if len(objects) else np.zeros(0, bool)
    column = MEASURES.index("AP")
    values = {"AP_few": few, "AP_many": ~few}
    aps = {key: evaluate_weighted(sample, images.astype(np.int64))[column] for key, images in values.items()}
    return {key: None if np.isnan(ap) else ap for key, ap in aps.items()}


def _curve(path: Path) -> list[tuple[int, float]]:
    """Updates and AP of the evaluations during training."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [(int(row["step"]) + 1, float(row["val/AP"])) for row in csv.DictReader(file) if row.get("val/AP")]
