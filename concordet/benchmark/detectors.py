"""Time of a training step of every detector: coupled and ranking losses compared with the default loss.

A step is a forward pass, a backward pass and an update by plain gradient descent, on digit scenes. Losses take turns,
round by round, and each loss is compared with the default loss in the same round, so that a drift of the machine's
speed affects all of them. The losses are also timed separately, on the same predictions, since the time of a step
varies by more than they cost. On a CPU, processor time is measured, summed over threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from concordet.assigned import IGNORED, Assigned
from concordet.benchmark.new_process import call_in_new_process
from concordet.benchmark.options import Parser, as_count, as_device, check_files
from concordet.benchmark.results import environment, read_rows, table, with_quartiles, write_results
from concordet.errors import UsageError
from concordet.files import free_name

LOSSES: Final = ("rank_sort", "ap", "alrp", "harmonic", "focal+concordance(0.3)")
LOSS_ROUNDS: Final = 6
"""Rounds of the losses alone for each round of steps."""

SQUARE: Final = {"ssd": 300, "dssd": 320, "refinedet": 320}
"""Image side of detectors that take images of one size only, at full size."""


@dataclass(frozen=True)
class Options:
    """Settings of the benchmark.

    Attributes:
        side: Side of the images in pixels; None is 256 at full size (300 or 320 for the SSD family) and 128 at nano
            size.
        classes: Number of classes; 80 as in COCO.
    """

    detectors: tuple[str, ...]
    losses: tuple[str, ...] = LOSSES
    size: Literal["full", "nano"] = "full"
    side: int | None = None
    batch: int = 2
    classes: int = 80
    rounds: int = 7
    threads: int = 2
    device: str = "cpu"
    out: Path = Path("detectors.csv")


def side_of(detector: str, options: Options) -> int:
    """Side of a detector's images."""
    if options.side is not None:
        return options.side
    return 128 if options.size == "nano" else SQUARE.get(detector, 256)


def step(model: nn.Module, images: list[Tensor], targets: list[dict[str, Any]], device: torch.device) -> float:
    """Seconds of one training step: on a CPU processor time, which other processes affect least; on a GPU wall time."""

    def run() -> None:
        sum(model(images, targets).values()).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=1e-6)
                    parameter.grad = None

    return _timed(run, device)


def _timed(run: Callable[[], None], device: torch.device) -> float:
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    start = clock()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def measure(detector: str, options: Options) -> list[dict[str, Any]]:
    """Rows of one detector, in this process."""
    from concordet.data import load_dataset
    from concordet.detectors import build_detector

    torch.set_num_threads(options.threads)
    device, side = torch.device(options.device), side_of(detector, options)
    scenes = load_dataset("digits", split="train", length=options.batch, size=side, masks=True)
    pairs = [scenes[i] for i in range(options.batch)]
    images = [image.to(device) for image, _ in pairs]
    targets = [{k: v.to(device) if isinstance(v, Tensor) else v for k, v in target.items()} for _, target in pairs]
    models = {}
    for loss in ("default", *options.losses):
        torch.manual_seed(0)
        built = build_detector(
            detector, num_classes=options.classes, size=options.size, loss=loss, image_size=(side, side)
        )
        models[loss] = built.to(device).train()
    used = {loss: classified(model, images, targets) for loss, model in models.items()}
    compared = in_turns(models, images, targets, device, options.rounds, reference="default")
    alone = losses_alone(models, images, targets, device, LOSS_ROUNDS * options.rounds)
    shape = {"detector": detector, "side": side, "rounds": options.rounds}
    return [
        {**shape, "loss": loss, "predictions": used[loss], **times, "losses_ms": alone[loss]}
        for loss, times in compared.items()
    ]


