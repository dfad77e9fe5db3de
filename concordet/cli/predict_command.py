"""``concordet predict``."""

from __future__ import annotations

import sys

from concordet.cli.options import Parser


def parser() -> Parser:
    """The options."""
    options = Parser(
        "predict",
        "Detects objects in images, as COCO results and as pictures.",
        "concordet predict runs/voc photos --out results.json --draw drawn",
        "concordet predict runs/voc/checkpoints/best.ckpt 'photos/*.jpg' --annotations test.json --out results.json",
    )
    options.add_argument("checkpoint", type=str, help="checkpoint file, or run folder (its last one)")
    options.add_argument("images", nargs="+", type=str, help="image files, folders, patterns")
    options.add_argument("--out", type=str | None, help="COCO results file to write")
    options.add_argument("--draw", type=str | None, help="folder for pictures with the detections drawn in")
    options.add_argument("--annotations", type=str | None, help="COCO file with the images' ids, by file name")
    options.add_argument(
        "--score_threshold",
        type=float | None,
        help="least score of a drawn detection; by default each class's best by LRP in the run's evaluation, or 0.3",
    )
    options.add_argument("--skip_unreadable", type=bool, default=False, help="leave unreadable images out")
    options.add_argument("--accelerator", type=str, default="auto", help="auto, cpu or gpu")
    options.add_argument("--json", type=str | None, help="the same as --out")
    return options


def run(words: list[str]) -> None:
    """Parses and runs."""
    from concordet.errors import UsageError

    given = parser().parse_args(words)
    out = given.out or given.json
    if out is None and given.draw is None:
        raise UsageError("nothing to write: give --out FILE for COCO results, or --draw FOLDER for pictures")
    if given.score_threshold is not None and not 0 <= given.score_threshold <= 1:
        raise UsageError(f"score_threshold must be in 0..1, not {given.score_threshold}")

    from concordet.engine.prediction import predict

    done = predict(
        given.checkpoint,
        given.images,
        out=out,
        draw=given.draw,
        annotations=given.annotations,
        score_threshold=given.score_threshold,
        skip_unreadable=given.skip_unreadable,
        accelerator=given.accelerator,
    )
    for why in done.unreadable.values():
        print(f"left out: {why}", file=sys.stderr)
    print(f"{len(done.results)} detections in {done.images} images")
    if out is not None:
        print(f"results: {out}")
    if given.draw is not None:
        print(f"pictures: {given.draw}")
