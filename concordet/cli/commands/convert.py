"""``concordet convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from concordet.cli.options import Parser


def parser() -> Parser:
    """The options."""
    options = Parser(
        "convert",
        "Converts a data set in any supported format to COCO: one JSON file, or a folder with annotations and images.",
        "concordet convert photos --out photos-coco",
        "concordet convert photos/data.yaml --split val --out val.json",
    )
    options.add_argument("path", type=str, help="Folder or annotation file with the data, as for concordet train.")
    options.add_argument(
        "--out",
        type=str | None,
        help="JSON file, or a new folder for annotations/instances_SPLIT.json and copies of the images in SPLIT/.",
    )
    options.add_argument("--split", type=str | None, help="Split to convert: train, val or test; all by default.")
    options.add_reading()
    options.add_argument("--masks", action="store_true", help="Also write polygons and masks, if there are any.")
    options.add_argument(
        "--allow_outside", "--allow-outside", action="store_true", help="Also read images outside the folder."
    )
    options.add_argument("--skip_faulty", "--skip-faulty", action="store_true", help="Leave out faulty images.")
    options.add_force()
    return options


def run(words: list[str]) -> None:
    """Parses and runs."""
    from concordet.cli.outputs import check_outputs, messages
    from concordet.console import note
    from concordet.errors import UsageError
    from concordet.files import check_new, is_standard_output, write_json

    args = parser().parse_args(words)
    if not args.out:
        raise UsageError("out must be a JSON file or a new folder, got none; add for example --out photos-coco")
    to_file = args.out.lower().endswith(".json") or is_standard_output(args.out)
    if to_file:
        check_outputs({"--out": args.out}, (args.path,), force=args.force)
    else:
        check_new(args.out, "name another --out")

    from concordet.data.convert import merge_splits, write_folder
    from concordet.data.detect import count_sentence, detect_format

    source = detect_format(args.path, args.name, allow_outside=args.allow_outside)
    options: dict[str, Any] = {"classes": args.classes, "skip_faulty": args.skip_faulty}
    options |= {name: True for name in ("masks", "allow_outside") if getattr(args, name)}
    splits = source.open_all(**options) if args.split is None else {args.split: source.open(args.split, **options)}
    note(count_sentence(source.layout.description, splits))
    root = source.path if source.path.is_dir() else source.path.parent
    if to_file:
        write_json(args.out, merge_splits(splits, root), indent=None)
    else:
        write_folder(splits, Path(args.out))
    if not is_standard_output(args.out):
        with messages():
            print(f"written: {args.out}")
