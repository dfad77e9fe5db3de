"""The demonstration: one detector trained twice on digit scenes, with its default loss and with a coupled one."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from concordet.console import note
from concordet.engine.config import DataConfig, OptimConfig, TrainConfig
from concordet.files import free_name, new_folder, read_json, write_json


@dataclass(frozen=True)
class DemoSettings:
    """What the demonstration trains; the runs differ only in the loss.

    Attributes:
        losses: Loss of each run by the name of the run; the first is the default one.
        config: Configuration of all runs, except the loss.
    """

    losses: dict[str, str] = field(
        default_factory=lambda: {"default": "default", "coupled": "default+concordance(0.3)"}
    )
    config: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            detector="atss",
            size="nano",
            image_size=(128, 128),
            data=DataConfig(
                name="digits",
                train_options={"length": 3200, "cache": True},
                val_options={"length": 400, "cache": True},
                batch_size=16,
                workers=0,
                augment="none",
            ),
            optim=OptimConfig(lr=2e-3, weight_decay=0.05, epochs=5, warmup=0.1, ema=0.99),
            val_every=0,
        )
    )


DEMO = DemoSettings()

UNCALIBRATED = "uncalibrated"
"""Folder of the first run's evaluation on the detector's own scores."""


def demo(out: str | Path, *, seed: int = 0, settings: DemoSettings = DEMO) -> tuple[list[Path], Path]:
    """Trains and evaluates every run of the demonstration, and writes the page that compares them.

    Args:
        out: Folder of the demonstration; if it exists, the next free name (``demo-2``, ...).
        seed: Seed of weights, order and augmentation of all runs.
        settings: Losses and configuration.

    Returns:
        The run folders (with the first one's evaluation on uncalibrated scores as the second folder), and the page.
    """
    from concordet.engine.training.fit import train
    from concordet.report import write_comparison

    out = new_folder(free_name(out), "name another --out")
    folders = []
    for number, (name, loss) in enumerate(settings.losses.items(), 1):
        note(f"run {number} of {len(settings.losses)}: {loss}")
        folders.append(train(replace(settings.config, loss=loss, seed=seed), out / name))
        if number == 1:
            folders.append(write_uncalibrated(folders[0], out / UNCALIBRATED))
    page = out / "comparison.html"
    write_comparison(folders, page)
    return folders, page


def write_uncalibrated(run: Path, out: Path) -> Path:
    """Writes the evaluation of a run with the detector's own scores, from the files of the run.

    Args:
        run: Evaluated run, whose detections have ``raw_score``.
        out: Folder to make.

    Returns:
        ``out``.
    """
    from concordet.calibration.calibrator import raw_results
    from concordet.engine.calibration import match_run

    new_folder(out, "name another folder")
    for name in ("config.yaml", "data.json", "ground_truth.json", "positives.npz", "metrics.csv", "timing.json"):
        if (run / name).is_file():
            shutil.copyfile(run / name, out / name)
    shutil.copytree(run / "samples", out / "samples")
    detections = raw_results(read_json(run / "detections.json"))
    write_json(out / "detections.json", detections, indent=None)
    values = match_run(read_json(run / "ground_truth.json"), detections).metrics()
    report = read_json(run / "evaluation.json")
    kept = {name: report["metrics"].get(name) for name in ("beta_img", "seconds_per_iteration")}
    report["metrics"] = {k: v for k, v in values.items() if k not in ("per_class", "reasons", "notes")} | kept
    report |= {name: values[name] for name in ("per_class", "reasons", "notes")}
    report["evaluated"] = report["evaluated"] | {"raw_scores": True}
    write_json(out / "evaluation.json", report | {"scores": "not calibrated", "calibration": None})
    return out


def summary(folders: list[Path], page: Path) -> dict[str, Any]:
    """The demonstration's metrics as plain JSON."""
    runs = [{"run": str(folder), **read_json(folder / "evaluation.json")} for folder in folders]
    return {"page": str(page), "runs": [{k: run[k] for k in ("run", "detector", "loss", "metrics")} for run in runs]}
