"""Studies of the losses, each with a plot: exactness, cost, strength of Spearman's loss, gradient balance, surfaces.

    python -m studies.losses exactness      # gradient errors of the exact and the bucketed method
    python -m studies.losses synthetic      # time and operations, Figure 4.1 of the thesis
    python -m studies.losses spearman       # what the strength of soft ranks does
    python -m studies.losses balance        # gradients of negatives and positives, Figure 4 of aLRP Loss
    python -m studies.losses surfaces       # loss and gradient over score and IoU

Writes studies/results/losses_STUDY.csv and the plots beside it.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import scipy.stats
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from concordet.benchmark.results import environment, write_rows
from concordet.benchmark.synthetic import LOOPED, Data, Options, loop_over_positives
from concordet.losses import functional
from concordet.ranking.backend_torch import use_backend
from concordet.ranking.operator import RankingOptions, compute_terms

RESULTS = Path(__file__).parent / "results"
COLORS = {"exact": "#0b6e99", "bucketed": "#c4551d", "loop": "#6b6b6b", "focal": "#5a8f29"}


# --- exactness ------------------------------------------------------------------------------------------------------

REGIMES: dict[str, tuple[float, float]] = {
    "early training": (-4.0, -4.0),
    "thesis's synthetic": (-1.0, 1.0),
    "late training": (1.0, -5.0),
}


def exactness(options: Options) -> list[dict[str, Any]]:
    """Relative L2 error of the gradient against the quadratic definition, over regimes and numbers of positives."""
    torch.set_num_threads(options.threads)
    rows = []
    for regime, (positive_mean, negative_mean) in REGIMES.items():
        for positives in (5, 50, 500):
            data = Data.make(20_000, positives / 20_000, positive_mean=positive_mean, negative_mean=negative_mean)
            for loss, own in (("AP", 1.0), ("RS", 0.5)):
                expected, value = _gradient(data, loss, "quadratic", own)
                for method in ("exact", "bucketed"):
                    gradient, got = _gradient(data, loss, method, own)
                    rows.append(
                        {
                            "regime": regime,
                            "positives": positives,
                            "logits": 20_000,
                            "loss": loss,
                            "method": method,
                            "gradient_error": f"{float((gradient - expected).norm() / expected.norm()):.2e}",
                            "value_error": f"{abs(got - value) / max(value, 1e-12):.2e}",
                        }
                    )
    _plot_exactness(rows, options.out.with_suffix(".svg"))
    return rows


def _gradient(data: Data, loss: str, method: functional.Method, own: float) -> tuple[Tensor, float]:
    # float64 logits: float32 gradients of both methods agree to the last bit, which no plot shows
    logits = data.logits.detach().double().requires_grad_()
    if loss == "AP":
        value = functional.ap_loss(logits, data.labels, method=method, self_relation=own)
    else:
        value = torch.stack(
            functional.rank_sort_loss(logits, data.labels, data.quality.double(), method=method, self_relation=own)
        ).sum()
    (gradient,) = torch.autograd.grad(value, logits)
    return gradient, float(value.detach())


def _plot_exactness(rows: list[dict[str, Any]], path: Path) -> None:
    figure, axes = subplots(1, 2, 9, 3.4, sharey=True)
    for axis, loss in zip(axes, ("AP", "RS"), strict=True):
        cells = [(regime, p) for regime in REGIMES for p in (5, 50, 500)]
        for method in ("exact", "bucketed"):
            errors = [
                float(row["gradient_error"])
                for cell in cells
                for row in rows
                if (row["regime"], row["positives"], row["loss"], row["method"]) == (*cell, loss, method)
            ]
            axis.semilogy(range(len(cells)), errors, "o-", color=COLORS[method], label=method)
        axis.set_xticks(range(len(cells)), [f"{regime}, {p}" for regime, p in cells], rotation=40, ha="right")
        axis.set_title(f"{loss} Loss")
        axis.set_ylim(1e-17, 1)
    axes[0].set_ylabel("relative L2 error of the gradient")
    axes[0].legend()
    save(figure, path)


# --- the thesis's synthetic study -----------------------------------------------------------------------------------


class _Operations(TorchDispatchMode):
    """Counts the elements that every tensor operation writes: a machine-independent cost."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, Tensor) and "view" not in str(func):
                self.count += value.numel()
        return result


