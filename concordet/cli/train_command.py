"""``concordet train``."""

from __future__ import annotations

import argparse
from pathlib import Path

from concordet.cli.options import Parser
from concordet.engine.config import TrainConfig, load_config, to_dict
from concordet.engine.recipes import with_recipes
from concordet.errors import UsageError
from concordet.files import read_json, writable, write_json


def parser() -> Parser:
    """The options: every setting of a run, and where it goes."""
    options = Parser(
        "train",
        "Trains a detector, and evaluates it at the end.",
        "concordet train --detector fcos --size nano --loss 'focal+concordance(0.3)' --out runs/digits",
        "concordet train --detector atss --data.name voc --data.root VOC2007 --config run.yaml --out runs/voc",
        "concordet train --config harmonic_loss/faster_rcnn_r50_harmonic --data.root COCO --out runs/harmonic",
        "concordet train --resume runs/voc",
    )
    options.add_argument(
        "--config",
        action="config",
        help="YAML file with settings, such as a run's config.yaml, or the name of a recipe (concordet list recipes)",
    )
    options.add_argument("--out", type=str | None, help="run folder; must not exist yet")
    options.add_argument(
        "--resume",
        nargs="?",
        const="",
        default=None,
        help="continue the run in this folder (or in --out) from its last finished epoch",
    )
    options.add_argument("--json", type=str | None, help="write the figures of the evaluation to this file too")
    options.add_class_arguments(TrainConfig)
    return options


def run(words: list[str]) -> None:
    """Parses and runs."""
    words = with_recipes(words)
    options = parser()
    folder = _folder_to_resume(words)
    if folder is not None:
        # the run's own settings are what is not given again
        known = to_dict(load_config(folder / "config.yaml"))
        options.set_defaults(_dotted(known))
    given = options.instantiate(options.parse_args(words))
    out = folder or (Path(given.out) if given.out else None)
    if out is None:
        raise UsageError("give a folder for the run with --out, such as --out runs/first")
    settings = given.as_dict()
    for name in ("config", "out", "resume", "json"):
        settings.pop(name)
    config = TrainConfig(**settings)
    if given.json is not None:
        if not config.evaluate:
            raise UsageError("--json has the figures of the evaluation, and evaluate is false; leave one of them out")
        writable(Path(given.json).parent)

    from concordet.engine.training.fit import train
    from concordet.engine.training.launch import Launch

    launch = Launch.of(config)
    done = train(config, out, resume=folder is not None, launch=launch)
    if not launch.is_main:
        return
    if given.json is not None:
        write_json(given.json, read_json(done / "evaluation.json"))
    if (done / "evaluation.json").is_file():
        from concordet.cli.tables import print_runs

        print_runs([done])


def _folder_to_resume(words: list[str]) -> Path | None:
    """The folder named by --resume, or by --out where --resume has no value."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--out")
    first.add_argument("--resume", nargs="?", const="", default=None)
    given, _ = first.parse_known_args(words)
    if given.resume is None:
        return None
    folder = given.resume or given.out
    if not folder:
        raise UsageError("--resume needs the folder of the run to continue, such as --resume runs/first")
    return Path(folder)


def _dotted(settings: dict[str, object], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in settings.items():
        if prefix == "" and name in ("data", "optim") and isinstance(value, dict):
            found |= _dotted(value, f"{name}.")
        else:
            found[prefix + name] = value
    return found
