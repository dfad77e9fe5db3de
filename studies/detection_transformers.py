"""Detection transformers: do they learn by heart, do auxiliary heads help, and what does a step cost?

    python studies/detection_transformers.py overfit     # until AP50 on eight scenes is above 0.9
    python studies/detection_transformers.py auxiliary   # Co-DETR with and without auxiliary heads, step by step
    python studies/detection_transformers.py unseen      # the same, trained on scenes that are never seen twice
    python studies/detection_transformers.py steps       # a training step with each loss beside focal loss's

Writes studies/results/transformers_overfit.csv and .md, and so on.  All at nano size but for what ``steps --size
full`` measures.  Other work on the machine changes minutes and seconds, and ratios little.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from overfit import GOAL, Batch, ap50_while_training, together
from torch import Tensor, nn

from concordet.assigned import Assigned
from concordet.benchmark.detectors import classified, in_turns
from concordet.benchmark.results import known_rows, merge_rows, write_table
from concordet.data import load_dataset
from concordet.data.targets import DetectionDataset
from concordet.detectors import build_detector
from concordet.losses.criteria import Criterion
from concordet.losses.criteria.cores import Terms, flat_labels, one_hot
from concordet.losses.criteria.set_core import SetCore

RESULTS = Path(__file__).parent / "results"
LEARNED = ("deformable_detr", "co_detr")
LOSSES = ("focal", "rank_sort")
SCENES, SIDE, RATE, CLIP, EVERY, MOST = 8, 128, 1e-3, 0.1, 10, 400
SHOWN = (20, 30, 40, 50, 60, 80, 100)
"""Steps after which the table of the auxiliary heads has AP50."""

UNSEEN, SHOWN_UNSEEN, GOAL_UNSEEN = 100, (50, 100, 150, 200), 0.1
"""Scenes that are evaluated and not trained on, after how many steps, and what AP50 is waited for."""

LOOP = "rank_sort, loop"
TIMED = ("focal", "rank_sort", "bucketed_rank_sort", LOOP)


# --- learning -------------------------------------------------------------------------------------------------------


def learner(detector: str, loss: str, seed: int = 0, **options: Any) -> tuple[nn.Module, DetectionDataset]:
    """A nano detector, and the scenes that it is to learn by heart."""
    scenes = load_dataset("digits", split="train", length=SCENES, size=SIDE)
    torch.manual_seed(seed)
    model = build_detector(
        detector, num_classes=len(scenes.class_names), loss=loss, size="nano", image_size=(SIDE, SIDE), **options
    )
    return model, scenes


def overfit(detector: str, loss: str, *, most: int = MOST) -> dict[str, Any]:
    """Trains until AP50 is above :data:`~overfit.GOAL`, at most ``most`` steps; the table's row."""
    start = time.perf_counter()
    for steps, ap50 in ap50_while_training(*learner(detector, loss), lr=RATE, clip=CLIP, every=EVERY):
        print(f"{detector} {loss}: {steps} steps, AP50 {ap50:.3f}", flush=True)
        if ap50 > GOAL or steps >= most:
            break
    minutes = (time.perf_counter() - start) / 60
    return {"detector": detector, "loss": loss, "steps": steps, "AP50": ap50, "minutes": minutes}


def run_overfit(options: argparse.Namespace) -> None:
    """Section ``overfit``."""
    rows = [overfit(detector, loss) for detector in options.detectors for loss in options.losses]
    lines = [f"| detector | loss | steps to AP50 > {GOAL} | AP50 | minutes |", "|---|---|---:|---:|---:|"]
    for r in rows:
        steps = r["steps"] if r["AP50"] > GOAL else f"not in {r['steps']}"
        lines.append(f"| {r['detector']} | {r['loss']} | {steps} | {r['AP50']:.3f} | {r['minutes']:.1f} |")
    write("overfit", rows, f"{setting()}, asked every {EVERY} steps", lines)


def run_auxiliary(options: argparse.Namespace) -> None:
    """Section ``auxiliary``."""
    compare_heads("auxiliary", options, f"co_detr, {setting()}", SHOWN, EVERY, GOAL)


