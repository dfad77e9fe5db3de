"""``concordet evaluate``."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from concordet.cli.options import Parser


def parser() -> Parser:
    """The options."""
    options = Parser(
        "evaluate",
        "Evaluates a trained detector on the evaluation data of its run, or on other data.",
        "concordet evaluate runs/voc",
        "concordet evaluate runs/voc/checkpoints/best.ckpt --out runs/voc-best --json metrics.json",
        "concordet evaluate runs/voc --split train",
    )
    options.add_argument("run", type=str, help="Run folder, or a checkpoint in one.")
    options.add_argument(
        "--checkpoint", type=str | None, help="Checkpoint of the run: last, best or a file; by default last."
    )
    options.add_argument(
        "--out",
        type=str | None,
        help="Output folder; by default the run folder, and a folder in it, such as evaluation-best or "
        "evaluation-test, for another checkpoint, another split or raw scores.",
    )
    options.add_argument("--root", type=str | None, help="Folder of the data set; by default the run's.")
    options.add_argument(
        "--split", type=str | None, help="Split to evaluate on; by default the run's evaluation split."
    )
    options.add_argument("--annotations", type=str | None, help="COCO file to evaluate on.")
    options.add_argument("--images", type=str | None, help="Folder with the images of --annotations.")
    options.add_argument("--batch_size", type=int | None, help="Images per batch; by default the run's.")
    options.add_argument("--workers", type=int | None, help="Processes that load images; by default the run's.")
    options.add_argument("--accelerator", type=str, default="auto", help="Device: auto, cpu or gpu.")
    options.add_argument("--averaged", type=bool, default=True, help="Whether to use the averaged weights (EMA).")
    options.add_argument("--raw_scores", action="store_true", help="Do not calibrate the scores.")
    options.add_argument("--plugins", type=str | None, help="Python file or module that registers the loss of the run.")
    options.add_argument("--json", type=str | None, help="JSON file for the metrics; - is standard output.")
    options.add_force()
    return options


def run(words: list[str]) -> None:
    """Parses and runs."""
    args = parser().parse_args(words)

    from concordet.cli.outputs import check_outputs, messages
    from concordet.cli.tables import print_runs
    from concordet.engine.checkpoint import run_of
    from concordet.engine.config import load_config
    from concordet.engine.evaluation import evaluate_run
    from concordet.errors import UsageError
    from concordet.files import write_json

    path = Path(args.run)
    folder = run_of(path)
    if folder is None:
        raise ValueError(
            f"run must be a run folder or a checkpoint in one, got {path}; give the output folder of `concordet train`"
        )
    if path.is_file() and args.checkpoint is not None:
        raise UsageError(f"checkpoint must be left out where a file is evaluated, got {args.checkpoint}; name one")
    checkpoint = str(path) if path.is_file() else args.checkpoint or "last"
    name = Path(checkpoint).stem
    parts = ["" if name == "last" else name, args.split, "raw_scores" if args.raw_scores else ""]
    kind = "-".join(filter(None, parts))
    own = folder / re.sub(r"[^\w.-]", "_", f"evaluation-{kind}") if kind else folder
    out = Path(args.out) if args.out else own
    config = load_config(folder / "config.yaml")
    data = config.data
    if args.annotations is not None and data.path is not None:  # they replace the folder that the run was trained on
        data = replace(data, path=None, name="coco", val_split=None)
    settings = {
        "root" if data.path is None else "path": args.root,
        "val_split": args.split,
        "val_annotations": _from_here(args.annotations),
        "val_images": _from_here(args.images),
        "batch_size": args.batch_size,
        "workers": args.workers,
    }
    data = replace(data, **{name: value for name, value in settings.items() if value is not None})
    replace(config, data=data)  # raises where a value is out of its range
    check_outputs({"--json": args.json}, (args.annotations, args.images, args.root, args.plugins), force=args.force)
    report = evaluate_run(
        folder,
        checkpoint=checkpoint,
        data=data,
        out=out,
        accelerator=args.accelerator,
        averaged=args.averaged,
        raw_scores=args.raw_scores,
        plugins=[args.plugins] if args.plugins else None,
    )
    with messages(args.json):
        print_runs([out])
        print(f"scores: {report['scores']}")
        if out != folder:
            print(f"evaluation: {out}")
    if args.json is not None:
        write_json(args.json, report)


def _from_here(name: str | None) -> str | None:
    """An absolute name where the file exists; other names are relative to the folder of the data set."""
    return name if name is None or not Path(name).exists() else str(Path(name).absolute())
