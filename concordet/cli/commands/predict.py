"""``concordet predict``."""

from __future__ import annotations

from pathlib import Path

from concordet.cli.options import Parser


def parser() -> Parser:
    """The options."""
    options = Parser(
        "predict",
        "Detects objects in images and videos, and writes COCO results and pictures with boxes.",
        "concordet predict runs/voc photos --out results.json --draw drawn",
        "concordet predict runs/voc street.mp4 --every 5 --draw drawn --threshold car=0.5,person=0.3",
        "concordet predict runs/voc/checkpoints/best.ckpt 'photos/*.jpg' --annotations test.json --out results.json",
    )
    options.add_argument("checkpoint", type=str, help="Run folder (its last checkpoint), checkpoint or exported file.")
    options.add_argument("images", nargs="+", type=str, help="Images and videos: files, folders or patterns.")
    options.add_argument("--out", type=str | None, help="COCO results file to write; - is standard output.")
    options.add_argument(
        "--draw",
        type=str | None,
        help="Folder for images and videos with the detections; if it is not empty, the next free name.",
    )
    options.add_argument(
        "--threshold",
        "--score_threshold",
        type=str | None,
        help="Lowest score that is written or drawn: a number, or one per class, such as cat=0.5,dog=0.3. By default "
        "all "
        "detections are written, and those above the best threshold of their class in the evaluation (LRP), or above "
        "0.3, are drawn.",
    )
    options.add_argument(
        "--class_agnostic",
        action="store_true",
        help="Keep only one of several overlapping boxes (IoU above 0.5), even if their classes differ.",
    )
    options.add_argument("--every", type=int, default=1, help="Use every N-th frame of a video.")
    options.add_argument(
        "--annotations", type=str | None, help="COCO file from which to take the image ids, by file name."
    )
    options.add_argument(
        "--skip_unreadable",
        type=bool,
        default=True,
        help="Whether to skip images that cannot be read, instead of stopping.",
    )
    options.add_argument("--raw_scores", action="store_true", help="Do not calibrate the scores.")
    options.add_argument("--accelerator", type=str, default="auto", help="Device: auto, cpu or gpu.")
    options.add_argument("--plugins", type=str | None, help="Python file or module that registers the loss of the run.")
    options.add_argument("--json", type=str | None, help="The same as --out.")
    options.add_force()
    return options


def parse_threshold(text: str) -> float | dict[str, float]:
    """A score, or scores by class.

    Raises:
        UsageError: it is neither, or a score is not between 0 and 1.

    Example:
        >>> parse_threshold("0.4"), parse_threshold("cat=0.5,dog=0.3")
        (0.4, {'cat': 0.5, 'dog': 0.3})
    """
    from concordet.errors import UsageError

    pairs = [("", text)] if "=" not in text else [word.rpartition("=")[::2] for word in text.split(",")]
    scores: dict[str, float] = {}
    for name, value in pairs:
        try:
            score = float(value)
        except ValueError:
            score = -1.0
        if not 0 <= score <= 1:
            raise UsageError(
                f"threshold must be between 0 and 1, got {value}; give a score, or scores of classes such as cat=0.5"
            )
        scores[name.strip()] = score
    return scores[""] if "=" not in text else scores


def run(words: list[str]) -> None:
    """Parses and runs."""
    from concordet.errors import UsageError

    args = parser().parse_args(words)
    if args.out is not None and args.json is not None:
        raise UsageError(f"json must be left out where --out is given, got {args.json}; they are the same")
    out = args.out or args.json
    if out is None and args.draw is None:
        raise UsageError("an output must be given, got none; add --out FILE for COCO results, or --draw FOLDER")
    threshold = None if args.threshold is None else parse_threshold(args.threshold)
    if args.every < 1:
        raise UsageError(f"every must be at least 1, got {args.every}; 1 takes every frame")

    from concordet.cli.outputs import check_outputs, messages
    from concordet.console import QUIET, note
    from concordet.engine.prediction import find_images, predict
    from concordet.errors import counted
    from concordet.files import write_json

    paths = find_images(args.images, videos=args.annotations is None)
    check_outputs({"--out": out}, [args.checkpoint, args.annotations, args.plugins, *paths], force=args.force)
    if args.draw is not None and Path(args.draw).is_file():
        raise ValueError(f"draw must be a folder, got the file {args.draw}; name another")
    with messages(out):
        done = predict(
            args.checkpoint,
            paths,
            draw=args.draw,
            annotations=args.annotations,
            threshold=threshold,
            skip_unreadable=args.skip_unreadable,
            accelerator=args.accelerator,
            raw_scores=args.raw_scores,
            class_agnostic=args.class_agnostic,
            every=args.every,
            plugins=[args.plugins] if args.plugins else None,
        )
        for reason in done.unreadable.values():
            note(f"skipped: {reason}", min_verbosity=QUIET)
        scores = "calibrated scores" if done.calibrated else "raw scores"
        print(f"{counted(len(done.results), 'detection')} in {counted(done.images, 'image')}, {scores}")
        if done.pictures:
            drawn = f"{counted(done.drawn, 'detection')} drawn {done.drawn_from}"
            print(f"pictures: {done.pictures[0].parent}, {drawn}")
        if out is not None and out != "-":
            print(f"results: {out}")
    if out is not None:
        write_json(out, done.results, indent=None)
