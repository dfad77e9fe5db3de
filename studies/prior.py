"""Does it matter for a ranking loss where scores start? Rank & Sort with classifiers that start at 0.5 and at 0.01.

    python -m studies.prior

A ranking loss sees only differences of logits, so the published prior of 0.01, which keeps focal loss stable at first,
only sets where scores are. Trains the demonstration's detector with five seeds and both priors. Writes
studies/results/prior.csv; runs are in runs/prior, and a finished run is not trained again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from concordet.benchmark.results import environment, write_rows
from concordet.benchmark.results import table as markdown_table
from concordet.engine.config import TrainConfig
from concordet.engine.demo import DEMO
from concordet.engine.training import fit as training
from concordet.files import read_json
from concordet.measures.metrics import METRICS
from studies.compare_losses import spread

RESULTS = Path(__file__).parent / "results" / "prior.csv"
RUNS = Path("runs") / "prior"
SEEDS, PRIORS = range(5), (0.01, 0.5)
WHAT = (
    "`python -m studies.prior`: rank_sort, nano ATSS on the digit scenes of the demo; an initial score of 0.5 minus "
    f"one of 0.01, mean ± standard deviation over {len(SEEDS)} seeds; AIC of the scores before calibration"
)
KEYS = ("AP", "AP50", "AP75", "AP90", "beta_img", "beta_cls", "oLRP", "AIC_mean")


def metrics_of(prior: float, seed: int) -> dict[str, Any]:
    """Metrics of a run, with the AIC before calibration; it is trained unless it is finished already."""
    folder = RUNS / f"{prior}-{seed}"
    if not (folder / "evaluation.json").exists():
        training.build_model = beginning_at(prior)
        training.train(replace(DEMO.config, loss="rank_sort", seed=seed), folder)
    evaluation = read_json(folder / "evaluation.json")
    return {**evaluation["metrics"], "AIC_mean": evaluation["calibration"]["before"]["AIC_mean"]}


def beginning_at(prior: float, build: Any = training.build_model) -> Any:
    """``build_model`` with classifiers that start at this score."""

    def build_model(config: TrainConfig, meta: dict[str, Any]) -> nn.Module:
        model = build(config, meta)
        nn.init.constant_(model.head.classification_head.cls_logits.bias, math.log(prior / (1 - prior)))
        return model

    return build_model


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: mean and standard deviation of the difference per seed."""
    lines = []
    for metric in [m for m in METRICS if m.key in KEYS]:
        low, high = ([float(r[metric.key]) * metric.scale for r in rows if float(r["prior"]) == p] for p in PRIORS)
        differences = [b - a for a, b in zip(low, high, strict=True)]
        lines.append([f"{metric.title} {metric.arrow}", spread(differences, f"+.{metric.decimals}f")])
    return markdown_table(["metric", "difference"], lines)


def main() -> None:
    """Trains, compares and writes."""
    RUNS.mkdir(parents=True, exist_ok=True)
    measured_in = {**environment(), "threads": str(torch.get_num_threads())}
    rows = []
    for seed, prior in product(SEEDS, PRIORS):
        metrics = metrics_of(prior, seed)
        rows.append({"prior": prior, "seed": seed, **{key: metrics[key] for key in KEYS}})
    write_rows(RESULTS, rows, measured_in)
    print(table(rows))


if __name__ == "__main__":
    main()
