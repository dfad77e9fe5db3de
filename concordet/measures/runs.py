"""Run folders: the files of training and evaluation, with the measures that a comparison of runs shows.

Missing optional files are noted instead of raising an error.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from concordet.files import read_yaml
from concordet.measures.analysis import Analysis, analyze
from concordet.measures.correlation import pooled_correlation
from concordet.measures.metrics import is_missing, metrics_of, pick
from concordet.measures.reading.records import is_federated
from concordet.measures.reading.run_files import (
    AGAIN,
    read_detections,
    read_evaluation,
    read_ground_truth,
    read_positives,
    read_rows,
)

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg"}

DEFAULT_LOSS = "default loss"
"""Name of a run with ``loss: default``."""

DEFAULT_THRESHOLD = 0.3
"""Score from which boxes are drawn and counted if a class's LRP-optimal threshold is unknown."""

MAX_PLOTTED = 1e30
"""Larger values of curves are left out: plots cannot scale them."""

NO_SETTINGS = {"out", "folder", "run_folder", "resume"}
"""Last words of the dotted names in config.yaml that are paths of the run, not settings of it."""


@dataclass
class Run:
    """One training run with its evaluation.

    Attributes:
        folder: Folder that it was read from.
        name: Short name, different from those of the other runs on the same page.
        loss, detector: Names of the loss and the detector.
        metrics: Value by key, fractions, None where undefined.
        reasons: Why a value is undefined, by key.
        per_class: One mapping per class, with "name".
        class_names: Names of the classes; index i is label i + 1.
        environment: Versions and device, as text.
        cross_fitted: Whether the scores are calibrated on the evaluated images themselves; calibration errors among the
            metrics are then those of cross-fitted scores.
        settings: Configuration, flattened to dotted names.
        curves: (steps, values) by column of ``metrics.csv``.
        positives: Columns (scores, IoUs and others) of the positives before NMS, or None.
        spearman: Spearman correlation over all positives together, or None.
        ground_truth: COCO form, or None.
        detections: COCO results, or None.
        analysis: Analysis of the detections, or None if they or the ground truth are missing, or were not analyzed.
        samples: Picture file by image id.
        scores: Whether scores are calibrated, in words; "" if it was not recorded.
        notes: One sentence for each thing that cannot be shown.
    """

    folder: Path
    name: str
    loss: str
    detector: str
    metrics: dict[str, Any]
    reasons: dict[str, str]
    per_class: list[dict[str, Any]]
    class_names: list[str]
    environment: dict[str, str]
    cross_fitted: bool = False
    settings: dict[str, str] = field(default_factory=dict)
    curves: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)
    positives: dict[str, np.ndarray] | None = None
    spearman: float | None = None
    ground_truth: dict[str, Any] | None = None
    detections: list[dict[str, Any]] | None = None
    analysis: Analysis | None = None
    samples: dict[int | str, Path] = field(default_factory=dict)
    scores: str = ""
    notes: list[str] = field(default_factory=list)

    def threshold(self, class_name: str) -> float:
        """LRP-optimal score threshold of a class, or :data:`DEFAULT_THRESHOLD` if it is unknown."""
        row: Mapping[str, Any] = next((row for row in self.per_class if row["name"] == class_name), {})
        best = row.get("lrp_threshold")
        return DEFAULT_THRESHOLD if best is None or is_missing(best) else float(best)

    def counts(self, image_id: int | str) -> tuple[int, int]:
        """Numbers of (true, false) positives at IoU 0.5 in an image, above the thresholds of their classes."""
        if self.analysis is None:
            return 0, 0
        a = self.analysis
        own = np.flatnonzero(a.image_ids == image_id)
        limits = np.array([self.threshold(a.class_names[label]) for label in a.class_ids[own].tolist()])
        own = own[a.scores[own] >= limits] if len(own) else own
        return int(a.true_positive[own].sum()), int((~a.true_positive[own] & ~a.ignored[own]).sum())