def synthetic(options: Options) -> list[dict[str, Any]]:
    """Figure 4.1 of the thesis: time and operations over cardinality and share of positives, with ``exact`` added."""
    torch.set_num_threads(options.threads)
    rows = []
    for n in options.logits:
        for share in options.shares:
            data = Data.make(n, share)
            positives = int(data.labels.sum())
            visited = min(LOOPED, positives)
            cases: dict[str, tuple[Callable[[], object], float]] = {
                "exact": (partial(_update, data, "exact"), 1.0),
                "bucketed": (partial(_update, data, "bucketed"), 1.0),
                "loop": (partial(loop_over_positives, data, visited=visited), positives / visited),
            }
            for case, (function, scale) in cases.items():
                function()
                times = []
                for _ in range(3):
                    start = time.perf_counter()
                    function()
                    times.append(time.perf_counter() - start)
                with _Operations() as operations:
                    if case == "loop":
                        function()
                    else:  # under its operator, which would count as one operation
                        ranking = RankingOptions(method=case)
                        compute_terms(data.logits.detach(), data.labels, None, None, "ap", [0.0], True, *ranking)
                rows.append(
                    {
                        "logits": n,
                        "share": share,
                        "case": case,
                        "seconds": round(sorted(times)[1] * scale, 5),
                        "operations": round(operations.count * scale),
                    }
                )
    _plot_synthetic(rows, options.out.with_suffix(".svg"))
    return rows


def _update(data: Data, method: functional.Method) -> None:
    functional.ap_loss(data.logits, data.labels, method=method).backward()


def _plot_synthetic(rows: list[dict[str, Any]], path: Path) -> None:
    figure, axes = subplots(1, 2, 9, 3.4)
    cells = list(dict.fromkeys((row["logits"], row["share"]) for row in rows))
    for axis, column, unit in zip(axes, ("seconds", "operations"), ("seconds", "elements written"), strict=True):
        for case in ("loop", "bucketed", "exact"):
            values = [row[column] for row in rows if row["case"] == case]
            axis.semilogy(range(len(cells)), values, "o-", color=COLORS[case], label=f"AP {case}")
        axis.set_xticks(range(len(cells)), [f"{n:.0e}, {s:.1%}" for n, s in cells], rotation=45, ha="right")
        axis.set_ylabel(unit)
    axes[0].legend()
    save(figure, path)


# --- Spearman's strength --------------------------------------------------------------------------------------------

RELATIVE_STRENGTHS = (0.03, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.5, 2.0, 5.0)


def spearman(options: Options) -> list[dict[str, Any]]:
    """Strength of soft ranks: distance to Spearman's and Pearson's coefficients, and share of scores with a gradient.

    Scores are Beta(2, 3), like those of positives during training. IoUs increase with them along a convex curve with
    noise, so that the coefficients differ.
    """
    rows = []
    for n in (20, 200, 2000):
        for relative in (*RELATIVE_STRENGTHS, n):  # the last one is strength 1, as published
            strength = relative / n
            parts = []
            for seed in range(10):
                generator = torch.Generator().manual_seed(seed)
                scores = _beta(generator, n, 2, 3)
                ious = (0.4 * scores**4 / 0.3 + 0.25 * torch.rand(n, generator=generator, dtype=torch.float64)).clamp(
                    0, 1
                )
                x = scores.clone().requires_grad_()
                soft = functional.correlation(x, ious, "spearman", strength=strength)
                (gradient,) = torch.autograd.grad(soft, x)
                # does a step along the gradient increase the true rank correlation?
                stepped = scores + 0.05 * gradient / gradient.norm().clamp_min(1e-12) * math.sqrt(n) * 0.2
                before = scipy.stats.spearmanr(scores, ious).statistic
                parts.append(
                    (
                        abs(float(soft.detach()) - before),
                        abs(float(soft.detach()) - scipy.stats.pearsonr(scores, ious).statistic),
                        float((gradient.abs() > 1e-12).double().mean()),
                        scipy.stats.spearmanr(stepped, ious).statistic - before,
                    )
                )
            means = torch.tensor(parts, dtype=torch.float64).mean(0).tolist()
            names = ("off_spearman", "off_pearson", "share_with_gradient", "gain_of_a_step")
            rounded = [float(f"{mean:.4g}") for mean in means]
            row: dict[str, Any] = {"positives": n, "relative_strength": relative, "strength": float(f"{strength:.4g}")}
            rows.append(row | dict(zip(names, rounded, strict=True)))
    _plot_spearman(rows, options.out.with_suffix(".svg"))
    return rows


def _beta(generator: torch.Generator, n: int, a: int, b: int) -> Tensor:
    """Beta samples of integer parameters: an order statistic of uniform ones."""
    return torch.rand(n, a + b - 1, generator=generator, dtype=torch.float64).sort(1).values[:, a - 1]


