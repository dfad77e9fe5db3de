"""Puts the tables of studies/results into the Markdown pages, between their markers.

    python -m studies.pages            # updates every page
    python -m studies.pages --check    # lists the pages that are out of date; status 1 if there are any

A marker is a line ``<!-- table: NAME -->`` with NAME from ``TABLES``; ``<!-- end of table -->`` closes it.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

import torch

from concordet.benchmark import detectors, losses
from concordet.benchmark.results import caption, read_rows
from concordet.benchmark.results import table as markdown_table
from concordet.detectors import build_detector, list_detectors
from concordet.detectors.architectures.registry import DETECTORS
from concordet.detectors.networks.backbones import Size
from concordet.files import replacing
from studies import (
    calibration,
    compare_losses,
    detection_transformers,
    export,
    gpu,
    learning,
    overfit,
    prior,
    rematching,
    which_loss,
)

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "studies" / "results"


def measured(name: str, what: str, table: Callable[[list[dict[str, str]]], str]) -> str:
    """A line that says what was measured and where, and the table of a results file."""
    rows = read_rows(RESULTS / f"{name}.csv")
    where = caption(rows)
    sentence = f"{what}{'; ' + where if where else ''}."
    wrapped = textwrap.fill(sentence, 120, break_long_words=False, break_on_hyphens=False)
    return f"{wrapped}\n\n{table(rows)}"


def large(rows: Sequence[Mapping[str, str]]) -> str:
    """Memory with 100 million logits."""
    lines = [[r["case"], f"{int(r['logits']):,}", f"{int(r['positives']):,}", r["peak_mb"]] for r in rows]
    return markdown_table(["loss", "logits", "positives", "peak MB"], lines)


def analyze(rows: Sequence[Mapping[str, str]]) -> str:
    """Processor time and memory of analyses."""
    lines = [
        [r["program"], f"{int(r['images']):,}", r["classes"], f"{int(r['detections']):,}", r["cpu_s"], r["peak_mb"]]
        for r in rows
    ]
    head = ["program", "images", "classes", "detections", "processor seconds", "peak MB"]
    return markdown_table(head, lines)


VERSION_COLUMNS = {
    "session": "session",
    "tests": "result",
    "python": "Python",
    "torch": "torch",
    "torchvision": "torchvision",
    "transformers": "transformers",
    "numpy": "NumPy",
    "scipy": "SciPy",
    "lightning": "Lightning",
    "jsonargparse": "jsonargparse",
    "pillow": "Pillow",
    "hotcoco": "hotcoco",
    "date": "date",
}
"""Column of the results file of nox sessions, and its heading."""


def versions(rows: Sequence[Mapping[str, str]]) -> str:
    """One row per session; a dash stands for a package that the session does not install.

    Example:
        >>> print(versions([{"session": "lowest", "tests": "9 passed", "torch": "2.6.0"}]).splitlines()[2][:25])
        | lowest | 9 passed | – |
    """
    lines = [[row.get(column) or "–" for column in VERSION_COLUMNS] for row in rows]
    return markdown_table(list(VERSION_COLUMNS.values()), lines, text_columns=len(VERSION_COLUMNS))


def parameters() -> str:
    """One row per detector: what it is, its image size, its number of parameters."""
    lines = []
    for name in list_detectors():
        entry = DETECTORS[name]
        what = (entry.build.__doc__ or "").splitlines()[0].split(": ", 1)[-1].rstrip(".")
        counts = [f"{millions(name, size):.1f} M" for size in get_args(Size)]
        lines.append([f"`{name}`", what, " x ".join(map(str, entry.resize.size)), *counts])
    return markdown_table(["detector", "description", "images", "full", "nano"], lines, text_columns=3)


def millions(name: str, size: Size) -> float:
    """Millions of parameters with 80 classes, including those used only in training."""
    with torch.device("meta"):
        return sum(p.numel() for p in build_detector(name, num_classes=80, size=size).parameters()) / 1e6


LOSS_GRID = (
    "`concordet benchmark losses --threads 1`: processor time of a forward and backward pass as a multiple of "
    "torchvision's `sigmoid_focal_loss` on the same logits, median (quartiles) of rounds in which all losses take turns"
)
STEPS = (
    "training step at full size as a multiple of the step with the default loss, median (quartiles) of rounds in which "
    "all losses take turns; {}the last column is the number of predictions in the losses, a multiple of the default's"
)
ALONE = "after the semicolon, what the losses alone take more than the default's, as a share of its step; "
ONE_STAGE = (
    "`concordet benchmark detectors --threads 1 --batch 1 --rounds 5 --losses rank_sort ap alrp`, detectors without "
    f"proposals: {STEPS.format(ALONE)}"
)
TWO_STAGE = (
    "`concordet benchmark detectors --detectors faster_rcnn cascade_rcnn mask_rcnn --side 1024 --batch 1 --threads 1`: "
    f"{STEPS.format('')}"
)
TABLES: dict[str, Callable[[], str]] = {
    "digits": lambda: measured("digits", compare_losses.what("digits", "examples/digits.yaml"), compare_losses.table),
    "bccd": lambda: measured("bccd", compare_losses.what("bccd", "examples/bccd.yaml"), compare_losses.table),
    **{
        f"which loss, {study}, {detector}": partial(which_loss.measured, study, detector)
        for study, compared in which_loss.COMPARED.items()
        for detector in compared
    },
    "which loss, summary": which_loss.summary,
    "which loss, papers": which_loss.papers,
    "which loss, progress": which_loss.progress,
    "which loss, repeated": which_loss.repeated,
    "study, seeds": which_loss.seeds_table,
    "which loss, weights": which_loss.weights,
    **{f"which loss, {study.replace('_', ' ')}": partial(which_loss.settings, study) for study in which_loss.TUNED},
    "prior": lambda: measured("prior", prior.WHAT, prior.table),
    "calibration": lambda: measured("calibration", calibration.WHAT, calibration.table),
    "learning": lambda: measured("learning", learning.WHAT, learning.table),
    "overfit": lambda: measured("overfit", overfit.WHAT, overfit.table),
    **{
        f"transformers, {section}": partial(
            measured, f"transformers_{section}", detection_transformers.WHATS[section], table
        )
        for section, table in detection_transformers.TABLES.items()
    },
    "rematching": lambda: measured("rematching", rematching.WHAT, rematching.table),
    "losses": lambda: measured("losses_one_thread", LOSS_GRID, losses.markdown),
    "large": lambda: measured("losses_large", "`concordet benchmark losses --study large`: peak memory", large),
    "steps": lambda: measured("detectors", ONE_STAGE, detectors.markdown),
    "steps, two-stage": lambda: measured("detectors_two_stage", TWO_STAGE, detectors.markdown),
    "analyze": lambda: measured("analyze", "`concordet benchmark analyze`, from files to metrics", analyze),
    "export": lambda: measured("export", export.OVERVIEW, export.overview),
    "export, parity": lambda: measured("export", export.WHAT, export.table),
    "gpu": gpu.text,
    "environments": lambda: versions(read_rows(RESULTS / "environments.csv")),
    "parameters": parameters,
}
"""Every table that a page can include."""

MARKED = re.compile(r"(<!-- table: ([^>]*?) -->\n)(?:.*?\n)??(<!-- end of table -->)", re.DOTALL)


def pages() -> Iterator[Path]:
    """Markdown pages of the project."""
    yield from sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("studies/*.md")])


def updated(text: str) -> str:
    """A page with its tables made again.

    Raises:
        ValueError: A marker names a table that does not exist.
    """

    def table(match: re.Match[str]) -> str:
        begin, name, end = match.groups()
        if name not in TABLES:
            raise ValueError(f"table must be one of {', '.join(TABLES)}, got {name}; correct the marker")
        return f"{begin}{TABLES[name]()}\n{end}"

    return MARKED.sub(table, text)


def main() -> None:
    """Updates the pages, or checks them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; status 1 if a page is out of date")
    options = parser.parse_args()
    old = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        new = updated(text)
        if new != text:
            old.append(page)
            if not options.check:
                with replacing(page) as temporary:
                    temporary.write_text(new, encoding="utf-8")
    for page in old:
        print(f"{'out of date' if options.check else 'updated'}: {page.relative_to(ROOT)}")
    if options.check and old:
        sys.exit(1)


if __name__ == "__main__":
    main()
