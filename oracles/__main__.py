"""Runs every comparison and writes docs/fidelity.md: `python -m oracles [--out PAGE]`.

The page in the documentation is complete: where a repository cannot be cloned it is written only to a PAGE given.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from importlib.metadata import version
from math import isfinite
from pathlib import Path

import torch

import oracles.environment  # noqa: F401  (first: it prepares mmcv for mmdet)
from concordet.files import replacing
from oracles import (
    assigners,
    co_detr,
    correlation_heads,
    correlations,
    dense,
    heads,
    losses,
    lrp,
    measures,
    published,
    ranked_heads,
    ranked_regions,
    ranked_yolact,
    regions,
    sets,
    suppression,
    tide,
)
from oracles.clones import ADDRESSES, versions
from oracles.comparison import Comparison

PAGE = Path("docs") / "fidelity.md"
SECTIONS = {
    "Assignment": assigners,
    "Losses, coders and anchors": losses,
    "Heads": heads,
    "Heads with other anchors, points or matching": dense,
    "Heads with ranking losses": ranked_heads,
    "YOLACT with RS Loss": ranked_yolact,
    "Two-stage heads": regions,
    "Two-stage heads with RS Loss": ranked_regions,
    "Set predictors": sets,
    "Co-DETR": co_detr,
    "Published ranking losses": published,
    "Correlation Loss": correlations,
    "Heads with Correlation Loss": correlation_heads,
    "Suppression, voting and centerness": suppression,
    "Measures": measures,
    "LRP error": lrp,
    "TIDE": tide,
}
HEADING = """# Fidelity: concordet compared with the published implementations

`make oracles` runs published code and concordet on the same inputs and writes this page: mmdetection {mmdet}, the
authors' repositories, pycocotools, lvis, netcal and SciPy. Of {count} comparisons {equal} are equal and
{departures} are departures.

* **equal**: rounding explains the deviation. Inputs are float32 (relative deviations of about 1e-7); of losses alone
  and of some heads they are float64.
* **departure**: the two differ on purpose, for the reason given. Where a variant of the same comparison without that
  difference exists, it is in the table, too. [Departures](detectors/departures.md) describes those of detectors.
* **deviation**: the largest of all cases. A relative one is the largest difference of a pair of values or gradients
  over their largest value.
* **cases**: scenes, batches of two scenes, samples or files. Scenes are seeded: without objects, with one, some, 40 to
  79, tiny, huge and thin ones, with coordinates on a grid (ties), and with near-duplicates. Terms of losses are those
  of batches whose images all have objects, over concordet's normalizer.
"""


def table(rows: list[Comparison]) -> str:
    """Markdown, one row per comparison."""
    lines = ["| what | reference | cases | largest deviation | verdict | reason |", "|---|---|---:|---|---|---|"]
    for row in rows:
        number = f"{row.deviation:,}" if isinstance(row.deviation, int) else f"{row.deviation:.2g}"
        deviation = f"{number} {row.unit}" if isfinite(row.deviation) else "not comparable"
        cells = (row.what, row.oracle, str(row.scenes), deviation, row.verdict)
        reason = row.reason if row.verdict != "equal" else ""
        lines.append("| " + " | ".join((*cells, reason)) + " |")
    return "\n".join(lines)


def heading(rows: list[Comparison]) -> str:
    """What the page is, and how many comparisons have which verdict."""
    verdicts = Counter(row.verdict for row in rows)
    return HEADING.format(
        mmdet=version("mmdet"), count=len(rows), equal=verdicts["equal"], departures=verdicts["departure"]
    )


def repositories(found: dict[str, str | None]) -> str:
    """Markdown, one row per repository of the authors."""
    lines = ["| repository | commit |", "|---|---|"]
    lines += [f"| [{name}]({ADDRESSES[name]}) | {found[name] or 'not compared: no clone'} |" for name in found]
    return "\n".join(lines)


def main() -> int:
    """Runs, writes, and says with its status whether anything differs without a reason."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help=f"page to write; {PAGE} unless a repository is missing")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), help="sections to run; the page is not written")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    text, everything = [], []
    for title, module in SECTIONS.items():
        if options.only and title not in options.only:
            continue
        torch.manual_seed(0)  # networks start at random, whichever sections come before
        rows = []
        for row in module.compare():
            print(f"{row.verdict:9} {row.what} ({row.oracle}): {row.deviation:.3g} {row.unit}", flush=True)
            rows.append(row)
        everything += rows
        text.append(f"## {title}\n\n{table(rows)}\n")
    if not options.only:
        _write(options.out, [heading(everything), *text])
    differing = [row for row in everything if row.verdict == "DIFFERS"]
    for row in differing:
        print(f"differs without a reason: {row.what} ({row.oracle})", file=sys.stderr)
    return bool(differing)


def _write(out: Path | None, text: list[str]) -> None:
    """Writes the page, to its place in the documentation only with all repositories."""
    found = versions()
    missing = [name for name, version in found.items() if version is None]
    if out is None and missing:
        print(f"{PAGE} is not written: {', '.join(missing)} cannot be cloned; --out PAGE writes what there is")
        return
    with replacing(out or PAGE) as path:
        path.write_text("\n".join([*text, f"## Repositories\n\n{repositories(found)}\n"]), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