def _plot_spearman(rows: list[dict[str, Any]], path: Path) -> None:
    figure, axes = subplots(1, 3, 11, 3.4)
    titles = (
        "distance to the rank correlation",
        "share of scores with gradient",
        "gain of one step in rank correlation",
    )
    for size, style in ((20, ":"), (200, "--"), (2000, "-")):
        own = [row for row in rows if row["positives"] == size]
        own = own[:-1]
        x = [row["relative_strength"] for row in own]
        axes[0].loglog(x, [row["off_spearman"] for row in own], style, color=COLORS["exact"], label=f"Spearman, {size}")
        axes[0].loglog(x, [row["off_pearson"] for row in own], style, color=COLORS["loop"], label=f"Pearson, {size}")
        axes[1].semilogx(x, [row["share_with_gradient"] for row in own], style, color=COLORS["exact"])
        axes[2].semilogx(x, [row["gain_of_a_step"] for row in own], style, color=COLORS["exact"])
    for axis, text in zip(axes, titles, strict=True):
        axis.set_title(text)
        axis.set_xlabel("strength times number of positives")
        axis.axvline(functional.RELATIVE_STRENGTH, color=COLORS["bucketed"], lw=1)
    axes[0].set_ylim(1e-5, 1)
    axes[0].legend(fontsize=7)
    save(figure, path)


# --- balance of gradients -------------------------------------------------------------------------------------------


def balance(options: Options) -> list[dict[str, Any]]:
    """aLRP Loss, Figure 4, on synthetic logits: gradient of negatives over that of positives as the two separate."""
    rows = []
    for step in range(41):
        part = step / 40
        data = Data.make(20_000, 0.01, positive_mean=-4.6 + 5 * part, negative_mean=-4.6, seed=step)
        chosen = {
            "AP": functional.ap_loss(data.logits, data.labels),
            "aLRP": functional.alrp_loss(data.logits, data.labels, data.loc_errors).classification,
            "RS, ranking term": functional.rank_sort_loss(data.logits, data.labels, data.quality).ranking,
            "RS, both terms": torch.stack(functional.rank_sort_loss(data.logits, data.labels, data.quality)).sum(),
            "focal": functional.focal_loss(data.logits, data.labels),
            "cross entropy": functional.focal_loss(data.logits, data.labels, alpha=-1, gamma=0),
        }
        for loss, value in chosen.items():
            (gradient,) = torch.autograd.grad(value, data.logits)
            negative, positive = (float(gradient[data.labels == y].double().abs().sum()) for y in (0, 1))
            rows.append({"progress": part, "loss": loss, "ratio": negative / positive})
    figure, (axis,) = subplots(1, 1, 7.5, 3.4)
    overlaid: dict[str, dict[str, Any]] = {
        "AP": {"lw": 5, "alpha": 0.4},
        "aLRP": {"ls": "--", "lw": 2},
        "RS, ranking term": {"ls": ":", "lw": 2},
    }
    for name in dict.fromkeys(row["loss"] for row in rows):
        own = [row for row in rows if row["loss"] == name]
        ratios = [row["ratio"] for row in own]
        axis.semilogy([row["progress"] for row in own], ratios, label=name, **overlaid.get(str(name), {}))
    axis.set_xlabel("from one distribution to separated ones")
    axis.set_ylabel("gradient of negatives / of positives")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, options.out.with_suffix(".svg"))
    return rows


# --- surfaces -------------------------------------------------------------------------------------------------------


def _ranked(score: Tensor, iou: Tensor, loss: str) -> Tensor:
    """Loss of a positive with this score and IoU among 10 other positives and 40 negatives, point by point."""
    generator = torch.Generator().manual_seed(0)
    others = torch.cat([torch.randn(10, generator=generator), torch.randn(40, generator=generator) - 1]).double()
    quality = torch.cat([torch.rand(10, generator=generator), torch.zeros(40)]).double()
    labels = torch.tensor([1] * 11 + [0] * 40)
    values = []
    for s, q in zip(score.flatten(), iou.flatten(), strict=True):
        logits = torch.cat([torch.logit(s)[None], others])
        if loss == "rank_sort":
            parts: tuple[Tensor, ...] = functional.rank_sort_loss(logits, labels, torch.cat([q[None], quality]))
        else:
            parts = functional.alrp_loss(logits, labels, torch.cat([1 - q[None], 1 - quality[:10]]))
        values.append(torch.stack(parts).sum())
    return torch.stack(values).reshape(score.shape)


