"""Differences between losses, with intervals that include the variance over seeds and over images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy import stats
from scipy.optimize import brentq

from concordet.engine.config import flat
from concordet.measures.bootstrap import MEASURES, check_settings
from concordet.measures.metrics import BY_KEY, METRICS
from concordet.measures.reading.arrays import Floats
from concordet.study.grid import Cell, Study
from concordet.study.results import draws_of, read_result, result_path
from concordet.study.runner import count_states, failure_file, state_of

DETECTABLE: Final = 0.005
"""Difference in AP, half a point, for which the number of seeds needed is reported."""

POWER: Final = 0.8
SMALLEST: Final = 1e-100
"""Smallest p value."""

SHOWN: Final = (*METRICS, *(BY_KEY[key] for key in ("AP_upper", "APs", "APm", "APl", "AP_few", "AP_many")))
"""Metrics of every loss: those of a comparison of runs, the best AP of the same boxes, and AP by size and number."""


def compare_study(study: Study, *, confidence: float = 0.95) -> dict[str, Any]:
    """Compares every loss with the first one, per detector and variant.

    Runs are paired by seed and image. Intervals of differences include the variance over seeds and that over images,
    which comes from bootstrap draws of images, the same for all runs (:class:`StandardError`). The standard error over
    seeds is multiplied by a quantile of the t-distribution with n - 1 degrees of freedom, that over images by that of
    the normal distribution. Seeds are not drawn, too: bootstrapping both counts three times what images do to some
    seeds only (Owen: The pigeonhole bootstrap, Annals of Applied Statistics 2007). With one seed, intervals include the
    variance over images only, and there is no verdict. Verdicts are corrected for the number of losses (Holm 1979).

    Args:
        study: A study with some finished runs.
        confidence: Confidence of the intervals, in (0, 1).

    Returns:
        Plain JSON: ``groups``, one per detector and variant, each with ``losses``, the reference first, then by AP: the
        name, the seeds, ``metrics`` and ``per_class`` AP (mean, standard deviation and values per seed), ``curve`` (AP
        by update), ``by_threshold`` (AP by IoU threshold), ``processor_ms`` per update, and ``differences`` of
        :data:`concordet.measures.bootstrap.MEASURES` (value, low, high, p, verdict: better, worse, may be chance or one
        seed); from three seeds on, ``seeds_needed`` to see half a point of AP on these images in four of five studies,
        and ``limit_of_images``, the difference in AP that can be seen to hold for other images, too, with any number of
        seeds; ``settings`` of all runs; ``failures``.

    Example:
        >>> from pathlib import Path
        >>> from concordet.study import Study
        >>> report = compare_study(Study(Path("study"), ("fcos",), ("default", "rank_sort"), seeds=(0, 1)))
        >>> report["reference"], report["states"]["new"]  # no run of the four is finished
        ('default', 4)
    """
    check_settings(study.resamples, confidence)
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
            error = _error(_paired(pairs, draws)[:, :, MEASURES.index("AP")]) if len(pairs) > 2 else None
            if error is not None:
                entry["seeds_needed"] = seeds_needed(math.sqrt(error.over_seeds * error.n))
                entry["limit_of_images"] = error.limit_of_images()
        _correct([entry for entry in losses[1:] if entry["differences"]], 1 - confidence)
        groups.append(
            {"detector": detector, "variant": Cell(detector, "", variant, 0).variant, "losses": _by_ap(losses)}
        )
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


def _by_ap(losses: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The losses of a group: the reference first, then from the highest AP to the lowest, then those without runs."""
    reference, *others = losses
    aps = {e["loss"]: e["metrics"]["AP"]["mean"] for e in others if "AP" in e["metrics"]}
    return [reference, *sorted(others, key=lambda e: -aps.get(e["loss"], -math.inf))]


