"""Time and memory of the ranking losses beside focal loss, a loop over positives and the bucketed ones.

``concordet benchmark losses --out studies/results/losses.csv``; other studies of the losses: ``--study NAME``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from concordet.benchmark import loss_studies
from concordet.benchmark.results import environment, read_rows, write_rows
from concordet.benchmark.synthetic import LOOPED, Data, Options, loop_over_positives
from concordet.files import free_name
from concordet.losses import functional


def _focal(data: Data) -> Tensor:
    from torchvision.ops import sigmoid_focal_loss

    return sigmoid_focal_loss(data.logits, data.targets, reduction="sum")


def _rank_sort(data: Data, method: str) -> Tensor:
    ranking, sorting = functional.rank_sort_loss(
        data.logits, data.labels, data.quality, method=method, n_positives=len(data.loc_errors)
    )
    return ranking + sorting


WHATS: Final[dict[str, Callable[[Data], Tensor]]] = {
    "torchvision focal": _focal,
    "AP exact": lambda data: functional.ap_loss(
        data.logits, data.labels, method="exact", n_positives=len(data.loc_errors)
    ),
    "aLRP exact": lambda data: torch.stack(functional.alrp_loss(data.logits, data.labels, data.loc_errors)).sum(),
    "NDCG exact": lambda data: functional.ndcg_loss(data.logits, data.labels, n_positives=len(data.loc_errors)),
    "RS exact": lambda data: _rank_sort(data, "exact"),
    "AP bucketed": lambda data: functional.ap_loss(data.logits, data.labels, method="bucketed"),
    "RS bucketed": lambda data: _rank_sort(data, "bucketed"),
}


def measure(
    n: int, share: float, *, budget: float, threads: int, loop: bool, device: str = "cpu"
) -> list[dict[str, Any]]:
    """Rows of one cell, in this process: forward and backward of all losses in turn until the budget is spent."""
    torch.set_num_threads(threads)
    data = Data.make(n, share, device=device)
    runs: dict[str, list[tuple[float, float]]] = {what: [] for what in WHATS}
    peaks = {}
    for what in WHATS:  # warm up, and memory by loss
        _forget_peak(device)
        _run(what, data)
        peaks[what] = _peak_mb(device)
    start = time.perf_counter()
    while time.perf_counter() - start < budget or len(runs["torchvision focal"]) < 5:
        for what in WHATS:
            slow = "bucketed" in what and len(runs[what]) >= 5
            if not slow:
                runs[what].append(_run(what, data))
    if loop:
        positives = int(data.labels.sum())
        visited = min(LOOPED, positives)
        clock, cpu = time.perf_counter(), time.process_time()
        loop_over_positives(data, visited=visited)
        _wait(device)
        scale = positives / visited
        runs["AP loop"] = [((time.perf_counter() - clock) * scale, (time.process_time() - cpu) * scale)]
    rows = []
    for what, times in runs.items():
        wall = torch.tensor([w for w, _ in times], dtype=torch.float64) * 1e3
        focal = torch.tensor([w for w, _ in runs["torchvision focal"]], dtype=torch.float64) * 1e3
        rows.append(
            {
                "logits": n,
                "positives": int(data.labels.sum()),
                "what": what,
                "runs": len(times),
                "median_ms": round(float(wall.median()), 3),
                "q25_ms": round(float(wall.quantile(0.25)), 3),
                "q75_ms": round(float(wall.quantile(0.75)), 3),
                "min_ms": round(float(wall.min()), 3),
                "cpu_ms": round(min(c for _, c in times) * 1e3, 3),
                "times_focal": round(float(wall.median() / focal.median()), 2),
                "times_focal_min": round(float(wall.min() / focal.min()), 2),
                "peak_mb": round(peaks.get(what, 0)),
            }
        )
    return rows


def measure_large(n: int, positives: int, *, threads: int) -> list[dict[str, Any]]:
    """One forward and backward of exact AP and RS at a size that only linear memory can hold."""
    torch.set_num_threads(threads)
    data = Data.make(n, positives / n)
    rows = []
    for what in ("AP exact", "RS exact"):
        _forget_peak("cpu")
        wall, cpu = _run(what, data)
        rows.append(
            {"logits": n, "positives": positives, "what": what, "runs": 1, "median_ms": round(wall * 1e3, 1)}
            | {"cpu_ms": round(cpu * 1e3, 1), "peak_mb": round(_peak_mb("cpu"))}
        )
    return rows


def _run(what: str, data: Data) -> tuple[float, float]:
    data.logits.grad = data.loc_errors.grad = None
    device = data.logits.device.type
    _wait(device)
    clock, cpu = time.perf_counter(), time.process_time()
    WHATS[what](data).backward()
    _wait(device)
    return time.perf_counter() - clock, time.process_time() - cpu


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _forget_peak(device: str) -> None:
    """Start the process's peak memory anew, where the system allows it; on a GPU, the device's."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_mb(device: str) -> float:
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def markdown(rows: list[dict[str, str]]) -> str:
    """The grid as a table for the docs: times focal loss's median, with focal's own milliseconds.

    Example:
        >>> row = {"logits": "1000", "positives": "10", "median_ms": "2.0", "times_focal": "1.0", "peak_mb": "300"}
        >>> print(markdown([row | {"what": "torchvision focal"}, row | {"what": "AP exact", "times_focal": "1.5"}]))
        | logits | positives | focal, ms | AP exact | peak MB |
        |---:|---:|---:|---:|---:|
        | 1,000 | 10 | 2.0 | 1.50 | 300 |
    """
    whats = [what for what in dict.fromkeys(row["what"] for row in rows) if what != "torchvision focal"]
    lines = [
        "| " + " | ".join(["logits", "positives", "focal, ms", *whats, "peak MB"]) + " |",
        "|" + "---:|" * (len(whats) + 4),
    ]
    for cell in dict.fromkeys((row["logits"], row["positives"]) for row in rows):
        own = {row["what"]: row for row in rows if (row["logits"], row["positives"]) == cell}
        ratios = [f"{float(own[what]['times_focal']):.2f}" if what in own else "" for what in whats]
        focal = f"{float(own['torchvision focal']['median_ms']):.1f}"
        peak = max(int(row["peak_mb"]) for row in own.values())
        lines.append("| " + " | ".join([f"{int(cell[0]):,}", f"{int(cell[1]):,}", focal, *ratios, str(peak)]) + " |")
    return "\n".join(lines)


