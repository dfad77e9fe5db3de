"""``concordet evaluate``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from concordet.cli.options import Parser


def parser() -> Parser:
    """The options."""
    options = Parser(
        "evaluate",
        "Measures a trained detector on the evaluated part of its data, or on other data.",
        "concordet evaluate runs/voc",
        "concordet evaluate runs/voc --checkpoint best --out runs/voc-best --json figures.json",
        "concordet evaluate runs/voc --split train --out runs/voc-on-train",
    )
    options.add_argument("run", type=str, help="run folder")
    options.add_argument("--checkpoint", type=str, default="last", help="last, best, or a checkpoint file")
    options.add_argument("--out", type=str | None, help="folder to write to; the run folder when not given")
    options.add_argument("--root", type=str | None, help="the data lies here now")
    options.add_argument("--split", type=str | None, help="evaluate this part of the data")
    options.add_argument("--annotations", type=str | None, help="evaluate on this annotation file")
    options.add_argument("--images", type=str | None, help="its images")
    options.add_argument("--batch_size", type=int | None, help="images at a time; the run's when not given")
    options.add_argument("--workers", type=int | None, help="processes that load images; the run's when not given")
    options.add_argument("--accelerator", type=str, default="auto", help="auto, cpu or gpu")
    options.add_argument("--averaged", type=bool, default=True, help="use the averaged weights where there are some")
    options.add_argument("--json", type=str | None, help="write the figures to this file too")
    return options


def run(words: list[str]) -> None:
    """Parses and runs."""
    given = parser().parse_args(words)

    from concordet.cli.tables import print_runs
    from concordet.engine.config import load_config
    from concordet.engine.evaluation import evaluate_run
    from concordet.files import writable, write_json

    folder = Path(given.run)
    data = load_config(folder / "config.yaml").data
    settings = {
        "root": given.root,
        "val_split": given.split,
        "val_annotations": given.annotations,
        "val_images": given.images,
        "batch_size": given.batch_size,
        "workers": given.workers,
    }
    data = replace(data, **{name: value for name, value in settings.items() if value is not None})
    if given.json is not None:
        writable(Path(given.json).parent)
    out = Path(given.out) if given.out else folder
    report = evaluate_run(
        folder,
        checkpoint=given.checkpoint,
        data=data,
        out=out,
        accelerator=given.accelerator,
        averaged=given.averaged,
    )
    if given.json is not None:
        write_json(given.json, report)
    print_runs([out])