def _loss(loss: str, results: dict[Cell, dict[str, Any]]) -> dict[str, Any]:
    reports = [result["metrics"] for result in results.values()]
    classes = dict.fromkeys(name for result in results.values() for name in result["per_class"])
    return {
        "loss": loss,
        "seeds": [cell.seed for cell in results],
        "metrics": _spreads({m.key: [report.get(m.key) for report in reports] for m in SHOWN}),
        "per_class": _spreads({name: [r["per_class"].get(name) for r in results.values()] for name in classes}),
        "curve": _mean_curve("update", [result["curve"] for result in results.values()]),
        "by_threshold": _mean_curve("iou", [result.get("by_threshold", []) for result in results.values()]),
        "processor_ms": _spreads({"": [r["processor_ms"] for r in results.values()]}).get(""),
        "differences": {},
        "seeds_needed": None,
        "limit_of_images": None,
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


def _mean_curve(axis: str, curves: Sequence[Sequence[tuple[float, float]]]) -> list[dict[str, Any]]:
    """Mean and standard deviation of AP over seeds, at the updates or IoU thresholds that all of them have."""
    tables = [dict(curve) for curve in curves]
    shared = sorted(set.intersection(*map(set, tables))) if tables else []
    return [{axis: x} | _spreads({"": [table[x] for table in tables]})[""] for x in shared]


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


@dataclass(frozen=True)
class StandardError:
    """Variance of a mean difference: over ``n`` seeds, which is estimated from few values, and over images.

    Example:
        >>> error = StandardError(over_seeds=0.0001, over_images=0.0, n=5)
        >>> round(error.half_width(0.05), 4), round(error.p_value(0.02776), 3)  # t = 2.776 at 4 degrees of freedom
        (0.0278, 0.05)
    """

    over_seeds: float
    over_images: float
    n: int

    @classmethod
    def of(cls, differences: Floats) -> StandardError:
        """From the differences ``[n, 1 + draws]`` of each seed: on all images, and on each bootstrap draw of them.

        How much the mean over seeds varies between draws includes what images do to some seeds only. So does the
        variance over seeds, and the bootstrap may count it once (Owen 2007).
        """
        n = len(differences)
        on_all, drawn = differences[:, 0], differences[:, 1:]
        over_images = float(drawn.mean(0).var(ddof=1))
        if n == 1:
            return cls(0.0, over_images, n)
        common = float((drawn - on_all[:, None]).var(0, ddof=1).mean()) / n
        return cls(float(on_all.var(ddof=1)) / n, max(over_images - common, 0.0), n)

    def half_width(self, level: float) -> float:
        """Half the width of the interval with confidence ``1 - level``."""
        images = float(stats.norm.isf(level / 2)) * math.sqrt(self.over_images)
        if self.over_seeds == 0:
            return images
        return math.hypot(float(stats.t.isf(level / 2, self.n - 1)) * math.sqrt(self.over_seeds), images)

    def limit_of_images(self) -> float:
        """The difference that, without variance over seeds, is detected at a level of 5 % with a power of 80 %."""
        return float(stats.norm.isf(0.025) + stats.norm.ppf(POWER)) * math.sqrt(self.over_images)

    def p_value(self, value: float) -> float:
        """The level whose interval around ``value`` ends at 0."""
        if self.over_seeds + self.over_images == 0:
            return float(value == 0)
        if self.half_width(SMALLEST) <= abs(value):
            return SMALLEST
        # in the logarithm, since p may have many zeros
        root = brentq(lambda x: self.half_width(math.exp(x)) - abs(value), math.log(SMALLEST), 0.0)
        return math.exp(root)


def _error(paired: Floats) -> StandardError | None:
    """The error of a metric's mean over seeds; None where it has no value on all images, or on fewer than two draws."""
    defined = paired[:, np.isfinite(paired).all(0)]
    if not np.isfinite(paired[:, 0]).all() or defined.shape[1] < 3:
        return None
    return StandardError.of(defined)


def _differences(pairs: Sequence[tuple[Cell, Cell]], draws: dict[Cell, Floats], confidence: float) -> dict[str, Any]:
    if not pairs:
        return {}
    paired = _paired(pairs, draws)
    report = {}
    for index, name in enumerate(MEASURES):
        error = _error(paired[:, :, index])
        if error is None:
            continue
        value = float(paired[:, 0, index].mean())
        width, p = error.half_width(1 - confidence), error.p_value(value)
        report[name] = {"value": value, "low": value - width, "high": value + width, "p": p}
    return report


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
    """Adds verdicts by Holm's method over the losses of a group with several seeds, for each measure."""
    for name in MEASURES:
        several = [e for e in entries if e["n_pairs"] > 1 and name in e["differences"]]
        rows = [e["differences"][name] for e in several]
        for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
            row["p_corrected"] = p
            better = (row["value"] > 0) == (BY_KEY[name].better == "higher")
            row["verdict"] = "may be chance" if p > level else "better" if better else "worse"
        for entry in entries:
            if entry["n_pairs"] == 1 and name in entry["differences"]:
                entry["differences"][name] |= {"p_corrected": None, "verdict": "one seed"}


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
        parts.append(f"{name}: {_clause(group['losses'][1:], report['reference'])}")
    states = report.get("states", {})
    missing = sum(count for state, count in states.items() if state != "finished")
    if missing:
        parts.append(f"{missing} of {sum(states.values())} runs are not finished or have failed")
    return "; ".join(parts) + "."


def _clause(entries: Sequence[dict[str, Any]], reference: str) -> str:
    """What the comparisons of one detector say."""
    rows = [e for e in entries if "AP" in e["differences"]]
    compared = [e for e in rows if e["n_pairs"] > 1]
    if not compared:
        return "one seed cannot tell which loss is better" if rows else "nothing to compare yet"
    counts = {e["n_pairs"] for e in compared}
    over = f"over {min(counts)} seeds" if len(counts) == 1 else f"over {min(counts)} to {max(counts)} seeds"
    verdicts = [e["differences"]["AP"]["verdict"] for e in compared]
    better = [e for e, verdict in zip(compared, verdicts, strict=True) if verdict == "better"]
    if better:
        best = max(better, key=lambda e: e["differences"]["AP"]["value"])
        who = f"{best['loss']} is better"
        if len(better) > 1:  # they are not compared with each other
            who = f"{len(better)} losses are better, {best['loss']} has the highest AP"
        gain, low, high = (f"{100 * best['differences']['AP'][key]:.1f}" for key in ("value", "low", "high"))
        return f"{who}, {gain} points of AP above {reference} ({low} to {high}) over {best['n_pairs']} seeds"
    if set(verdicts) == {"worse"}:
        return f"all other losses are worse than {reference} {over}"
    return f"no loss can be seen to be better than {reference} {over}"
