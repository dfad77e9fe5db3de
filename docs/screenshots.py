"""Takes the pictures of pages that the documentation shows, in docs/images.

    python docs/screenshots.py runs/demo BCCD

The first argument is the folder of a demonstration (`make demo`), the second the folder of the blood cells. Needs the
program chromium and the package playwright, which the extra `dev` includes.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from concordet.cli import main as concordet
from concordet.engine.config import load_config
from concordet.engine.data import build_dataset
from concordet.files import read_json, write_json

IMAGES = Path(__file__).parent / "images"
WIDE, NARROW = 1280, 400
"""Widths of the window in pixels: a desktop and a phone."""

MARGIN = 20
"""Pixels around a section."""

Visit = Callable[[Path, int, float], Any]


def run(*words: str | Path) -> None:
    """Runs a command; raises if it fails."""
    if status := concordet([str(word) for word in words]):
        raise RuntimeError(f"concordet {words[0]} must succeed, got status {status}")


def write_pages(demo: Path, cells: Path, folder: Path) -> None:
    """Writes the pages of analyses and data: compared.html, analysis.html and data.html."""
    truth = read_json(demo / "default" / "ground_truth.json")
    write_json(folder / "truth.json", truth)
    for name in ("default", "coupled"):
        rows = read_json(demo / name / "detections.json")
        raw = [{key: row[key] for key in row if key != "raw_score"} | {"score": row["raw_score"]} for row in rows]
        write_json(folder / f"{name}.json", raw)
    scenes = build_dataset(load_config(demo / "default" / "config.yaml").data, "val")
    (folder / "images").mkdir()
    for index, image in enumerate(truth["images"]):
        scenes.load_image(index).save(folder / "images" / image["file_name"])
    analyze = ("analyze", folder / "truth.json", folder / "default.json", "--images", folder / "images")
    run(*analyze, "--html", folder / "analysis.html")
    run(*analyze, "--html", folder / "compared.html", "--compare", folder / "coupled.json")
    run("data", cells, "--html", folder / "data.html")


@contextmanager
def browser() -> Iterator[Visit]:
    """Opens pages in chromium, by file, width of the window and pixels per CSS pixel."""
    from playwright.sync_api import sync_playwright

    executable = shutil.which("chromium")
    if executable is None:
        raise RuntimeError("chromium must be installed, got no such program; on Debian: apt install chromium")
    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])

        def visit(path: Path, width: int, scale: float = 1.0) -> Any:
            page = running.new_page(viewport={"width": width, "height": 1000}, device_scale_factor=scale)
            page.goto(path.as_uri())
            return page

        yield visit
        running.close()


def save(picture: bytes, name: str) -> None:
    """Saves a picture with few colors, which makes the file a third as large."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    # the default method would merge colors of small areas, such as those of classes
    few = image.quantize(255, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(IMAGES / name, optimize=True)
    print(f"{IMAGES / name}: {image.width} x {image.height}")


def section(page: Any, name: str, height: int | None = None) -> bytes:
    """A section of a page, by the id of its heading, with a margin; only its top if a height is given."""
    box = page.locator(f"section[aria-labelledby={name}]").bounding_box()
    clip = {"x": box["x"] - MARGIN, "y": box["y"] - MARGIN, "width": box["width"] + 2 * MARGIN}
    return page.screenshot(full_page=True, clip=clip | {"height": height or box["height"] + 2 * MARGIN})


def main(words: Sequence[str] | None = None) -> None:
    """Takes all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="folder of a demonstration")
    parser.add_argument("cells", type=Path, help="folder of BCCD")
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as name, browser() as visit:
        folder = Path(name)
        write_pages(args.demo, args.cells, folder)
        top = {"x": 0, "y": 0, "width": WIDE, "height": 1030}
        save(visit(folder / "compared.html", WIDE, 1.0).screenshot(full_page=True, clip=top), "analysis.png")
        page = visit(folder / "analysis.html", WIDE, 1.0)
        save(section(page, "gains"), "analysis-costs.png")
        save(section(page, "images", 785), "analysis-images.png")
        top = {"x": 0, "y": 0, "width": NARROW, "height": 800}
        save(visit(folder / "analysis.html", NARROW, 1.25).screenshot(full_page=True, clip=top), "analysis-phone.png")
        top = {"x": 0, "y": 0, "width": WIDE, "height": 1330}
        save(visit(folder / "data.html", WIDE, 0.7).screenshot(full_page=True, clip=top), "data.png")


if __name__ == "__main__":
    main()
