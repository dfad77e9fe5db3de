"""Put parameter counts and the tables of studies/results into the pages of docs/detectors, between their markers."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from concordet.benchmark.detectors import markdown
from concordet.benchmark.results import read_rows
from concordet.detectors import build_detector, list_detectors
from concordet.detectors.architectures.registry import DETECTORS
from concordet.files import replacing

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "detectors"
RESULTS = ROOT / "studies" / "results"


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


def steps(name: str) -> str:
    """Hardware and table of training steps."""
    path = RESULTS / name
    lines = path.read_text().splitlines()
    header = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    sides = "/".join(dict.fromkeys(row["side"] for row in read_rows(path)))
    return (
        f"{header['processor']}, {header['threads']} of {header['cores']} cores, batch {header['batch']}, images of "
        f"{sides} pixels, torch {header['torch']}; {header['clock']} time.\n\n{markdown(read_rows(path))}"
    )


def put(page: Path, contents: dict[str, str]) -> None:
    """Replaces what is between the markers of each name."""
    text = page.read_text()
    for name, inside in contents.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        text = re.sub(f"{begin}.*?{end}", lambda _, t=f"{begin}\n{inside}\n{end}": t, text, flags=re.DOTALL)
    with replacing(page) as path:
        path.write_text(text)


def results(*names: str) -> dict[str, str]:
    """Tables as they are."""
    return {name: (RESULTS / name).read_text().rstrip() for name in names}


def main() -> None:
    """Writes the pages."""
    measured = {name: steps(name) for name in ("detectors.csv", "detectors_two_stage.csv")}
    put(PAGES / "README.md", {"parameters": parameters(), **measured, **results("overfit.md", "learning.md")})
    sections = ("overfit", "auxiliary", "unseen", "steps")
    put(PAGES / "transformers.md", results(*(f"transformers_{section}.md" for section in sections)))


if __name__ == "__main__":
    main()
