"""Put the tables of studies/results into docs/losses/speed.md, between their markers.

After `concordet benchmark losses` on a quiet machine: `python studies/losses_page.py`.
"""

from __future__ import annotations

import re
from pathlib import Path

from concordet.benchmark.losses import markdown
from concordet.benchmark.results import read_rows

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "losses" / "speed.md"
TITLES = {"losses.csv": "Two threads", "losses_one_thread.csv": "One thread"}


def section(path: Path) -> str:
    """Heading, hardware and table of one results file."""
    lines = path.read_text().splitlines()
    header = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    return (
        f"## {TITLES[path.name]}\n\n{header['processor']}, {header['cores']} cores, load average "
        f"{header['load average']} at the start; torch {header['torch']}.\n\n"
        f"<!-- {path.name} -->\n{markdown(read_rows(path))}\n<!-- end -->\n"
    )


if __name__ == "__main__":
    files = [ROOT / "studies" / "results" / name for name in TITLES]
    sections = "\n".join(section(path) for path in files if path.exists())
    page = re.sub(
        r"<!-- tables -->.*<!-- end of tables -->",
        lambda match: f"<!-- tables -->\n{sections}<!-- end of tables -->",
        PAGE.read_text(),
        flags=re.DOTALL,
    )
    PAGE.write_text(page)