def run_unseen(options: argparse.Namespace) -> None:
    """Section ``unseen``."""
    what = f"co_detr, {setting()}, others at each step; AP50 on {UNSEEN} scenes of digits that are not among them"
    compare_heads("unseen", options, what, SHOWN_UNSEEN, SHOWN_UNSEEN[0], GOAL_UNSEEN)


def compare_heads(
    section: str, options: argparse.Namespace, what: str, shown: Sequence[int], every: int, goal: float
) -> None:
    """Co-DETR's AP50 with and without auxiliary heads; runs that are in the CSV file already are kept."""
    path = RESULTS / f"transformers_{section}.csv"
    rows = known_rows(path)
    known = {(int(r["seed"]), r["loss"], r["auxiliary"]) for r in rows}
    runs = product(range(options.seeds), options.losses, ("with", "without"))
    for seed, loss, auxiliary in [run for run in runs if run not in known]:
        model, scenes = learner("co_detr", loss, seed, auxiliary=auxiliary == "with")
        batches = None
        if section == "unseen":
            scenes = load_dataset("digits", split="val", length=UNSEEN, size=SIDE)
            batches = new_scenes(seed, shown[-1])
        curve = ap50_while_training(model, scenes, lr=RATE, clip=CLIP, every=every, batches=batches)
        for steps, ap50 in islice(curve, shown[-1] // every):
            rows.append({"loss": loss, "auxiliary": auxiliary, "seed": seed, "steps": steps, "AP50": round(ap50, 4)})
            print(f"{loss} {auxiliary} auxiliary heads, seed {seed}: {steps} steps, AP50 {ap50:.3f}", flush=True)
        write(section, rows, what, auxiliary_table(rows, shown, goal))


def new_scenes(seed: int, steps: int) -> Iterator[Batch]:
    """Batches of scenes, each seen once."""
    scenes = load_dataset("digits", split="train", length=SCENES * steps, size=SIDE, seed=seed)
    return (together(scenes, range(start, start + SCENES)) for start in range(0, len(scenes), SCENES))


def auxiliary_table(rows: list[dict[str, Any]], shown: Sequence[int], goal: float) -> list[str]:
    """AP50 after so many steps, mean and range over the seeds, and when it first was above the goal.

    Steps to the goal are each seed's; ``>`` marks one that did not reach it.
    """
    lines = [
        f"| loss | auxiliary heads | seeds | {' | '.join(map(str, shown))} | steps to AP50 > {goal} |",
        "|---|---|---:|" + "---:|" * (len(shown) + 1),
    ]
    for loss, auxiliary in dict.fromkeys((r["loss"], r["auxiliary"]) for r in rows):
        own = [r for r in rows if (r["loss"], r["auxiliary"]) == (loss, auxiliary)]
        seeds = sorted({int(r["seed"]) for r in own})
        curves = [{int(r["steps"]): float(r["AP50"]) for r in own if int(r["seed"]) == seed} for seed in seeds]
        reached = [next((str(n) for n in sorted(c) if c[n] > goal), f">{max(c)}") for c in curves]
        cells = []
        for steps in shown:
            values = [c[steps] for c in curves]
            cells.append(f"{statistics.mean(values):.2f} ({min(values):.2f}–{max(values):.2f})")
        lines.append(f"| {loss} | {auxiliary} | {len(seeds)} | {' | '.join(cells)} | {', '.join(reached)} |")
    return lines


def setting() -> str:
    """What is learnt, and how."""
    return f"nano, {SCENES} digit scenes of {SIDE} pixels at once, AdamW, lr {RATE:g}, gradients clipped at {CLIP:g}"


# --- steps ----------------------------------------------------------------------------------------------------------


class LoopedRankSort(torch.autograd.Function):
    """RS Loss as published: a loop over the positives, each beside all negatives (thesis Eqs. 3.11-3.18)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, quality: Tensor, delta: float) -> tuple[Tensor, Tensor]:
        """Ranking and sorting, of ``[n]`` logits, labels (1 positive, 0 negative, -1 ignored) and quality."""
        is_positive = labels == 1
        positives, q = logits[is_positive], quality[is_positive]
        count = len(positives)
        updates = logits.new_zeros(2, len(logits))
        values = logits.new_zeros(2)
        if count > 0:
            relevant = (labels == 0) & (logits >= positives.min() - delta)
            negatives = logits[relevant]
            ranking, sorting = positives.new_zeros(count), positives.new_zeros(count)
            to_negatives, to_positives = torch.zeros_like(negatives), torch.zeros_like(positives)
            for i in range(count):
                above = ((positives - positives[i]) / (2 * delta) + 0.5).clamp_(0, 1)  # [p] H(x_ik)
                false = ((negatives - positives[i]) / (2 * delta) + 0.5).clamp_(0, 1)  # [n] H(x_ij)
                better = above * (q >= q[i])
                worse = above - better
                rank = above.sum()
                ranking[i] = false.sum() / (rank + false.sum())
                to_negatives += false / (rank + false.sum())  # l(i) p(j|i)
                if worse.sum() > 0:
                    sorting[i] = (above * (1 - q)).sum() / rank - (better * (1 - q)).sum() / better.sum()
                    to_positives += worse * (sorting[i] / worse.sum())
            updates[0, is_positive], updates[0, relevant] = -ranking, to_negatives
            updates[1, is_positive] = to_positives - sorting
            values = torch.stack([ranking, sorting]).mean(1)
        ctx.save_for_backward(updates / max(count, 1))
        return values[0], values[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """Each term's update, scaled."""
        (updates,) = ctx.saved_tensors
        return torch.stack(gradients) @ updates, None, None, None


def looped_term(assigned: Assigned, ious: Tensor) -> Terms:
    """``rank_sort_term`` by a loop over positives."""
    quality = one_hot(assigned, ious).flatten()
    ranking, sorting = LoopedRankSort.apply(assigned.logits.flatten(), flat_labels(assigned), quality, 0.5)
    return {"ranking": ranking, "sorting": sorting}


def loop_over_positives(model: nn.Module) -> nn.Module:
    """A detector built with ``rank_sort``, its classification terms computed by loops, in place."""
    for criterion in [m for m in model.modules() if isinstance(m, Criterion)]:
        holder = criterion.core if isinstance(criterion.core, SetCore) else criterion
        holder.core = partial(holder.core.func, **{**holder.core.keywords, "classification": looped_term})
    return model


def crowds(batch: int, side: int, objects: int, classes: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Noise with boxes of a sixteenth to a half of its side: learning is of no interest here, counts are."""
    generator = torch.Generator().manual_seed(0)
    images, targets = [], []
    for _ in range(batch):
        images.append(torch.rand(3, side, side, generator=generator))
        extents = side / 16 * 8 ** torch.rand(objects, 2, generator=generator)
        corners = torch.rand(objects, 2, generator=generator) * (side - extents)
        labels = torch.randint(1, classes + 1, (objects,), generator=generator)
        targets.append({"boxes": torch.cat([corners, corners + extents], 1), "labels": labels})
    return images, targets


def steps_of(detector: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of a detector: each loss's step beside focal loss's, and how many positives its terms see."""
    images, targets = crowds(options.batch, options.side, options.objects, options.classes)
    models = {}
    for loss in TIMED:
        torch.manual_seed(0)
        built = build_detector(
            detector, num_classes=options.classes, loss="rank_sort" if loss == LOOP else loss, size=options.size,
            image_size=(options.side, options.side), num_queries=options.queries,
        )  # fmt: skip
        models[loss] = (loop_over_positives(built) if loss == LOOP else built).train()
    same(models[LOOP], models["rank_sort"], images, targets)
    shape = {"detector": detector, "size": options.size, "side": options.side, "batch": options.batch}
    counts = {}
    for loss, model in models.items():
        torch.manual_seed(0)
        with torch.no_grad():
            positives = sum(len(r.positive) for r in model.assigned(images, targets))
        counts[loss] = {"positives": positives, "predictions": classified(model, images, targets)}
    compared = in_turns(models, images, targets, torch.device("cpu"), options.rounds, defaults="focal")
    return [{**shape, "loss": loss, **counts[loss], "rounds": options.rounds, **compared[loss]} for loss in models]


def same(looped: nn.Module, exact: nn.Module, images: list[Tensor], targets: list[dict[str, Tensor]]) -> None:
    """Nothing is timed unless the loop gives the exact losses and gradients of the logits."""
    records = []
    for model in (looped, exact):
        torch.manual_seed(0)
        records.append(model.assigned(images, targets))
    for mine, theirs in zip(*records, strict=True):
        terms, wanted = looped.criterion.stages[mine.stage](mine), exact.criterion.stages[mine.stage](theirs)
        for name in ("ranking", "sorting"):
            torch.testing.assert_close(terms[name], wanted[name], rtol=1e-4, atol=1e-5)
        gradients = [
            torch.autograd.grad(t["ranking"] + t["sorting"], record.logits, retain_graph=True)[0]
            for t, record in ((terms, mine), (wanted, theirs))
        ]
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


def run_steps(options: argparse.Namespace) -> None:
    """Section ``steps``; adds to the CSV file what another size has left there."""
    path = RESULTS / "transformers_steps.csv"
    for detector in options.detectors:
        rows = merge_rows(path, steps_of(detector, options), ("detector", "size"))
        rows.sort(key=lambda r: (r["size"], r["detector"]), reverse=True)
        what = (
            f"{options.objects} objects an image, {options.queries} queries, {options.classes} classes; step of focal"
        )
        what += " loss 1, median and quartiles of the ratio within rounds"
        write("steps", rows, what, steps_table(rows))


def steps_table(rows: list[dict[str, Any]]) -> list[str]:
    """A row a detector, times focal loss's step."""
    lines = [
        "| detector | images | focal, ms | exact | bucketed | loop | loop / bucketed | positives | predictions |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for detector, size in dict.fromkeys((r["detector"], r["size"]) for r in rows):
        own = {r["loss"]: r for r in rows if (r["detector"], r["size"]) == (detector, size)}
        focal, ranked = own["focal"], own["rank_sort"]
        cells = [
            f"{float(r['times_usual']):.2f} ({float(r['q25']):.2f}–{float(r['q75']):.2f})"
            for r in (own[loss] for loss in TIMED[1:])
        ]
        ratio = float(own[LOOP]["median_ms"]) / float(own["bucketed_rank_sort"]["median_ms"])
        counts = [f"{focal[key]}, {ranked[key]}" for key in ("positives", "predictions")]
        images = f"{focal['batch']} of {focal['side']} px"
        lines.append(
            f"| {detector}, {size} | {images} | {float(focal['median_ms']):.0f} | {' | '.join(cells)} | {ratio:.2f} | "
            f"{' | '.join(counts)} |"
        )
    return [*lines, "\nPositives and predictions of all stages together: with focal loss, with ranking losses."]


# --- files ----------------------------------------------------------------------------------------------------------


def write(section: str, rows: list[dict[str, Any]], what: str, lines: list[str]) -> None:
    """The section's rows as CSV, and its table as Markdown."""
    what = f"`python studies/{Path(__file__).name} {section}`: {what}"
    write_table(RESULTS / f"transformers_{section}.csv", rows, "\n".join(lines), what, torch.get_num_threads())


def main() -> None:
    """Parses and runs a section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sections = parser.add_subparsers(required=True, metavar="SECTION")
    learn = sections.add_parser("overfit")
    learn.set_defaults(run=run_overfit)
    helped = [sections.add_parser(name) for name in ("auxiliary", "unseen")]
    for section, run in zip(helped, (run_auxiliary, run_unseen), strict=True):
        section.add_argument("--seeds", type=int, default=3)
        section.set_defaults(run=run)
    for section in (learn, *helped):
        section.add_argument("--losses", nargs="+", default=LOSSES)
    timed = sections.add_parser("steps")
    timed.set_defaults(run=run_steps)
    timed.add_argument("--size", choices=("nano", "full"), default="nano")
    for section in (learn, timed):
        section.add_argument("--detectors", nargs="+", default=LEARNED, choices=LEARNED)
    for name, value in {"side": 192, "batch": 2, "objects": 40, "queries": 300, "classes": 80, "rounds": 15}.items():
        timed.add_argument(f"--{name}", type=int, default=value)
    for section in (learn, *helped, timed):
        section.add_argument("--threads", type=int, default=1, help="PyTorch's (default: 1)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.run(options)


if __name__ == "__main__":
    main()
