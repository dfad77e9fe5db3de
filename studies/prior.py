"""Does it matter with a ranking loss where scores begin?  Rank & Sort with classifiers that start at 0.5, not at 0.01.

    python studies/prior.py

A ranking loss sees differences of logits alone, so the published prior, which keeps focal loss stable at first, only
fixes where scores lie.  Trains the demonstration's detector with five seeds and both priors.  Writes
studies/results/prior.csv and prior.md; runs lie in runs/prior, and one that is finished is not trained again.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, cast

import torch
from study import spread
from torch import nn

from concordet.benchmark.results import write_table
from concordet.engine.config import TrainConfig
from concordet.engine.demo import DEMO
from concordet.engine.training import fit as training
from concordet.files import read_json
from concordet.measures.metrics import METRICS

RESULTS = Path(__file__).parent / "results"
RUNS = Path("runs") / "prior"
SEEDS, PRIORS = range(5), (0.01, 0.5)
KEYS = ("AP", "AP50", "AP75", "AP90", "beta_img", "beta_cls", "oLRP", "AIC", "AIC_mean")


def figures(prior: float, seed: int) -> dict[str, Any]:
    """Figures of a run, trained unless it is there."""
    folder = RUNS / f"{prior}-{seed}"
    if not (folder / "evaluation.json").exists():
        training.build_model = beginning_at(prior)
        training.train(replace(DEMO.config, loss="rank_sort", seed=seed), folder)
    return read_json(folder / "evaluation.json")["metrics"]


def beginning_at(prior: float, build: Any = training.build_model) -> Any:
    """``build_model`` whose classifiers give this score at first."""

    def build_model(config: TrainConfig, meta: dict[str, Any]) -> nn.Module:
        model = build(config, meta)
        nn.init.constant_(cast(Any, model).head.classification_head.cls_logits.bias, math.log(prior / (1 - prior)))
        return model

    return build_model


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: mean and standard deviation of each prior, and of their difference seed by seed."""
    lines = ["| figure | 0.01 | 0.5 | difference |", "|---|---|---|---|"]
    for metric in [m for m in METRICS if m.key in KEYS]:
        sides = [[float(r[metric.key]) * metric.scale for r in rows if r["prior"] == p] for p in PRIORS]
        sides.append([b - a for a, b in zip(*sides, strict=True)])
        cells = [spread(v, f"{sign}.{metric.decimals}f") for v, sign in zip(sides, ("", "", "+"), strict=True)]
        lines.append(f"| {metric.title} {metric.arrow} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Trains, compares, writes."""
    RUNS.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed, prior in product(SEEDS, PRIORS):
        found = figures(prior, seed)
        rows.append({"prior": prior, "seed": seed, **{key: found[key] for key in KEYS}})
    what = "`python studies/prior.py`: rank_sort, nano ATSS on the demonstration's digit scenes, mean ± standard "
    what += f"deviation of {len(SEEDS)} seeds by the classifier's first score"
    write_table(RESULTS / "prior.csv", rows, table(rows), what, torch.get_num_threads())
    print(table(rows))


if __name__ == "__main__":
    main()
