"""``concordet train``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from tempfile import TemporaryDirectory

from concordet.cli.options import Parser
from concordet.engine.config import (
    TrainConfig,
    checked_settings,
    flat,
    load_config,
    read_settings,
    rename_settings,
)
from concordet.engine.presets import NO_PRESET, preset_for, preset_settings, preset_summary
from concordet.engine.recipes import with_recipes
from concordet.errors import UsageError
from concordet.files import read_json, write_json

OWN = ("path", "config", "out", "resume", "json", "force")
"""Options of the command that are not settings of the run."""


FIRST = (
    *("out", "preset", "detector", "size", "loss", "image_size", "classes", "optim.epochs", "data.batch_size"),
    "resume",
)
"""Options that the help shows first."""


def parser() -> Parser:
    """The options: all settings of a run, and its folder."""
    options = Parser(
        "train",
        "Trains a detector, evaluates it, and writes a run folder with checkpoints, metrics and an HTML page.",
        "concordet train photos --detector fcos --size nano --loss 'focal+concordance(0.3)' --out runs/photos",
        "concordet train --detector atss --data.name voc --data.root VOC2007 --config run.yaml --out runs/voc",
        "concordet train --config harmonic_loss/faster_rcnn_r50_harmonic --data.root COCO --out runs/harmonic",
        "concordet train --plugins my_loss.py --loss 'my_loss+concordance(0.3)' --out runs/mine",
        "concordet train --resume runs/voc",
        first=FIRST,
    )
    options.add_argument(
        "path",
        type=str | None,
        nargs="?",
        help="Folder or annotation file with the data. The format (YOLO, COCO, Pascal VOC, CSV, ...) is recognized.",
    )
    options.add_argument("--out", type=str | None, help="New run folder.")
    options.add_argument(
        "--resume",
        nargs="?",
        const="",
        default=None,
        help="Run folder to continue from its newest checkpoint; without a value, the folder of --out.",
    )
    options.add_argument(
        "--config",
        action="config",
        help="YAML file with settings, such as a run's config.yaml, or the name of a recipe (concordet list recipes).",
    )
    options.add_argument("--json", type=str | None, help="JSON file for the evaluation; - is standard output.")
    options.add_force()
    options.add_class_arguments(TrainConfig)
    options.add_alias("--classes", "--data.classes")
    return options


def run(words: list[str]) -> None:
    """Parses and runs."""
    from concordet.cli.outputs import check_outputs, messages

    with checked_configs(two_sides(with_recipes(words))) as (words, configs):
        options = parser()
        folder = _folder_to_resume(words)
        if folder is not None:
            # settings of the resumed run are the defaults
            options.set_defaults(flat(load_config(folder / "config.yaml")))
            chosen = None
        else:
            chosen = _set_preset(options, words)
        args = options.instantiate(options.parse_args(words))
    if folder is not None and args.out is not None and Path(args.out).resolve() != folder.resolve():
        raise UsageError(f"out must be left out with --resume, which continues {folder}, got {args.out}")
    out = folder or (Path(args.out) if args.out else None)
    if out is None:
        raise UsageError("out must be a folder for the run, got none; add for example --out runs/first")
    settings = args.as_dict()
    for name in OWN:
        settings.pop(name)
    if args.path is not None:
        settings["data"].path = args.path
    config = TrainConfig(**settings)
    if args.json is not None and not config.evaluate:
        raise UsageError("evaluate must be true where --json is given, got false; leave one of them out")
    data = config.data
    folders = (args.path, data.path, data.root, data.train_images, data.val_images)
    files = (data.train_annotations, data.val_annotations, config.weights, *(config.plugins or ()), *configs)
    check_outputs({"--json": args.json}, (*folders, *files), force=args.force)

    from concordet.console import note
    from concordet.engine.training.fit import train
    from concordet.engine.training.launch import Launch

    launch = Launch.of(config)
    if chosen is not None and launch.is_main:
        note(chosen)
    train(config, out, resume=folder is not None, launch=launch)
    if not launch.is_main:
        return
    with messages(args.json):
        print_end(out)
    if args.json is not None:
        write_json(args.json, read_json(out / "evaluation.json"))


def _set_preset(options: Parser, words: list[str]) -> str | None:
    """Makes the preset of --preset, or the one for the data, the defaults; returns a message on which and why."""
    if {"--help", "-h"} & set(words):
        return None
    args = options.parse_args([word for word in words if not word.startswith("--print_config")])
    path = args.path or args["data.path"]
    has_config = any(word.partition("=")[0] == "--config" for word in words)
    if args.preset == NO_PRESET or (args.preset is None and (path is None or has_config or not Path(path).exists())):
        return None
    reason = ""
    name = args.preset
    if name is None:
        allow = args["data.allow_outside"]
        name, seen = preset_for(path, accelerator=args.accelerator, allow_outside=allow)
        reason = f" ({seen})"
    settings = preset_settings(name)
    if args["data.name"] is not None and path is None:  # not every data set by name takes the same options
        settings = {key: value for key, value in settings.items() if not key.endswith("_options")}
    options.set_defaults({"preset": name, **settings})
    return f"preset {name}{reason}: {preset_summary(name)}; options override it, and --preset chooses another, or none"


def print_end(out: Path) -> None:
    """Writes the page of a run, and prints its metrics, the page, the checkpoint and what to do next."""
    from concordet.engine.checkpoint import checkpoint_path

    evaluated = (out / "evaluation.json").is_file()
    if evaluated:
        from concordet.cli.tables import print_runs
        from concordet.report import write_comparison

        print_runs([out])
        print(f"page: {write_comparison([out], out / 'report.html')}")
    best = checkpoint_path(out, "best")
    best = best if best.is_file() else checkpoint_path(out)
    print(f"checkpoint: {best}")
    print(f"next: concordet predict {quote(str(best))} PHOTOS --draw pictures")


def two_sides(words: list[str]) -> list[str]:
    """Arguments with ``--image_size 240 320`` joined into one value.

    Example:
        >>> two_sides(["--image_size", "240", "320", "--out", "x"])
        ['--image_size', '[240, 320]', '--out', 'x']
    """
    words = list(words)
    for index, word in enumerate(words[:-2]):
        if word in ("--image_size", "--image-size") and all(side.isdigit() for side in words[index + 1 : index + 3]):
            words[index + 1 : index + 3] = [f"[{words[index + 1]}, {words[index + 2]}]"]
            break
    return words


@contextmanager
def checked_configs(words: list[str]) -> Iterator[tuple[list[str], list[Path]]]:
    """Arguments with every file after ``--config`` replaced by a checked copy with current names; and the files.

    Raises:
        UsageError: a file cannot be read, or has a setting that does not exist or is of another type.
    """
    import yaml

    words, paths = list(words), []
    with TemporaryDirectory() as folder:
        for index, word in enumerate(words):
            option, equals, name = word.partition("=")
            if option != "--config" or (not equals and index + 1 == len(words)):
                continue
            path = Path(name if equals else words[index + 1])
            try:
                values = read_settings(path)
                notes = rename_settings(values)
                values = checked_settings(values, others=OWN)
            except ValueError as error:
                text = str(error)
                raise UsageError(text if str(path) in text else f"{path}: {text}") from error
            if notes:
                print(f"{path}: {', '.join(notes)}", file=sys.stderr)
            paths.append(path)
            copy = Path(folder) / f"{index}.yaml"
            copy.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
            words[index : index + 2 - bool(equals)] = [f"--config={copy}"] if equals else ["--config", str(copy)]
        yield words, paths


def _folder_to_resume(words: list[str]) -> Path | None:
    """The folder of --resume, or of --out if --resume has no value."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--out")
    first.add_argument("--resume", nargs="?", const="", default=None)
    try:
        args, _ = first.parse_known_args(words)
    except argparse.ArgumentError:  # --out without a value, of which the whole parser says more
        return None
    if args.resume is None:
        return None
    folder = args.resume or args.out
    if not folder:
        raise UsageError("resume must be the folder of a run, got none; add for example --resume runs/first")
    return Path(folder)
