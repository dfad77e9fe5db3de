"""Trains one configuration with several losses and seeds, and reports mean and spread of every figure.

    python studies/study.py examples/digits.yaml --losses default rank_sort --seeds 5 --name digits
    python studies/study.py examples/bccd.yaml --losses default rank_sort --set data.root=BCCD --name bccd

Writes studies/results/NAME.csv (a row a run) and NAME.md (the table).  Runs lie in runs/study-NAME; one that is
finished is not trained again, so the study can be interrupted and continued.  Losses alternate within a seed, so that a
drift of the machine's speed meets all of them alike.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

from concordet.benchmark.results import write_table
from concordet.files import read_json
from concordet.measures.metrics import METRICS

RESULTS = Path(__file__).parent / "results"


def run(config: str, loss: str, seed: int, settings: list[str], folder: Path, threads: int) -> dict:
    """Figures of one run, trained unless its folder already holds an evaluation."""
    result = folder / "evaluation.json"
    if not result.exists():
        words = ["train", "--config", config, "--loss", loss, "--seed", str(seed), "--out", str(folder)]
        words += [word for setting in settings for word in ("--" + setting.split("=", 1)[0], setting.split("=", 1)[1])]
        if folder.exists():
            words.append("--resume")
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run([sys.executable, "-m", "concordet", *words], check=True, env=environment)
    return read_json(result)["metrics"]


def spread(values: list[float], form: str) -> str:
    """Mean, with the standard deviation where there are several values."""
    mean = format(statistics.mean(values), form)
    return mean if len(values) == 1 else f"{mean} ± {format(statistics.stdev(values), form.lstrip('+'))}"


def table(rows: list[dict], losses: list[str]) -> str:
    """Markdown: mean and standard deviation over seeds, and the paired difference to the first loss."""
    seeds = sorted({row["seed"] for row in rows})
    lines = ["| figure | " + " | ".join(losses) + " |", "|---|" + "---|" * len(losses)]
    for metric in METRICS:
        cells, first = [], None
        for loss in losses:
            values = [next(r for r in rows if r["loss"] == loss and r["seed"] == s).get(metric.key) for s in seeds]
            if any(v is None for v in values):
                cells.append("–")
                continue
            shown = [v * metric.scale for v in values]
            cell = spread(shown, f".{metric.decimals}f")
            if first is not None and len(seeds) > 1:
                cell += f" ({spread([b - a for a, b in zip(first, shown, strict=True)], f'+.{metric.decimals}f')})"
            first = first or shown
            cells.append(cell)
        lines.append(f"| {metric.title} {metric.arrow} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Parses, trains, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file of a run")
    parser.add_argument(
        "--losses", nargs="+", required=True, help="names; the first is what the others are compared with"
    )
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0..N-1")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings on top of the configuration"
    )
    parser.add_argument("--name", required=True, help="name of the result files")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads a run")
    options = parser.parse_args()
    rows = []
    for seed in range(options.seeds):
        for loss in options.losses:
            folder = Path("runs") / f"study-{options.name}" / f"{loss.replace('(', '-').replace(')', '')}-{seed}"
            figures = run(options.config, loss, seed, options.set, folder, options.threads)
            scalars = {k: v for k, v in figures.items() if isinstance(v, int | float) or v is None}
            rows.append({"loss": loss, "seed": seed, **scalars})
    command = f"python studies/study.py {options.config} --losses {' '.join(map(repr, options.losses))}"
    what = (
        f"`{command} --seeds {options.seeds} --name {options.name}`: mean ± standard deviation, {options.seeds} seeds"
    )
    what += " (paired difference to the first)" if options.seeds > 1 else ""
    write_table(RESULTS / f"{options.name}.csv", rows, table(rows, options.losses), what, options.threads)
    print(table(rows, options.losses))


if __name__ == "__main__":
    main()
