"""Differences between losses, with intervals that include the variance over seeds and over images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from scipy import stats

from concordet.engine.config import flat
from concordet.measures.bootstrap import MEASURES
from concordet.measures.metrics import BY_KEY, METRICS
from concordet.measures.reading.arrays import Floats
from concordet.study.grid import Cell, Study
from concordet.study.results import draws_of, read_result, result_path
from concordet.study.runner import count_states, failure_file, state_of

DETECTABLE: Final = 0.005
"""Difference in AP, half a point, for which the number of seeds needed is reported."""

POWER: Final = 0.8

SHOWN: Final = (*METRICS, *(BY_KEY[key] for key in ("APs", "APm", "APl", "AP_few", "AP_many")))
"""Metrics of every loss: those of a comparison of runs, and AP by the size and the number of objects."""


def compare_study(study: Study, *, confidence: float = 0.95) -> dict[str, Any]:
    """Compares every loss with the first one, per detector and variant.

    Runs are paired by seed and image. Each bootstrap draw samples seeds and images with replacement, the same images
    for all runs, so that intervals of differences include both sources of variance. Deviations of seeds are multiplied
    by sqrt(n / (n - 1)), since a bootstrap of n values underestimates their standard deviation by this factor. With one
    seed, intervals include the variance over images only. Verdicts are corrected for the number of losses (Holm 1979).

    Args:
        study: A study with some finished runs.
        confidence: Confidence of the intervals, in (0, 1).

    Returns:
        Plain JSON: ``groups``, one per detector and variant, each with ``losses``: the name, the seeds, ``metrics`` and
        ``per_class`` AP (mean, standard deviation and values per seed), ``curve`` (AP by update), ``processor_ms`` per
        update, and ``differences`` of :data:`concordet.measures.bootstrap.MEASURES` (value, low, high, p, verdict:
        better, worse or may be chance); ``seeds_needed`` to see half a point of AP in four of five studies;
        ``settings`` of all runs; ``failures``.

    Example:
        >>> from pathlib import Path
        >>> from concordet.study import Study
        >>> report = compare_study(Study(Path("study"), ("fcos",), ("default", "rank_sort"), seeds=(0, 1)))
        >>> report["reference"], report["states"]["new"]  # no run of the four is finished
        ('default', 4)
    """
    groups = []
    cells = study.cells()
    for detector, variant in dict.fromkeys((cell.detector, cell.settings) for cell in cells):
        own = [c for c in cells if (c.detector, c.settings) == (detector, variant)]
        finished = [c for c in own if state_of(study, c) == "finished"]
        results = {c: read_result(study, c) for c in finished}
        _check_images(study, results)
        draws = {c: draws_of(result) for c, result in results.items()}
        losses = [_loss(loss, {c: r for c, r in results.items() if c.loss == loss}) for loss in study.losses]
        reference = {c.seed: c for c in finished if c.loss == study.losses[0]}
        for entry in losses[1:]:
            pairs = [(reference[c.seed], c) for c in finished if c.loss == entry["loss"] and c.seed in reference]
            entry["n_pairs"] = len(pairs)
            entry["differences"] = _differences(pairs, draws, confidence)
            entry["seeds_needed"] = _seeds_needed(pairs, draws)
        _correct([entry for entry in losses[1:] if entry["differences"]], 1 - confidence)
        groups.append({"detector": detector, "variant": Cell(detector, "", variant, 0).variant, "losses": losses})
    return {
        "reference": study.losses[0],
        "confidence": confidence,
        "n_resamples": study.resamples,
        "settings": {name: value for name, value in flat(study.config).items() if value is not None},
        "groups": groups,
        "failures": [
            {"cell": c.name, "reason": failure_file(study, c).read_text(encoding="utf-8").strip()}
            for c in cells
            if state_of(study, c) == "failed"
        ],
        "states": count_states(study),
    }


def _loss(loss: str, results: dict[Cell, dict[str, Any]]) -> dict[str, Any]:
    reports = [result["metrics"] for result in results.values()]
    classes = dict.fromkeys(name for result in results.values() for name in result["per_class"])
    return {
        "loss": loss,
        "seeds": [cell.seed for cell in results],
        "metrics": _spreads({m.key: [report.get(m.key) for report in reports] for m in SHOWN}),
        "per_class": _spreads({name: [r["per_class"].get(name) for r in results.values()] for name in classes}),
        "curve": _mean_curve([result["curve"] for result in results.values()]),
        "processor_ms": _spreads({"": [r["processor_ms"] for r in results.values()]}).get(""),
        "differences": {},
        "seeds_needed": None,
        "n_pairs": 0,
    }


def _spreads(columns: dict[str, list[Any]]) -> dict[str, Any]:
    """Mean, standard deviation and values of each column that has numbers."""
    report = {}
    for key, values in columns.items():
        numbers = [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]
        if numbers:
            spread = float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None
            report[key] = {"mean": float(np.mean(numbers)), "std": spread, "values": numbers}
    return report


def _mean_curve(curves: Sequence[Sequence[Sequence[float]]]) -> list[dict[str, Any]]:
    """Mean and standard deviation of AP over seeds, at the updates that all of them have."""
    tables = [{int(update): ap for update, ap in curve} for curve in curves]
    shared = sorted(set.intersection(*map(set, tables))) if tables else []
    return [{"update": u} | _spreads({"": [table[u] for table in tables]})[""] for u in shared]


def _check_images(study: Study, results: dict[Cell, dict[str, Any]]) -> None:
    """Raises if runs were evaluated on different images, as their draws would not be paired."""
    first = next(iter(results.values()), None)
    for cell, result in results.items():
        if first is not None and result["images"] != first["images"]:
            raise ValueError(
                f"runs of a study must be evaluated on the same images, got others in {result_path(study, cell)}; "
                "delete that file and its run to train it again"
            )


def _paired(pairs: Sequence[tuple[Cell, Cell]], draws: dict[Cell, Floats]) -> Floats:
    """``[pairs, 1 + draws, measures]`` differences of paired runs."""
    return np.stack([draws[second] - draws[first] for first, second in pairs])


def hierarchical(differences: Floats, seed: int) -> tuple[float, Floats]:
    """The mean difference, and its bootstrap draws over seeds and images.

    Args:
        differences: ``[n, 1 + draws]`` differences of each seed: on all images, and on each draw of images.
        seed: Seed for drawing the seeds.
    """
    n, columns = differences.shape
    by_draw = differences[:, 1:]
    mean = by_draw.mean(0)
    if n == 1:
        return float(differences[0, 0]), mean
    chosen = np.random.default_rng(seed).integers(0, n, (columns - 1, n))
    drawn = np.take_along_axis(by_draw, chosen.T, axis=0).mean(0)
    return float(differences[:, 0].mean()), mean + math.sqrt(n / (n - 1)) * (drawn - mean)


def _differences(pairs: Sequence[tuple[Cell, Cell]], draws: dict[Cell, Floats], confidence: float) -> dict[str, Any]:
    if not pairs:
        return {}
    paired = _paired(pairs, draws)
    report = {}
    for index, name in enumerate(MEASURES):
        value, drawn = hierarchical(paired[:, :, index], seed=0)
        drawn = drawn[np.isfinite(drawn)]
        if not math.isfinite(value) or len(drawn) < 2:
            continue
        spread = float(drawn.std(ddof=1))
        freedom = len(pairs) - 1 if len(pairs) > 1 else math.inf
        p = 2 * float(stats.t.sf(abs(value) / spread, freedom)) if spread > 0 else float(value == 0)
        width = spread * float(stats.t.ppf((1 + confidence) / 2, freedom))
        report[name] = {"value": value, "low": value - width, "high": value + width, "p": p}
    return report


def _seeds_needed(pairs: Sequence[tuple[Cell, Cell]], draws: dict[Cell, Floats]) -> int | None:
    """Number of seeds for 80 % power to detect half a point of AP on these images."""
    if len(pairs) < 2:
        return None
    spread = float(np.std(_paired(pairs, draws)[:, 0, MEASURES.index("AP")], ddof=1))
    return seeds_needed(spread)


def seeds_needed(spread: float, difference: float = DETECTABLE) -> int:
    """Number of paired seeds that a two-sided t-test at 5 % needs to detect a difference with a power of 80 %.

    Args:
        spread: Standard deviation of the difference over seeds.
        difference: Difference to detect, in the same unit.

    Example:
        >>> seeds_needed(0.01), seeds_needed(0.001)
        (34, 3)
    """
    for n in range(2, 10_000):
        shift = difference / spread * math.sqrt(n) if spread > 0 else math.inf
        critical = float(stats.t.ppf(0.975, n - 1))
        if math.isinf(shift) or float(stats.nct.sf(critical, n - 1, shift)) >= POWER:
            return n
    return 10_000


def _correct(entries: Sequence[dict[str, Any]], level: float) -> None:
    """Adds verdicts by Holm's method over the losses of a group, for each measure."""
    for name in MEASURES:
        rows = [entry["differences"][name] for entry in entries if name in entry["differences"]]
        for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
            row["p_corrected"] = p
            better = (row["value"] > 0) == (BY_KEY[name].better == "higher")
            row["verdict"] = "may be chance" if p > level else "better" if better else "worse"


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for multiple tests: m p of the smallest, (m - 1) p of the next, ..., made non-decreasing.

    Example:
        >>> [round(p, 6) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def sentence(report: dict[str, Any]) -> str:
    """The result of a study in one sentence, with a clause per detector and variant.

    Example:
        >>> row = {"value": 0.012, "low": 0.002, "high": 0.022, "verdict": "better"}
        >>> entry = {"loss": "rank_sort", "n_pairs": 5, "differences": {"AP": row}}
        >>> group = {"detector": "atss", "variant": "", "losses": [{"loss": "default"}, entry]}
        >>> sentence({"reference": "default", "groups": [group]})
        'atss: rank_sort is better, 1.2 points of AP above default (0.2 to 2.2) over 5 seeds.'
    """
    parts = []
    for group in report["groups"]:
        name = group["detector"] + (f" ({group['variant']})" if group["variant"] else "")
        rows = [e for e in group["losses"][1:] if "AP" in e["differences"]]
        if not rows:
            parts.append(f"{name}: nothing to compare yet")
            continue
        seeds = max(e["n_pairs"] for e in rows)
        over = "over one seed, and other seeds may differ" if seeds == 1 else f"over {seeds} seeds"
        better = [e for e in rows if e["differences"]["AP"]["verdict"] == "better"]
        if better:
            best = max(better, key=lambda e: e["differences"]["AP"]["value"])
            gain, low, high = (f"{100 * best['differences']['AP'][key]:.1f}" for key in ("value", "low", "high"))
            above = f"{gain} points of AP above {report['reference']} ({low} to {high})"
            who = f"{best['loss']} is better"
            if len(better) > 1:  # they are not compared with each other
                who = f"{len(better)} losses are better, {best['loss']} has the highest AP"
            parts.append(f"{name}: {who}, {above} {over}")
        elif all(e["differences"]["AP"]["verdict"] == "worse" for e in rows):
            parts.append(f"{name}: all other losses are worse than {report['reference']} {over}")
        else:
            parts.append(f"{name}: no loss can be seen to be better than {report['reference']} {over}")
    return "; ".join(parts) + "."
