"""Runs every comparison and writes docs/fidelity.md: `python -m oracles [--out PAGE]`."""

from __future__ import annotations

import argparse
import sys
import warnings
from math import isfinite
from pathlib import Path

import oracles.environment  # noqa: F401  (first: it prepares mmcv for mmdet)
from concordet.files import replacing
from oracles import (
    assigners,
    correlations,
    dense,
    heads,
    losses,
    measures,
    published,
    ranked_regions,
    regions,
    sets,
    suppression,
)
from oracles.comparison import Comparison

PAGE = Path("docs") / "fidelity.md"
SECTIONS = {
    "Assignment": assigners,
    "Losses, coders and anchors": losses,
    "Heads": heads,
    "Heads with anchors or points of their own": dense,
    "Two-stage heads": regions,
    "Two-stage heads with RS Loss": ranked_regions,
    "Set predictors": sets,
    "Published ranking losses": published,
    "Correlation Loss": correlations,
    "Suppression, voting and centerness": suppression,
    "Measures": measures,
}
HEADING = """# Fidelity: concordet compared with the published implementations

`make oracles` runs the published code and concordet on the same inputs and writes this page. Scenes are seeded:
without objects, with one, some, 40 to 80, tiny, huge and thin ones, coordinates on a grid (ties), and near-duplicates.
`equal` means that rounding explains the deviation; `departure` means that the two differ on purpose, for the reason
given. Deviations are the largest ones; relative ones are of the largest value.
"""


def table(rows: list[Comparison]) -> str:
    """Markdown, one row per comparison."""
    lines = ["| what | reference | scenes | largest deviation | verdict | why |", "|---|---|---:|---|---|---|"]
    for row in rows:
        number = f"{row.deviation:,}" if isinstance(row.deviation, int) else f"{row.deviation:.2g}"
        deviation = f"{number} {row.unit}" if isfinite(row.deviation) else "not comparable"
        cells = (row.what, row.oracle, str(row.scenes), deviation, row.verdict)
        reason = row.reason if row.verdict != "equal" else ""
        lines.append("| " + " | ".join((*cells, reason)) + " |")
    return "\n".join(lines)


def main() -> int:
    """Runs, writes, and says with its status whether anything differs without a reason."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PAGE, help="page to write")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), help="sections to run; the page is not written")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    text, differing = [HEADING], []
    for title, module in SECTIONS.items():
        if options.only and title not in options.only:
            continue
        rows = []
        for row in module.compare():
            print(f"{row.verdict:9} {row.what} ({row.oracle}): {row.deviation:.3g} {row.unit}", flush=True)
            rows.append(row)
        differing += [row for row in rows if row.verdict == "DIFFERS"]
        text.append(f"## {title}\n\n{table(rows)}\n")
    if not options.only:
        with replacing(options.out) as path:
            path.write_text("\n".join(text), encoding="utf-8")
    for row in differing:
        print(f"differs without a reason: {row.what} ({row.oracle})", file=sys.stderr)
    return bool(differing)


if __name__ == "__main__":
    sys.exit(main())
