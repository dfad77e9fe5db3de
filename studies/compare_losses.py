"""Trains one configuration with several losses and seeds, and reports mean and spread of every metric.

    python -m studies.compare_losses examples/digits.yaml --losses default rank_sort --seeds 5 --name digits
    python -m studies.compare_losses examples/bccd.yaml --losses default rank_sort --set data.root=BCCD --name bccd

Writes studies/results/NAME.csv, one row per run. Runs are in runs/study-NAME; a finished run is not trained again, so a
study can be interrupted and continued. Losses alternate within a seed, so that a drift of the machine's speed affects
all of them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from concordet.benchmark.results import environment, read_rows, write_rows
from concordet.benchmark.results import table as markdown_table
from concordet.calibration.evaluation import METRICS as CALIBRATED
from concordet.files import read_json
from concordet.measures.metrics import METRICS

RESULTS = Path(__file__).parent / "results"
OF_CALIBRATION = {*CALIBRATED, "AIC"}


def run(config: str, loss: str, seed: int, settings: list[str], folder: Path, threads: int) -> dict[str, Any]:
    """Metrics of one run, which is trained unless its folder already has an evaluation."""
    result = folder / "evaluation.json"
    if not result.exists():
        words = ["train", "--config", config, "--loss", loss, "--seed", str(seed), "--out", str(folder)]
        words += [word for setting in settings for word in ("--" + setting.split("=", 1)[0], setting.split("=", 1)[1])]
        if folder.exists():
            words.append("--resume")
        variables = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run([sys.executable, "-m", "concordet", *words], check=True, env=variables)
    return read_json(result)["metrics"]


def spread(values: list[float], form: str) -> str:
    """Mean, with the standard deviation where there are several values."""
    mean = format(statistics.mean(values), form)
    return mean if len(values) == 1 else f"{mean} ± {format(statistics.stdev(values), form.lstrip('+'))}"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: mean and standard deviation over seeds, and the paired difference to the first loss.

    Errors of calibration are left out: ``studies.calibration`` compares them before and after it.

    Args:
        rows: Rows of a results file.
    """
    losses, seeds = (list(dict.fromkeys(row[key] for row in rows)) for key in ("loss", "seed"))
    lines = []
    for metric in METRICS:
        if metric.is_timing or metric.key in OF_CALIBRATION or metric.key not in rows[0]:
            continue
        first: list[float] | None = None
        cells = []
        for loss in losses:
            own = {row["seed"]: row[metric.key] for row in rows if row["loss"] == loss}
            if any(own.get(seed) in (None, "") for seed in seeds):
                cells.append("–")
                continue
            shown = [float(own[seed]) * metric.scale for seed in seeds]
            cell = spread(shown, f".{metric.decimals}f")
            if first is not None and len(seeds) > 1:
                cell += f" ({spread([b - a for a, b in zip(first, shown, strict=True)], f'+.{metric.decimals}f')})"
            first = first or shown
            cells.append(cell)
        if set(cells) != {"–"}:
            lines.append([f"{metric.title} {metric.arrow}", *cells])
    return markdown_table(["metric", *losses], lines)


def what(name: str, config: str) -> str:
    """Command and meaning of a table, from its rows."""
    rows = read_rows(RESULTS / f"{name}.csv")
    losses, seeds = (list(dict.fromkeys(row[key] for row in rows)) for key in ("loss", "seed"))
    command = f"python -m studies.compare_losses {config} --losses {' '.join(map(repr, losses))}"
    if len(seeds) == 1:
        return f"`{command} --name {name}`: one seed"
    meaning = f"mean ± standard deviation over {len(seeds)} seeds (paired difference to the first loss)"
    return f"`{command} --seeds {len(seeds)} --name {name}`: {meaning}"


def main() -> None:
    """Parses the command line, trains and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file of a run")
    parser.add_argument("--losses", nargs="+", required=True, help="losses; the others are compared with the first")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, which are 0, 1, ... (default: 1)")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings that replace those of the configuration"
    )
    parser.add_argument("--name", required=True, help="name of the results file")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads per run")
    options = parser.parse_args()
    measured_in = {**environment(), "threads": str(options.threads)}
    rows = []
    for seed in range(options.seeds):
        for loss in options.losses:
            folder = Path("runs") / f"study-{options.name}" / f"{loss.replace('(', '-').replace(')', '')}-{seed}"
            metrics = run(options.config, loss, seed, options.set, folder, options.threads)
            scalars = {k: v for k, v in metrics.items() if isinstance(v, int | float) or v is None}
            rows.append({"loss": loss, "seed": seed, **scalars})
    write_rows(RESULTS / f"{options.name}.csv", rows, measured_in)
    print(table(rows))


if __name__ == "__main__":
    main()
