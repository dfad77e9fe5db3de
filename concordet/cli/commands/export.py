"""``concordet export``."""

from __future__ import annotations

from pathlib import Path

from concordet.cli.options import Parser


def parser() -> Parser:
    """The options."""
    options = Parser(
        "export",
        "Exports a trained detector to one file that takes images and returns boxes, labels and calibrated scores.",
        "concordet export runs/voc --out detector.onnx",
        "concordet export runs/voc --checkpoint best --format pt2      # writes runs/voc/detector.pt2",
    )
    options.add_argument("run", type=str, help="Run folder, or checkpoint file.")
    options.add_argument(
        "--out",
        type=str | None,
        help="File to write: .onnx, .torchscript or .pt2; with --format, by default detector.FORMAT in the run folder.",
    )
    options.add_argument(
        "--format", type=str | None, help="Format: onnx, torchscript or pt2; by default from the suffix of --out."
    )
    options.add_argument(
        "--checkpoint", "--which", type=str, default="last", help="Checkpoint of a run folder: last or best."
    )
    options.add_argument("--raw_scores", action="store_true", help="Do not include calibration.")
    options.add_argument(
        "--candidates",
        action="store_true",
        help="Do not include NMS and calibration; apply them with concordet.export.postprocess.",
    )
    options.add_argument("--plugins", type=str | None, help="Python file or module that registers the loss of the run.")
    options.add_argument("--json", type=str | None, help="JSON file for the metadata; - is standard output.")
    options.add_force()
    return options


def run(words: list[str]) -> None:
    """Parses and runs."""
    from concordet.errors import UsageError, unknown

    args = parser().parse_args(words)
    if args.checkpoint not in ("last", "best"):
        raise UsageError(unknown("checkpoint", args.checkpoint, ["last", "best"]))

    from concordet.cli.outputs import check_outputs, messages
    from concordet.engine.checkpoint import run_of
    from concordet.export.files import FORMATS, check_format, format_of, is_exported
    from concordet.files import write_json

    if is_exported(args.run):
        raise UsageError(f"run must be a run or a checkpoint, got the exported file {args.run}; name its run")
    if args.format is not None:
        check_format(args.format)
    folder = run_of(args.run)
    if args.out is not None:
        out = Path(args.out)
    elif args.format is not None and folder is not None:
        out = folder / f"detector{FORMATS[args.format]}"
    else:
        raise UsageError("an output must be given, got none; add --out FILE, such as --out detector.onnx")
    format_of(out, args.format)
    if out.is_file() and out.stat().st_size and not args.force:
        raise ValueError(f"--out must be a new file, got {out}; name another one, or add --force")
    check_outputs({"--out": out, "--json": args.json}, [args.run, args.plugins], force=args.force)

    from concordet.engine.predictor import load
    from concordet.export import export_detector

    plugins = [args.plugins] if args.plugins else None
    with messages(args.json):
        predictor = load(
            args.run, checkpoint=args.checkpoint, accelerator="cpu", plugins=plugins, raw_scores=args.raw_scores
        )
        meta = export_detector(
            predictor.model,
            out,
            format=args.format,
            class_names=predictor.class_names,
            category_ids=predictor.category_ids,
            thresholds=predictor.thresholds.tolist() if predictor.advised else None,
            calibrator=predictor.calibrator,
            raw=args.candidates,
        )
        scores = "calibrated scores" if meta["calibrator"] is not None else "raw scores"
        if meta["outputs"] == "candidates":
            scores = "candidates: concordet.export.postprocess makes detections of them"
        print(f"{out}: images [b, 3, h, w] to boxes, labels and {scores}; {len(meta['class_names'])} classes")
        print(f"next: concordet predict {out} PHOTOS --draw drawn")
    if args.json is not None:
        write_json(args.json, meta)
