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
        "concordet export runs/voc/checkpoints/best.ckpt --format pt2 --out detector.pt2",
    )
    options.add_argument("checkpoint", type=str, help="Run folder, or checkpoint file.")
    options.add_argument("--out", type=str | None, help="File to write: .onnx, .torchscript or .pt2.")
    options.add_argument(
        "--format", type=str | None, help="Format: onnx, torchscript or pt2; by default from the suffix of --out."
    )
    options.add_argument("--which", type=str, default="last", help="Checkpoint of a run folder: last or best.")
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
    if args.out is None:
        raise UsageError("an output must be given, got none; add --out FILE, such as --out detector.onnx")
    if args.which not in ("last", "best"):
        raise UsageError(unknown("which", args.which, ["last", "best"]))

    from concordet.cli.outputs import check_outputs, messages
    from concordet.export.files import format_of, is_exported
    from concordet.files import write_json

    format_of(args.out, args.format)
    if is_exported(args.checkpoint):
        raise UsageError(f"checkpoint must be that of a run, got the exported file {args.checkpoint}; name the run")
    out = Path(args.out)
    if out.is_file() and out.stat().st_size and not args.force:
        raise ValueError(f"--out must be a new file, got {args.out}; name another one, or add --force")
    check_outputs({"--out": args.out, "--json": args.json}, [args.checkpoint, args.plugins], force=args.force)

    from concordet.engine.predictor import load
    from concordet.export import export_detector

    plugins = [args.plugins] if args.plugins else None
    with messages(args.json):
        predictor = load(
            args.checkpoint, checkpoint=args.which, accelerator="cpu", plugins=plugins, raw_scores=args.raw_scores
        )
        meta = export_detector(
            predictor.model,
            args.out,
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
        print(f"{args.out}: images [b, 3, h, w] to boxes, labels and {scores}; {len(meta['class_names'])} classes")
        print(f"next: concordet predict {args.out} PHOTOS --draw drawn")
    if args.json is not None:
        write_json(args.json, meta)