def in_turns(
    models: Mapping[str, nn.Module],
    images: list[Tensor],
    targets: list[dict[str, Any]],
    device: torch.device,
    rounds: int,
    *,
    reference: str,
) -> dict[str, dict[str, float]]:
    """Each model's median step, and quartiles of the ratio to the reference's step in the same round."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds + 1):
        for name, model in models.items():
            taken = step(model, images, targets, device)
            if number:  # the first round warms up
                seconds[name].append(taken)
    base = torch.tensor(seconds[reference], dtype=torch.float64)
    compared = {}
    for name, times in seconds.items():
        own = torch.tensor(times, dtype=torch.float64)
        ratios = own / base
        compared[name] = {
            "median_ms": round(float(own.quantile(0.5)) * 1e3, 1),
            "times_default": round(float(ratios.quantile(0.5)), 3),
            "q25": round(float(ratios.quantile(0.25)), 3),
            "q75": round(float(ratios.quantile(0.75)), 3),
        }
    return compared


def losses_alone(
    models: Mapping[str, Any],
    images: list[Tensor],
    targets: list[dict[str, Any]],
    device: torch.device,
    rounds: int,
) -> dict[str, float]:
    """Each model's median time in ms of the losses of one step, forward and backward to the predictions, in turns.

    A step of seconds varies by more than what losses cost; this is that cost by itself.
    """
    predictions = {name: [_as_leaves(r) for r in model.assigned(images, targets)] for name, model in models.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds + 1):
        for name, model in models.items():
            taken = _timed(partial(_differentiate, model, predictions[name]), device)
            if number:
                times[name].append(taken)
    return {name: round(median(own) * 1e3, 3) for name, own in times.items()}


def _differentiate(model: Any, records: list[Assigned]) -> None:
    sum(model.losses(records).values()).backward()


def _as_leaves(record: Any) -> Any:
    # the same predictions without the network behind them
    changed = {}
    for each in fields(record):
        value = getattr(record, each.name)
        if is_dataclass(value):
            changed[each.name] = _as_leaves(value)
        elif isinstance(value, Tensor) and value.requires_grad:
            changed[each.name] = value.detach().requires_grad_()
    return replace(record, **changed)


@torch.no_grad()
def classified(model: Any, images: list[Tensor], targets: list[dict[str, Any]]) -> int:
    """Number of predictions in the classification losses of all stages, after sampling."""
    return sum(int((record.labels != IGNORED).sum()) for record in model.assigned(images, targets))


def in_own_process(detector: str, options: Options) -> Any:
    """Rows of one detector, measured in a new process."""
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(options).items()}
    function = "concordet.benchmark.detectors:measure_with"
    return call_in_new_process(function, detector, detector=detector, settings=settings)


def measure_with(detector: str, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """:func:`measure` with options from JSON."""
    return measure(detector, Options(**settings))


def markdown(rows: list[dict[str, str]]) -> str:
    """Steps as multiples of the default loss's step, with quartiles, as a Markdown table.

    After the semicolon, what the losses alone take more than the default loss, as a share of its step. The last column
    is the number of predictions of losses that do not sample, as a multiple of the default loss's.

    Example:
        >>> row = {"detector": "fcos", "predictions": "84", "median_ms": "200", "q25": "0.99", "q75": "1.04"}
        >>> default = row | {"loss": "default", "times_default": "1.0", "losses_ms": "1.5"}
        >>> print(markdown([default, row | {"loss": "ap", "times_default": "1.01", "losses_ms": "2.5"}]))
        | detector | ap | predictions |
        |---|---:|---:|
        | fcos | 1.01 (0.99–1.04); +0.5 % | 1.0 × |
    """
    losses = [loss for loss in dict.fromkeys(row["loss"] for row in rows) if loss != "default"]
    lines = []
    for detector in dict.fromkeys(row["detector"] for row in rows):
        own = {row["loss"]: row for row in rows if row["detector"] == detector}
        ratios = [ratio_with_quartiles(own[loss]) + _more(own[loss], own["default"]) for loss in losses]
        seen = max(int(own[loss]["predictions"]) for loss in losses) / int(own["default"]["predictions"])
        lines.append([detector, *ratios, f"{seen:.1f} ×"])
    return table(["detector", *losses, "predictions"], lines)


def _more(row: Mapping[str, str], default: Mapping[str, str]) -> str:
    if not row.get("losses_ms"):
        return ""
    more = float(row["losses_ms"]) - float(default["losses_ms"])
    return f"; {100 * more / float(default['median_ms']):+.1f} %"


def ratio_with_quartiles(row: Mapping[str, str]) -> str:
    """Ratio of a step's time to the reference's, with the quartiles over rounds."""
    return with_quartiles(row, "times_default", "q25", "q75")


def main(options: Options, json_out: Path | None = None) -> list[dict[str, Any]]:
    """Measures every detector, writes the rows to ``options.out`` (and ``json_out``) after each, and returns them."""
    measured_in = {
        "size": options.size,
        "batch": str(options.batch),
        "classes": str(options.classes),
        **environment(options.device),
        "threads": str(options.threads),
        "clock": "processor" if options.device == "cpu" else "wall",
    }
    rows: list[dict[str, Any]] = []
    for detector in options.detectors:
        measured = in_own_process(detector, options)
        rows += measured
        write_results(options.out, json_out, rows, measured_in)
        times = ", ".join(f"{r['loss']} {r['median_ms']:.0f} ms ({r['times_default']:.2f})" for r in measured)
        print(f"{detector}: {times}", flush=True)
    return rows


def run(words: list[str]) -> None:
    """``concordet benchmark detectors``."""
    from concordet.detectors import list_detectors
    from concordet.losses import build_criterion

    default = Options(tuple(list_detectors()))
    parser = Parser("concordet benchmark detectors", __doc__ or "", "--size nano --detectors fcos atss")
    parser.add_argument(
        "--detectors",
        nargs="+",
        choices=default.detectors,
        default=default.detectors,
        metavar="NAME",
        help="Detectors (default: all).",
    )
    parser.add_argument(
        "--losses", nargs="+", default=default.losses, metavar="NAME", help="Losses to compare with the default one."
    )
    parser.add_argument(
        "--size", choices=("full", "nano"), default=default.size, help="Size of the detectors (default: full)."
    )
    parser.add_argument("--side", type=as_count, metavar="PIXELS", help="Side of the images (default: 256, nano 128).")
    parser.add_argument(
        "--batch", type=as_count, default=default.batch, metavar="N", help="Images per step (default: 2)."
    )
    parser.add_argument(
        "--classes", type=as_count, default=default.classes, metavar="N", help="Number of classes (default: 80)."
    )
    parser.add_argument(
        "--rounds", type=as_count, default=default.rounds, metavar="N", help="Steps per loss (default: 7)."
    )
    parser.add_argument(
        "--threads", type=as_count, default=default.threads, metavar="N", help="Number of PyTorch threads (default: 2)."
    )
    parser.add_argument("--device", type=as_device, default=default.device, help="cpu or cuda (default: cpu).")
    parser.add_outputs("CSV file to write (default: detectors.csv, or the next free name).")
    parser.add_argument("--table", type=Path, metavar="FILE", help="Measure nothing; print this CSV file as a table.")
    values = vars(parser.parse_args(words))
    if source := values.pop("table"):
        print(markdown(read_rows(source, "detector", "concordet benchmark detectors")))
        return
    json_out = values.pop("json")
    out = values["out"] = values["out"] or free_name(default.out)
    check_files(out, json_out, force=values.pop("force"))
    for loss in values["losses"]:
        try:
            build_criterion(loss)
        except ValueError as error:
            raise UsageError(str(error)) from error
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    main(Options(**values), json_out)
    print(markdown(read_rows(out)))
    print(f"written to {out}")
