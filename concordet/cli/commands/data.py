"""``concordet data``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from concordet.cli.options import Parser

PICTURES = 24
FAULTS_PRINTED = 10


def parser() -> Parser:
    """The options."""
    options = Parser(
        "data",
        "Inspects a data set before training: its format, counts per split and class, box sizes, faults with file "
        "names, "
        "and, with --html, a page of images with their boxes.",
        "concordet data photos",
        "concordet data photos --html photos.html --json photos.json",
    )
    options.add_argument("path", type=str, help="Folder or annotation file with the data, as for concordet train.")
    options.add_argument("--html", type=str | None, help="HTML page to write, with pictures.")
    options.add_argument("--json", type=str | None, help="JSON file for the counts and faults; - is standard output.")
    options.add_reading()
    options.add_argument(
        "--allow_outside", "--allow-outside", action="store_true", help="Also read images outside the folder."
    )
    options.add_argument("--pictures", type=int, default=PICTURES, help="Number of pictures on the page.")
    options.add_force()
    return options


def run(words: list[str]) -> None:
    """Parses and runs."""
    from concordet.cli.outputs import check_outputs, messages
    from concordet.errors import UsageError
    from concordet.files import write_json

    args = parser().parse_args(words)
    check_outputs({"--html": args.html, "--json": args.json}, (args.path,), force=args.force)
    if args.pictures < 0:
        raise UsageError(f"pictures must be at least 0, got {args.pictures}; 0 leaves them out")

    from concordet.data.detect import count_sentence, detect_format
    from concordet.data.statistics import dataset_statistics

    source = detect_format(args.path, args.name, allow_outside=args.allow_outside)
    outside = {"allow_outside": True} if args.allow_outside else {}
    splits = source.open_all(skip_faulty=True, check_images=True, classes=args.classes, **outside)
    sentence = count_sentence(source.layout.description, splits)
    report = dataset_statistics(splits)  # type: ignore[arg-type]  # what is recognized is in files
    if args.html is not None:
        from concordet.report.dataset import write_dataset

        names = next(iter(splits.values())).class_names
        write_dataset(Path(args.path).name, sentence, report, _photographs(splits, args.pictures), names, args.html)
    with messages(args.json, args.html):
        print_report(sentence, report)
        if args.html is not None:
            print(f"page: {args.html}")
    if args.json is not None:
        write_json(args.json, {"format": source.name, "description": sentence} | report)


def print_report(sentence: str, report: dict[str, Any]) -> None:
    """Prints the summary, a table of the splits and the first faults."""
    from rich.table import Table

    from concordet.cli.tables import wide_console

    splits = report["splits"]
    table = Table("", *splits)
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("images", *(f"{split['images']:,}" for split in splits.values()))
    table.add_row("images without objects", *(f"{split['images_without_objects']:,}" for split in splits.values()))
    table.add_row("objects", *(f"{split['objects']:,}" for split in splits.values()))
    for name in dict.fromkeys(name for split in splits.values() for name in split["classes"]):
        table.add_row(f"  {name}", *(f"{split['classes'].get(name, 0):,}" for split in splits.values()))
    for name in ("small", "medium", "large"):
        table.add_row(f"objects, {name}", *(f"{split['objects_by_size'][name]:,}" for split in splits.values()))
    table.add_row("image, median", *(_size(split["image_sizes"]) for split in splits.values()))
    table.add_row("side of a box, median", *(_size(split["box_sides"]) for split in splits.values()))
    print(sentence)
    wide_console().print(table)
    for name, split in splits.items():
        for kind, number in split["counts"].items():
            print(f"{name}: {number:,} {kind.replace('_', ' ')}")
    faults = report["faults"]
    print(f"{len(faults)} fault{'s' * (len(faults) != 1)}" if faults else "no faults")
    for fault in faults[:FAULTS_PRINTED]:
        print(f"  {fault['file'] or fault['split']}: {fault['fault']}")
    if len(faults) > FAULTS_PRINTED:
        print(f"  and {len(faults) - FAULTS_PRINTED} more; --json FILE writes them all")


def _size(spread: dict[str, Any] | None) -> str:
    if spread is None:
        return "–"
    median = spread["median"]
    return f"{median[0]:.0f} x {median[1]:.0f}" if isinstance(median, list) else f"{median:.0f}"


def _photographs(splits: dict[str, Any], number: int) -> Any:
    """Images at even intervals of each split, as many as its share of the data set, with their objects."""
    import numpy as np

    from concordet.report.dataset import Photograph

    total = sum(map(len, splits.values()))
    for name, split in splits.items():
        wanted = max(round(number * len(split) / total), 1) if number else 0
        for index in np.linspace(0, len(split) - 1, min(wanted, len(split))).astype(int).tolist():
            try:
                image = split.load_image(index)
            except (ValueError, FileNotFoundError):
                continue  # it is among the faults
            truth = split.annotations_of(index)
            yield Photograph(split.image_path(index).name, name, image, truth["boxes"], truth["labels"])
