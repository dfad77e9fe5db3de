"""Time and memory of the ranking losses compared with focal loss, a loop over positives and bucketing.

Forward and backward passes over synthetic logits, for several numbers of logits and shares of positives; on a CPU by
PyTorch alone and, where it is installed, by Numba.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from concordet.benchmark.memory import peak_mb, reset_peak
from concordet.benchmark.new_process import call_in_new_process
from concordet.benchmark.options import Parser, as_count, as_device, as_seconds, as_share, check_files
from concordet.benchmark.results import environment, read_rows, table, with_quartiles, write_results
from concordet.benchmark.synthetic import LOOPED, Data, Options, loop_over_positives
from concordet.files import free_name
from concordet.losses import functional
from concordet.ranking.backend_torch import compiled_for, use_backend

FOCAL: Final = "torchvision focal"
"""Name of the case that others are compared with."""
LOOP: Final = "AP loop"


def _focal(data: Data) -> Tensor:
    from torchvision.ops import sigmoid_focal_loss

    return sigmoid_focal_loss(data.logits, data.targets, reduction="sum")


def _rank_sort(data: Data, method: functional.Method) -> Tensor:
    ranking, sorting = functional.rank_sort_loss(
        data.logits, data.labels, data.quality, method=method, n_positives=len(data.loc_errors)
    )
    return ranking + sorting


CASES: Final[dict[str, Callable[[Data], Tensor]]] = {
    FOCAL: _focal,
    "AP exact": lambda data: functional.ap_loss(
        data.logits, data.labels, method="exact", n_positives=len(data.loc_errors)
    ),
    "aLRP exact": lambda data: torch.stack(functional.alrp_loss(data.logits, data.labels, data.loc_errors)).sum(),
    "NDCG exact": lambda data: functional.ndcg_loss(data.logits, data.labels, n_positives=len(data.loc_errors)),
    "RS exact": lambda data: _rank_sort(data, "exact"),
    "AP bucketed": lambda data: functional.ap_loss(data.logits, data.labels, method="bucketed"),
    "RS bucketed": lambda data: _rank_sort(data, "bucketed"),
}
COMPILED: Final = {case.replace("exact", "Numba"): case for case in CASES if "exact" in case}
"""Cases that run by Numba as well, on a CPU where it is installed; all others run without it."""


def measure(
    n: int, share: float, *, budget: float, threads: int, loop: bool, device: str = "cpu"
) -> list[dict[str, Any]]:
    """Rows of one cell of the grid: forward and backward passes of all losses in turn until the budget is spent.

    Args:
        n: Number of logits.
        share: Fraction of positives.
        budget: Seconds.
        threads: PyTorch threads.
        loop: Whether to time the loop over positives too.
        device: "cpu" or "cuda".

    Returns:
        One row per loss: wall time in ms, the shortest processor time, and ``ratio``: the median and the quartiles over
        rounds of its time as a multiple of focal loss's in the same round (processor time on a CPU, where other
        processes disturb it less, wall time on a GPU).
    """
    torch.set_num_threads(threads)
    data = Data.make(n, share, device=device)
    cases = [*CASES, *(COMPILED if compiled_for(data.logits) else ())]
    runs: dict[str, list[tuple[float, float]]] = {case: [] for case in cases}
    peaks = {}
    for case in cases:  # warm-up, and memory per loss
        reset_peak(device)
        _run(case, data)
        peaks[case] = peak_mb(device)
    start = time.perf_counter()
    while time.perf_counter() - start < budget or len(runs[FOCAL]) < 5:
        for case in cases:
            slow = "bucketed" in case and len(runs[case]) >= 5
            if not slow:
                runs[case].append(_run(case, data))
    if loop:
        positives = int(data.labels.sum())
        visited = min(LOOPED, positives)
        clock, cpu = time.perf_counter(), time.process_time()
        loop_over_positives(data, visited=visited)
        _wait(device)
        scale = positives / visited
        runs[LOOP] = [((time.perf_counter() - clock) * scale, (time.process_time() - cpu) * scale)]
    compared = 0 if device != "cpu" else 1
    focal = [run[compared] for run in runs[FOCAL]]
    rows = []
    for case, times in runs.items():
        wall = torch.tensor([w for w, _ in times], dtype=torch.float64) * 1e3
        # the loop runs once, after all rounds
        others = [statistics.median(focal)] if case == LOOP else focal
        rounds = [run[compared] / other for run, other in zip(times, others, strict=False)]
        ratio = torch.tensor(rounds, dtype=torch.float64)
        rows.append(
            {
                "logits": n,
                "positives": int(data.labels.sum()),
                "case": case,
                "runs": len(times),
                "median_ms": round(float(wall.median()), 3),
                "q25_ms": round(float(wall.quantile(0.25)), 3),
                "q75_ms": round(float(wall.quantile(0.75)), 3),
                "min_ms": round(float(wall.min()), 3),
                "cpu_ms": round(min(c for _, c in times) * 1e3, 3),
                "ratio": round(float(ratio.median()), 3),
                "ratio_q25": round(float(ratio.quantile(0.25)), 3),
                "ratio_q75": round(float(ratio.quantile(0.75)), 3),
                "peak_mb": round(peaks.get(case, 0)),
            }
        )
    return rows


def measure_large(n: int, positives: int, *, threads: int) -> list[dict[str, Any]]:
    """One forward and backward of exact AP and RS at a size that only linear memory can hold."""
    torch.set_num_threads(threads)
    data = Data.make(n, positives / n)
    rows = []
    for case in ("AP exact", "RS exact", *(("AP Numba", "RS Numba") if compiled_for(data.logits) else ())):
        _run(case, Data.make(1000, 0.01))  # compiles, imports
        reset_peak()
        wall, cpu = _run(case, data)
        rows.append(
            {"logits": n, "positives": positives, "case": case, "runs": 1, "median_ms": round(wall * 1e3, 1)}
            | {"cpu_ms": round(cpu * 1e3, 1), "peak_mb": round(peak_mb())}
        )
    return rows


def _run(case: str, data: Data) -> tuple[float, float]:
    data.logits.grad = data.loc_errors.grad = None
    device = data.logits.device.type
    _wait(device)
    backend = "numba" if case in COMPILED else "torch" if device == "cpu" else "auto"
    clock, cpu = time.perf_counter(), time.process_time()
    with use_backend(backend):
        CASES[COMPILED.get(case, case)](data).backward()
    _wait(device)
    return time.perf_counter() - clock, time.process_time() - cpu


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def markdown(rows: list[dict[str, str]]) -> str:
    """The grid as a Markdown table: each case's time as a multiple of focal loss's, median (quartiles) of all rounds.

    Args:
        rows: Rows of a results file.

    Example:
        >>> row = {"logits": "1000", "positives": "10", "ratio": "1", "ratio_q25": "1", "ratio_q75": "1"}
        >>> row |= {"median_ms": "2.0", "peak_mb": "300"}
        >>> ap = row | {"case": "AP exact", "ratio": "1.5", "ratio_q25": "1.4", "ratio_q75": "1.62"}
        >>> print(markdown([row | {"case": "torchvision focal"}, ap]))
        | logits | positives | focal, ms | AP exact | peak MB |
        |---:|---:|---:|---:|---:|
        | 1,000 | 10 | 2.0 | 1.50 (1.40–1.62) | 300 |
    """
    cases = [case for case in dict.fromkeys(row["case"] for row in rows) if case != FOCAL]
    lines = []
    for n, positives in dict.fromkeys((row["logits"], row["positives"]) for row in rows):
        cell = {row["case"]: row for row in rows if (row["logits"], row["positives"]) == (n, positives)}
        ratios = [_ratio(cell[case]) if case in cell else "" for case in cases]
        peak = max(int(row["peak_mb"]) for row in cell.values())
        lines.append([f"{int(n):,}", f"{int(positives):,}", f"{float(cell[FOCAL]['median_ms']):.1f}", *ratios, peak])
    return table(["logits", "positives", "focal, ms", *cases, "peak MB"], lines, text_columns=0)


def _ratio(row: dict[str, str]) -> str:
    """One cell: the loop over positives, which is timed once and scaled up, has no quartiles."""
    columns = ("ratio", "ratio_q25", "ratio_q75")
    once = row[columns[1]] == row[columns[2]]
    return f"{float(row['ratio']):.0f}" if once else with_quartiles(row, *columns)


def run_grid(options: Options) -> list[dict[str, Any]]:
    """Measures every cell of the grid in a new process."""
    rows: list[dict[str, Any]] = []
    for n in options.logits:
        for share in options.shares:
            cell = call_in_new_process(
                "concordet.benchmark.losses:measure",
                f"{n} logits",
                n=n,
                share=share,
                budget=options.budget,
                threads=options.threads,
                loop=n >= 100_000,
                device=options.device,
            )
            rows += cell
            times = ", ".join(f"{row['case']} {row['median_ms']:.1f} ms ({row['ratio']:.2f})" for row in cell)
            print(f"{n} logits, {share:.1%} positives: {times}", flush=True)
    return rows


STUDIES: Final[dict[str, Callable[[Options], list[dict[str, Any]]]]] = {
    "grid": run_grid,
    "large": lambda options: measure_large(100_000_000, 10_000, threads=options.threads),
}


def main(options: Options, json_out: Path | None = None) -> list[dict[str, Any]]:
    """Runs a study, writes its rows to ``options.out`` (and ``json_out``) and returns them."""
    measured_in = {**environment(options.device), "threads": str(options.threads)}
    rows = STUDIES[options.study](options)
    write_results(options.out, json_out, rows, measured_in)
    return rows


def run(words: list[str]) -> None:
    """``concordet benchmark losses``."""
    default = Options()
    parser = Parser("concordet benchmark losses", __doc__ or "", "--logits 100000 --shares 0.01 --budget 1")
    parser.add_argument(
        "--study", choices=list(STUDIES), default=default.study,
        help="Grid of sizes, or one large case of 100 million logits (default: grid).",
    )  # fmt: skip
    parser.add_argument(
        "--logits", type=as_count, nargs="+", default=default.logits, metavar="N", help="Numbers of logits."
    )
    parser.add_argument(
        "--shares",
        type=as_share,
        nargs="+",
        default=default.shares,
        metavar="NUMBER",
        help="Shares of positives, 0 to 1.",
    )
    parser.add_argument(
        "--threads", type=as_count, default=default.threads, metavar="N", help="Number of PyTorch threads (default: 2)."
    )
    parser.add_argument(
        "--budget", type=as_seconds, default=default.budget, metavar="SECONDS", help="Time per cell (default: 3)."
    )
    parser.add_argument(
        "--device", type=as_device, default=default.device, help="cpu, or cuda for the grid on a GPU (default: cpu)."
    )
    parser.add_outputs("CSV file to write (default: losses[_STUDY].csv, or the next free name).")
    parser.add_argument("--table", type=Path, metavar="FILE", help="Measure nothing; print this CSV file as a table.")
    values = vars(parser.parse_args(words))
    suffix = "" if values["study"] == "grid" else f"_{values['study']}"
    out = values.pop("out") or free_name(f"losses{suffix}.csv")
    json_out = values.pop("json")
    check_files(out, json_out, force=values.pop("force"))
    if source := values.pop("table"):
        print(markdown(read_rows(source, "case", "concordet benchmark losses")))
        return
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    options = Options(**(asdict(default) | values | {"out": out}))
    main(options, json_out)
    if options.study == "grid":
        print(markdown(read_rows(out)))
    print(f"written to {out}")
