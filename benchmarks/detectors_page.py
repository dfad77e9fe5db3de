"""Put parameter counts and the tables of benchmarks/results into docs/detectors/README.md, between their markers."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from concordet.benchmark.detectors import markdown
from concordet.benchmark.losses import read_rows
from concordet.detectors import build_detector, list_detectors
from concordet.detectors.build import DETECTORS
from concordet.engine.files import replacing

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "detectors" / "README.md"
RESULTS = ROOT / "benchmarks" / "results"


def millions(name: str, size: str) -> float:
    """Millions of parameters at 80 classes, those of training alone included."""
    with torch.device("meta"):
        return sum(p.numel() for p in build_detector(name, num_classes=80, size=size).parameters()) / 1e6


def parameters() -> str:
    """A row a detector: what it is, its image size, parameters."""
    lines = ["| detector | | images | full | nano |", "|---|---|---|---:|---:|"]
    for name in list_detectors():
        entry = DETECTORS[name]
        what = (entry.build.__doc__ or "").splitlines()[0].split(": ", 1)[-1].rstrip(".")
        counts = [f"{millions(name, size):.1f} M" for size in ("full", "nano")]
        lines.append(
            f"| `{name}` | {what} | {entry.image_size[0]} x {entry.image_size[1]} | " + " | ".join(counts) + " |"
        )
    return "\n".join(lines)


def steps() -> str:
    """Hardware and table of the training steps."""
    path = RESULTS / "detectors.csv"
    lines = path.read_text().splitlines()
    header = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    return (
        f"{header['processor']}, {header['threads']} of {header['cores']} cores, batch {header['batch']}, torch "
        f"{header['torch']}.\n\n{markdown(read_rows(path))}"
    )


def main() -> None:
    """Writes the page."""
    page = PAGE.read_text()
    contents = {name: (RESULTS / name).read_text().rstrip() for name in ("overfit.md", "learning.md")}
    for name, text in {"parameters": parameters(), "steps": steps(), **contents}.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        page = re.sub(f"{begin}.*?{end}", lambda _, t=text, b=begin, e=end: f"{b}\n{t}\n{e}", page, flags=re.DOTALL)
    with replacing(PAGE) as path:
        path.write_text(page)


if __name__ == "__main__":
    main()
