"""Gains of AP50 without each type of error beside the code of TIDE's authors."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

from pycocotools import mask as coco_mask

from concordet.measures import analyze
from oracles.clones import source
from oracles.comparison import Comparison
from oracles.measures import make, merged

REPOSITORY = "tide"
NAMES = {
    "ClassError": "classification", "BoxError": "localization", "OtherError": "both",
    "DuplicateError": "duplicates", "BackgroundError": "background", "MissedError": "missed",
}  # fmt: skip
"""Names of the authors' types of errors to ours."""

FILES = 8
RECALLS = "published code computes recalls of 0, 0.01, ..., 1 that differ from pycocotools' in the last bit"
CROWDS = "published code also corrects detections in crowd regions, which AP does not count"
VARIANTS = {"": "both departures below undone", RECALLS: "recalls as published", CROWDS: "crowds as published"}
CHANGES = {
    RECALLS: ("np.array([x / resolution for x in range(resolution + 1)])", "np.linspace(0, 1, resolution + 1)"),
    CROWDS: (" or pred['used'] == None", ""),
}
"""Reasons of departures to the published text and the one without the difference."""
MODULES = ("functions", "data", "ap", "errors.error", "errors.main_errors", "errors.qualifiers", "quantify")


def package(*undone: str) -> Any:
    """The authors' evaluation without their plots, which need more packages; None without a clone.

    Args:
        undone: Keys of :data:`CHANGES` whose differences are removed.
    """
    if source(REPOSITORY, "setup.py") is None:
        return None
    for name in ("tidecv", "tidecv.errors", "tidecv.plotting"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = []  # what a relative import needs
    for name in MODULES:
        loaded = types.ModuleType(f"tidecv.{name}")
        loaded.__package__ = loaded.__name__.rpartition(".")[0]
        sys.modules[loaded.__name__] = loaded
        setattr(sys.modules[loaded.__package__], name.rpartition(".")[2], loaded)
        path = f"tidecv/{name.replace('.', '/')}.py"
        text = source(REPOSITORY, path) or ""
        for old, new in (CHANGES[reason] for reason in undone):
            text = text.replace(old, new)
        exec(compile(text, path, "exec"), loaded.__dict__)
    return sys.modules["tidecv"]


def published(tide: Any, truth: dict[str, Any], results: list[dict[str, Any]], iou_type: str) -> dict[str, float]:
    """Gains of the authors' code, as fractions."""
    ground, found = tide.data.Data("truth"), tide.data.Data("results")
    for record in truth["annotations"]:
        add = ground.add_ignore_region if record["iscrowd"] else ground.add_ground_truth
        add(record["image_id"], record["category_id"], record["bbox"], _mask(record["segmentation"]))
    for record in results:
        found.add_detection(
            record["image_id"], record["category_id"], record["score"], record["bbox"], _mask(record["segmentation"])
        )
    mode = {"bbox": "bbox", "segm": "mask"}[iou_type]
    run = tide.quantify.TIDERun(ground, found, 0.5, 0.1, mode, 100)
    return {NAMES[error.__name__]: gain / 100 for error, gain in run.fix_main_errors().items()}


def _mask(segmentation: Any) -> Any:
    return (
        merged(segmentation) if isinstance(segmentation, list) else coco_mask.frPyObjects([segmentation], 480, 640)[0]
    )


def compare() -> Iterator[Comparison]:
    """Boxes and masks, without and with crowd regions; some detections get the class of another."""
    for departure in ("", RECALLS, CROWDS):
        tide = package(*(reason for reason in CHANGES if reason != departure))
        if tide is None:
            return
        for iou_type, what in (("bbox", "boxes"), ("segm", "masks")):
            largest = 0.0
            for seed in range(FILES):
                truth, results = make(seed, crowd=0.2 * (seed % 2))
                for record in results[::7]:
                    record["category_id"] = truth["categories"][record["category_id"] % 4]["id"]
                theirs = published(tide, truth, results, iou_type)
                ours = analyze(truth, results, iou_type=iou_type).to_dict()["gains"]
                largest = max(largest, *(abs(ours[name] - gain) for name, gain in theirs.items()))
            yield Comparison(
                f"gains of AP50 by type of error; {what}, {VARIANTS[departure]}",
                REPOSITORY,
                FILES,
                largest,
                "fraction",
                1e-9,
                departure,
            )