SURFACES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "focal": lambda p, q: functional.focal_loss(torch.logit(p), torch.ones_like(p), reduction="none"),
    "focal_pse_0.25": lambda p, q: (
        SURFACES["focal"](p, q) + functional.association_loss(p, q, weight=0.25, reduction="none")
    ),
    "focal_pse_1": lambda p, q: SURFACES["focal"](p, q) + functional.association_loss(p, q, reduction="none"),
    "quality_focal": lambda p, q: functional.quality_focal_loss(torch.logit(p), q, reduction="none"),
    "varifocal": lambda p, q: functional.varifocal_loss(torch.logit(p), q, reduction="none"),
    "matchability_aware": lambda p, q: functional.matchability_aware_loss(torch.logit(p), q, reduction="none"),
    "harmonic": lambda p, q: functional.harmonic_loss(-p.log(), 1 - q, reduction="none"),
    "task_contrastive": lambda p, q: functional.task_contrastive_loss(
        torch.stack([p.flatten(), 1 - p.flatten()], 1),
        torch.zeros(p.numel(), dtype=torch.long),
        q.flatten(),
        reduction="none",
    ).reshape(p.shape),
    "rank_sort": lambda p, q: _ranked(p, q, "rank_sort"),
    "alrp": lambda p, q: _ranked(p, q, "alrp"),
}


def surfaces(options: Options) -> list[dict[str, Any]]:
    """Loss and gradient of the score, over score and IoU of one positive (PSE Figure 3, Harmonic Figure 2)."""
    rows = []
    for name, function in SURFACES.items():
        steps = 25 if name in ("rank_sort", "alrp") else 101
        axis_values = torch.linspace(0.01, 0.99, steps, dtype=torch.float64)
        score, iou = torch.meshgrid(axis_values, axis_values, indexing="xy")
        score = score.clone().requires_grad_()
        loss = function(score, iou)
        (gradient,) = torch.autograd.grad(loss.sum(), score)
        _plot_surface(name, score.detach(), iou, loss.detach(), gradient, options.out.with_name(f"surface_{name}.png"))
        rows.append({"loss": name, "min": float(loss.detach().min()), "max": float(loss.detach().max())})
    return rows


def _plot_surface(name: str, score: Tensor, iou: Tensor, loss: Tensor, gradient: Tensor, path: Path) -> None:
    figure, axes = subplots(1, 2, 8, 3.2)
    bound = float(gradient.abs().quantile(0.95))
    drawn = axes[0].contourf(score, iou, loss, levels=24, cmap="viridis")
    figure.colorbar(drawn, ax=axes[0])
    drawn = axes[1].contourf(
        score, iou, gradient.clamp(-bound, bound), levels=torch.linspace(-bound, bound, 25).tolist(), cmap="RdBu_r"
    )
    figure.colorbar(drawn, ax=axes[1])
    if bool((gradient.min() < 0) & (gradient.max() > 0)):
        axes[1].contour(score, iou, gradient, levels=[0.0], colors="black", linewidths=1)
    for axis, title in zip(axes, (name.replace("_", " "), "gradient by the score"), strict=True):
        axis.set_title(title)
        axis.set_xlabel("score")
        axis.set_ylabel("IoU")
    save(figure, path)


# --- drawing --------------------------------------------------------------------------------------------------------


def subplots(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Any, list[Any]]:
    """A figure of this many inches, and its axes row by row."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "concordet"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(rows, columns, figsize=(width, height), squeeze=False, **options)
    return figure, list(axes.flatten())


def save(figure: Any, path: Path) -> None:
    """Writes a figure whole or not at all, and closes it."""
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    figure.tight_layout()
    # the same numbers give the same file
    stamp = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    figure.savefig(temporary, format=path.suffix[1:], metadata=stamp, dpi=90)
    pyplot.close(figure)
    temporary.replace(path)


# --- command --------------------------------------------------------------------------------------------------------

STUDIES: dict[str, Callable[[Options], list[dict[str, Any]]]] = {
    "exactness": exactness,
    "synthetic": synthetic,
    "spearman": spearman,
    "balance": balance,
    "surfaces": surfaces,
}


def main(words: Sequence[str] | None = None) -> None:
    """Parses the command line, runs a study and writes its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--threads", type=int, default=1, help="PyTorch threads (default: 1)")
    parser.add_argument("--out", type=Path, help="CSV file (default: studies/results/losses_STUDY.csv)")
    given = parser.parse_args(words)
    out = given.out or RESULTS / f"losses_{given.study}.csv"
    torch.set_num_threads(given.threads)
    with use_backend("torch"):  # the operations of PyTorch, whether or not Numba is installed
        rows = STUDIES[given.study](replace(Options(), study=given.study, threads=given.threads, out=out))
    write_rows(out, rows, {**environment(), "threads": str(given.threads)})
    print(f"written to {out}")


if __name__ == "__main__":
    main()