def read_runs(folders: Sequence[Path], *, measure: bool = True) -> list[Run]:
    """Reads run folders, gives the runs different names, and analyzes their detections.

    Args:
        folders: Run folders, one or more.
        measure: Whether to compute ``analysis`` and ``spearman``, which the stored metrics do not need.

    Raises:
        ValueError: no folder is named, or one is not a run folder.
    """
    if not folders:
        raise ValueError("folders must have at least one run folder, got none; name the folders to compare")
    runs = [read_run(Path(folder)) for folder in folders]
    for run, name in zip(runs, _distinct_names(runs), strict=True):
        run.name = name
    if measure:
        for run in runs:
            _measure(run)
    return runs


def read_run(folder: Path) -> Run:
    """Reads one run folder, without analysis; all files but ``evaluation.json`` are optional.

    Raises:
        ValueError: the folder does not exist, has no evaluation, or one of its files cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(f"run must be a folder, got {folder}; name one that `concordet train` has written")
    if not (folder / "evaluation.json").is_file():
        raise ValueError(
            f"run must be a folder with evaluation.json, got {folder} without it; "
            "name a folder that `concordet train` has written, or run `concordet evaluate` on it first"
        )
    evaluation = read_evaluation(folder / "evaluation.json")
    class_names = evaluation["class_names"]
    run = Run(
        folder=folder,
        name=folder.name,
        loss=str(evaluation.get("loss", folder.name)),
        detector=str(evaluation.get("detector", "detector")),
        scores=str(evaluation.get("scores", "")),
        metrics=evaluation["metrics"],
        reasons={str(key): str(reason) for key, reason in evaluation["reasons"].items()},
        per_class=_named_classes(evaluation["per_class"], class_names),
        class_names=class_names,
        environment={str(key): str(value) for key, value in flatten(evaluation["environment"]).items()},
        cross_fitted=evaluation.get("calibration") is not None,
    )
    run.settings = _read_settings(run)
    run.curves = _read_curves(run)
    run.positives = _read_positives(run)
    missing = "no pictures and no curve over IoU thresholds"
    run.ground_truth = _read_optional(run, "ground_truth.json", read_ground_truth, missing)
    run.detections = _read_optional(run, "detections.json", read_detections, missing)
    run.samples = _find_samples(run)
    return run


def comparison_rows(run_folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The stored metrics of each run, one row per run.

    Args:
        run_folders: Evaluated runs.

    Returns:
        One row per run: ``name``, ``loss``, ``detector``, ``folder``, every key of ``METRICS``, and those of
        ``MASK_METRICS`` if a run has masks. Values are as stored (fractions, seconds), None where undefined;
        :class:`Metric` formats them.

    Raises:
        ValueError: as :func:`read_run`.

    Example:
        >>> (row,) = comparison_rows([Path("runs/first")])
        >>> row["loss"], row["detector"], 0 <= row["AP"] <= 1
        ('default', 'fcos', True)
    """
    runs = read_runs(run_folders, measure=False)
    metrics = metrics_of(run.metrics for run in runs)
    return [
        {"name": run.name, "loss": run.loss, "detector": run.detector, "folder": str(run.folder)}
        | pick(metrics, run.metrics)
        for run in runs
    ]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted names.

    Example:
        >>> flatten({"optim": {"lr": 0.1}, "seed": 0})
        {'optim.lr': 0.1, 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def setting_differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Settings in which the runs differ, with each run's value; output folders are not settings."""
    names = sorted({name for run in runs for name in run.settings if name.split(".")[-1] not in NO_SETTINGS})
    rows = [(name, [run.settings.get(name, "not set") for run in runs]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def same_ground_truth(runs: Sequence[Run]) -> bool:
    """Whether all runs with a ground truth were evaluated on the same images and objects."""
    known = [run.ground_truth for run in runs if run.ground_truth is not None]
    return all(truth is known[0] or _evaluated(truth) == _evaluated(known[0]) for truth in known[1:])


def _evaluated(truth: Mapping[str, Any]) -> tuple[list[Any], Any]:
    """Ids of the images, sorted, and the annotations."""
    return sorted(image["id"] for image in truth.get("images") or []), truth.get("annotations")


def _measure(run: Run) -> None:
    if run.positives is not None and len(run.positives["scores"]):
        run.spearman = pooled_correlation(run.positives["scores"], run.positives["ious"], "spearman").value
    if run.ground_truth is not None and run.detections is not None:
        federated = is_federated(run.ground_truth)
        every = max(len(run.detections), 1)  # those of the sample images may have any rank
        try:
            run.analysis = analyze(run.ground_truth, run.detections, lvis=federated, n_disagreements=every)
        except ValueError as error:
            raise ValueError(f"{run.folder}: ground_truth.json and detections.json: {error}; {AGAIN}") from error


def _distinct_names(runs: Sequence[Run]) -> list[str]:
    candidates = (
        lambda run: DEFAULT_LOSS if run.loss == "default" else run.loss,
        lambda run: f"{run.detector}, {run.loss}",
        lambda run: run.folder.name,
        lambda run: f"{run.loss} ({run.folder.name})",
        lambda run: str(run.folder),
    )
    for candidate in candidates:
        names = [candidate(run) for run in runs]
        if max(Counter(names).values()) == 1:
            return names
    return [f"{run.folder} #{i + 1}" for i, run in enumerate(runs)]


def _named_classes(rows: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> list[dict[str, Any]]:
    named = []
    for i, row in enumerate(rows):
        name = row.get("name") or row.get("class_name") or row.get("class")
        if name is None:
            name = class_names[i] if i < len(class_names) else f"class {i + 1}"
        named.append({**row, "name": str(name)})
    return named


def _read_optional(run: Run, name: str, read: Callable[[Path], Any], loss: str) -> Any:
    if not (run.folder / name).is_file():
        run.notes.append(f"{run.folder.name} has no {name}: {loss} for it.")
        return None
    return read(run.folder / name)


def _read_settings(run: Run) -> dict[str, str]:
    path = run.folder / "config.yaml"
    if not path.is_file():
        run.notes.append(f"{run.folder.name} has no config.yaml: its settings are not compared.")
        return {}
    tree = read_yaml(path)
    return {name: _setting_text(value) for name, value in flatten(tree).items()} if isinstance(tree, dict) else {}


def _setting_text(value: Any) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _read_curves(run: Run) -> dict[str, tuple[list[float], list[float]]]:
    path = run.folder / "metrics.csv"
    if not path.is_file():
        run.notes.append(f"{run.folder.name} has no metrics.csv: no training curves for it.")
        return {}
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for index, row in enumerate(read_rows(path)):
        step = _number(row.get("step"))
        for name, text in row.items():
            value = _number(text)
            if value is None or name in {None, "", "step", "epoch"}:
                continue
            steps, values = curves.setdefault(name, ([], []))
            steps.append(index if step is None else step)
            values.append(value)
    return curves


def _number(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if abs(value) <= MAX_PLOTTED else None


def _read_positives(run: Run) -> dict[str, np.ndarray] | None:
    path = run.folder / "positives.npz"
    if not path.is_file():
        run.notes.append(f"{run.folder.name} has no positives.npz: no density of score against IoU for it.")
        return None
    return read_positives(path)


def _find_samples(run: Run) -> dict[int | str, Path]:
    folder = run.folder / "samples"
    files = [path for path in folder.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES] if folder.is_dir() else []
    if not files:
        run.notes.append(f"{run.folder.name} has no samples: no pictures for it.")
    return {int(path.stem) if path.stem.isdecimal() else path.stem: path for path in sorted(files)}