def run_grid(options: Options) -> list[dict[str, Any]]:
    """Every cell in a fresh process, so that one's memory is not another's."""
    rows: list[dict[str, Any]] = []
    for n in options.logits:
        for share in options.shares:
            arguments: dict[str, Any] = {"n": n, "share": share, "budget": options.budget}
            arguments |= {"threads": options.threads, "device": options.device}
            loop = n >= 100_000
            code = (
                "import json,sys;from concordet.benchmark.losses import measure;"
                "print(json.dumps(measure(**json.loads(sys.argv[1]))))"
            )
            done = subprocess.run(
                [sys.executable, "-c", code, json.dumps(arguments | {"loop": loop})],
                capture_output=True,
                text=True,
                check=True,
            )
            cell = json.loads(done.stdout.splitlines()[-1])
            rows += cell
            times = ", ".join(f"{row['what']} {row['median_ms']:.1f} ms ({row['times_focal']:.2f})" for row in cell)
            print(f"{n} logits, {share:.1%} positives: {times}", flush=True)
    return rows


def main(options: Options) -> list[dict[str, Any]]:
    """Run a study, write its rows to ``options.out`` and return them."""
    studies: dict[str, Callable[[Options], list[dict[str, Any]]]] = {
        "grid": run_grid,
        "large": lambda options: measure_large(100_000_000, 10_000, threads=options.threads),
        "exactness": loss_studies.exactness,
        "synthetic": loss_studies.synthetic,
        "spearman": loss_studies.spearman,
        "balance": loss_studies.balance,
        "surfaces": loss_studies.surfaces,
    }
    header = {"study": options.study, **environment(options.device), "threads": str(options.threads)}
    rows = studies[options.study](options)
    write_rows(options.out, rows, header)
    return rows


STUDIES: Final = ("grid", "large", "exactness", "synthetic", "spearman", "balance", "surfaces")


def run(words: list[str]) -> None:
    """``concordet benchmark losses``."""
    default = Options()
    parser = argparse.ArgumentParser(
        prog="concordet benchmark losses",
        description=__doc__,
        epilog="example: concordet benchmark losses --logits 100000 --shares 0.01 --budget 1",
    )
    parser.add_argument("--study", choices=STUDIES, default=default.study, help="what to look at (default: grid)")
    parser.add_argument("--logits", type=int, nargs="+", default=default.logits, help="numbers of logits")
    parser.add_argument("--shares", type=float, nargs="+", default=default.shares, help="shares of positives, 0 to 1")
    parser.add_argument("--threads", type=int, default=default.threads, help="PyTorch's threads (default: 2)")
    parser.add_argument("--budget", type=float, default=default.budget, help="seconds for each cell (default: 3)")
    parser.add_argument("--device", default=default.device, help="cpu, or cuda for the grid on a GPU")
    parser.add_argument("--out", type=Path, help="CSV file (default: losses[_STUDY].csv, or the next free name)")
    parser.add_argument("--table", type=Path, metavar="FILE", help="measure nothing: print this file's grid as a table")
    values = vars(parser.parse_args(words))
    suffix = "" if values["study"] == "grid" else f"_{values['study']}"
    out = values.pop("out") or free_name(f"losses{suffix}.csv")
    if table := values.pop("table"):
        print(markdown(read_rows(table, "what", "concordet benchmark losses")))
        return
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    options = Options(**(asdict(default) | values | {"out": out}))
    main(options)
    if options.study == "grid":
        print(markdown(read_rows(out)))
    print(f"written to {out}")
