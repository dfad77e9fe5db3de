"""``concordet predict``."""

from __future__ import annotations

from pathlib import Path

from concordet.cli.options import Parser


def parser() -> Parser:
    """The options."""
    options = Parser(
        "predict",
        "Detects objects in images, and writes COCO results and pictures.",
        "concordet predict runs/voc photos --out results.json --draw drawn",
        "concordet predict runs/voc/checkpoints/best.ckpt 'photos/*.jpg' --annotations test.json --out results.json",
    )
    options.add_argument("checkpoint", type=str, help="Checkpoint file, or run folder (then its last checkpoint).")
    options.add_argument("images", nargs="+", type=str, help="Image files, folders and patterns.")
    options.add_argument("--out", type=str | None, help="COCO results file to write; - is standard output.")
    options.add_argument("--draw", type=str | None, help="Folder for pictures with the detections.")
    options.add_argument(
        "--threshold",
        "--score_threshold",
        type=float | None,
        help="Lowest score of a detection that is written or drawn; by default all are written, and drawn from the "
        "threshold per class that the evaluation found best (LRP), or from 0.3.",
    )
    options.add_argument("--annotations", type=str | None, help="COCO file with the ids of the images, by file name.")
    options.add_argument(
        "--skip_unreadable", type=bool, default=True, help="Whether to go on after an image that cannot be read."
    )
    options.add_argument("--raw_scores", action="store_true", help="Write the detector's own scores, not calibrated.")
    options.add_argument("--accelerator", type=str, default="auto", help="Device: auto, cpu or gpu.")
    options.add_argument("--plugins", type=str | None, help="Python file or module that registers the loss of the run.")
    options.add_argument("--json", type=str | None, help="Alias of --out.")
    options.add_force()
    return options


def run(words: list[str]) -> None:
    """Parses and runs."""
    from concordet.errors import UsageError

    args = parser().parse_args(words)
    if args.out is not None and args.json is not None:
        raise UsageError(f"json must be left out where --out is given, got {args.json}; they are the same")
    out = args.out or args.json
    if out is None and args.draw is None:
        raise UsageError("an output must be given, got none; add --out FILE for COCO results, or --draw FOLDER")
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        raise UsageError(f"threshold must be between 0 and 1, got {args.threshold}; give another score")

    from concordet.cli.outputs import check_outputs, messages
    from concordet.console import QUIET, note
    from concordet.engine.plugins import import_plugins
    from concordet.engine.prediction import find_images, predict
    from concordet.files import write_json

    paths = find_images(args.images)
    check_outputs({"--out": out}, [args.checkpoint, args.annotations, *paths], force=args.force)
    if args.draw is not None and Path(args.draw).is_file():
        raise UsageError(f"draw must be a folder, got the file {args.draw}; name another")
    import_plugins([args.plugins] if args.plugins else None)
    with messages(out):
        done = predict(
            args.checkpoint,
            paths,
            draw=args.draw,
            annotations=args.annotations,
            threshold=args.threshold,
            skip_unreadable=args.skip_unreadable,
            accelerator=args.accelerator,
            raw_scores=args.raw_scores,
        )
        for reason in done.unreadable.values():
            note(f"skipped: {reason}", least=QUIET)
        scores = "scores calibrated" if done.calibrated else "the detector's own scores"
        print(f"{len(done.results)} detections in {done.images} images, {scores}")
        if done.pictures:
            print(f"pictures: {done.pictures[0].parent}, {done.drawn} detections drawn {done.drawn_from}")
        if out is not None and out != "-":
            print(f"results: {out}")
    if out is not None:
        write_json(out, done.results, indent=None)
