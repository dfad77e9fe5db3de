"""Detection transformers: do they overfit, do auxiliary heads help, and what does a training step cost?

    python -m studies.detection_transformers overfit     # until AP50 on eight scenes is above 90
    python -m studies.detection_transformers auxiliary   # Co-DETR with and without auxiliary heads, step by step
    python -m studies.detection_transformers unseen      # the same, on scenes that are each seen once
    python -m studies.detection_transformers steps       # a training step with each loss, compared with focal loss

Writes studies/results/transformers_SECTION.csv. All detectors have nano size, except with ``steps --size full``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from concordet.assigned import Assigned
from concordet.benchmark.detectors import classified, in_turns, ratio_with_quartiles
from concordet.benchmark.results import environment, known_rows, merge_rows, write_rows
from concordet.benchmark.results import table as markdown_table
from concordet.data import load_dataset
from concordet.data.targets import DetectionDataset
from concordet.detectors import Detector, build_detector
from concordet.losses.criteria import Criterion, StagedCriterion
from concordet.losses.criteria.cores import WithL1
from studies.overfit import GOAL, Batch, ap50_while_training, together

RESULTS = Path(__file__).parent / "results"
LEARNED = ("deformable_detr", "co_detr")
LOSSES = ("focal", "rank_sort")
SCENES, SIDE, RATE, CLIP, EVERY, MAX_STEPS = 8, 128, 1e-3, 0.1, 10, 400
SHOWN = (20, 30, 40, 50, 60, 80, 100)
"""Steps after which the table of the auxiliary heads shows AP50."""

UNSEEN, SHOWN_UNSEEN, GOAL_UNSEEN = 100, (50, 100, 150, 200), 0.1
"""Number of scenes that are evaluated but not trained on, steps that the table shows, and the AP50 to reach."""

LOOP = "rank_sort, loop"
TIMED = ("focal", "rank_sort", "bucketed_rank_sort", LOOP)

SETTING = f"nano, {SCENES} digit scenes of {SIDE} pixels per step, AdamW, lr {RATE:g}, gradients clipped at {CLIP:g}"
WHATS = {
    "overfit": f"{SETTING}, evaluated every {EVERY} steps",
    "auxiliary": f"co_detr, {SETTING}; AP50 on these scenes after a number of steps, mean (range over seeds)",
    "unseen": f"co_detr, {SETTING}, each scene seen once; AP50 on {UNSEEN} other scenes after a number of steps, mean "
    "(range over seeds)",
    "steps": "40 objects per image, 300 queries, 80 classes; time of a training step as a multiple of the step with "
    "focal loss, median (quartiles) within rounds. Positives and predictions are summed over stages: with focal loss, "
    "with ranking losses",
}
WHATS = {section: f"`python -m studies.detection_transformers {section}`: {text}" for section, text in WHATS.items()}


# --- learning -------------------------------------------------------------------------------------------------------


def learner(detector: str, loss: str, seed: int = 0, **options: Any) -> tuple[Detector, DetectionDataset]:
    """A nano detector, and the scenes that it overfits."""
    scenes = load_dataset("digits", split="train", length=SCENES, size=SIDE)
    torch.manual_seed(seed)
    model = build_detector(
        detector, num_classes=len(scenes.class_names), loss=loss, size="nano", image_size=(SIDE, SIDE), **options
    )
    return model, scenes


def overfit(detector: str, loss: str, *, max_steps: int = MAX_STEPS) -> dict[str, Any]:
    """Row of a detector: trains until AP50 is above :data:`~studies.overfit.GOAL`, at most ``max_steps`` steps."""
    start = time.perf_counter()
    for steps, ap50 in ap50_while_training(*learner(detector, loss), lr=RATE, clip=CLIP, every=EVERY):
        print(f"{detector} {loss}: {steps} steps, AP50 {ap50:.3f}", flush=True)
        if ap50 > GOAL or steps >= max_steps:
            break
    minutes = (time.perf_counter() - start) / 60
    return {"detector": detector, "loss": loss, "steps": steps, "AP50": ap50, "minutes": minutes}


def run_overfit(options: argparse.Namespace) -> None:
    """Section ``overfit``."""
    rows = [overfit(detector, loss) for detector in options.detectors for loss in options.losses]
    write("overfit", rows)
    print(overfit_table(rows))


def overfit_table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, one row per detector and loss."""
    head = ["detector", "loss", f"steps to AP50 > {100 * GOAL:.0f}", "AP50"]
    lines = []
    for r in rows:
        steps = r["steps"] if float(r["AP50"]) > GOAL else f"not in {r['steps']}"
        lines.append([r["detector"], r["loss"], steps, f"{100 * float(r['AP50']):.1f}"])
    return markdown_table(head, lines, text_columns=2)


def run_auxiliary(options: argparse.Namespace) -> None:
    """Section ``auxiliary``."""
    compare_heads("auxiliary", options, SHOWN, EVERY)


def run_unseen(options: argparse.Namespace) -> None:
    """Section ``unseen``."""
    compare_heads("unseen", options, SHOWN_UNSEEN, SHOWN_UNSEEN[0])


def compare_heads(section: str, options: argparse.Namespace, shown: Sequence[int], every: int) -> None:
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
        write(section, rows)
    print(TABLES[section](rows))


def new_scenes(seed: int, steps: int) -> Iterator[Batch]:
    """Batches of scenes, each of which is seen once."""
    scenes = load_dataset("digits", split="train", length=SCENES * steps, size=SIDE, seed=seed)
    return (together(scenes, range(start, start + SCENES)) for start in range(0, len(scenes), SCENES))


def auxiliary_table(rows: Sequence[dict[str, Any]], shown: Sequence[int], goal: float) -> str:
    """AP50 after so many steps, mean and range over the seeds, and the step at which each seed first passed the goal.

    ``>`` marks a seed that did not reach the goal.
    """
    head = ["loss", "auxiliary heads", "seeds", *map(str, shown), f"steps to AP50 > {100 * goal:.0f}"]
    lines = []
    for loss, auxiliary in dict.fromkeys((r["loss"], r["auxiliary"]) for r in rows):
        own = [r for r in rows if (r["loss"], r["auxiliary"]) == (loss, auxiliary)]
        seeds = sorted({int(r["seed"]) for r in own})
        curves = [{int(r["steps"]): float(r["AP50"]) for r in own if int(r["seed"]) == seed} for seed in seeds]
        passed = [next((str(n) for n in sorted(c) if c[n] > goal), f">{max(c)}") for c in curves]
        cells = []
        for steps in shown:
            values = [100 * c[steps] for c in curves]
            cells.append(f"{statistics.mean(values):.0f} ({min(values):.0f}–{max(values):.0f})")
        lines.append([loss, auxiliary, len(seeds), *cells, ", ".join(passed)])
    return markdown_table(head, lines, text_columns=2)


# --- steps ----------------------------------------------------------------------------------------------------------


class LoopedRankSort(torch.autograd.Function):
    """RS Loss as published: a loop over the positives, each compared with all negatives (thesis Eqs. 3.11-3.18)."""

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


class LoopedTerm(nn.Module):
    """Rank & Sort Loss computed by a loop over positives."""

    def forward(self, assigned: Assigned, ious: Tensor) -> dict[str, Tensor]:
        """Values of both terms."""
        quality = assigned.class_targets(ious).flatten()
        ranking, sorting = LoopedRankSort.apply(assigned.logits.flatten(), assigned.ranking_labels(), quality, 0.5)
        return {"ranking": ranking, "sorting": sorting}


def loop_over_positives(model: Detector) -> Detector:
    """Replaces the classification terms of a detector built with ``rank_sort`` by loops, in place."""
    for criterion in [m for m in model.modules() if isinstance(m, Criterion)]:
        core = criterion.core.core if isinstance(criterion.core, WithL1) else criterion.core
        core.classification = LoopedTerm()
    return model


def crowds(batch: int, side: int, objects: int, classes: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Noise images with boxes of a sixteenth to a half of their side; only the counts matter here."""
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
    """Rows of a detector: the step with each loss compared with focal loss, and how many positives its terms see."""
    images, targets = crowds(options.batch, options.side, options.objects, options.classes)
    models = {}
    for loss in TIMED:
        torch.manual_seed(0)
        built = build_detector(
            detector, num_classes=options.classes, loss="rank_sort" if loss == LOOP else loss, size=options.size,
            image_size=(options.side, options.side), num_queries=options.queries,
        )  # fmt: skip
        models[loss] = (loop_over_positives(built) if loss == LOOP else built).train()
    check_same(models[LOOP], models["rank_sort"], images, targets)
    shape = {"detector": detector, "size": options.size, "side": options.side, "batch": options.batch}
    counts = {}
    for loss, model in models.items():
        torch.manual_seed(0)
        with torch.no_grad():
            positives = sum(len(r.positive) for r in model.assigned(images, targets))
        counts[loss] = {"positives": positives, "predictions": classified(model, images, targets)}
    compared = in_turns(models, images, targets, torch.device("cpu"), options.rounds, reference="focal")
    return [{**shape, "loss": loss, **counts[loss], "rounds": options.rounds, **compared[loss]} for loss in models]


def check_same(looped: Detector, exact: Detector, images: list[Tensor], targets: list[dict[str, Tensor]]) -> None:
    """Checks that the loop gives the exact losses and gradients of the logits, before anything is timed."""
    records = []
    for model in (looped, exact):
        torch.manual_seed(0)
        records.append(model.assigned(images, targets))
    assert isinstance(looped.criterion, StagedCriterion)
    assert isinstance(exact.criterion, StagedCriterion)
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
    """Section ``steps``; keeps the rows of other sizes in the CSV file."""
    rows: list[dict[str, Any]] = []
    for detector in options.detectors:
        measured = steps_of(detector, options)
        rows = merge_rows(RESULTS / "transformers_steps.csv", measured, ("detector", "size", "loss"))
        rows.sort(key=lambda r: (r["size"], r["detector"]), reverse=True)
        write("steps", rows, clock="processor")
    print(steps_table(rows))


def steps_table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, one row per detector."""
    head = ["detector", "images", "exact", "bucketed", "loop", "loop / bucketed", "positives", "predictions"]
    lines = []
    for detector, size in dict.fromkeys((r["detector"], r["size"]) for r in rows):
        own = {r["loss"]: r for r in rows if (r["detector"], r["size"]) == (detector, size)}
        focal, ranked = own["focal"], own["rank_sort"]
        ratio = float(own[LOOP]["median_ms"]) / float(own["bucketed_rank_sort"]["median_ms"])
        counts = [f"{focal[key]}, {ranked[key]}" for key in ("positives", "predictions")]
        ratios = [ratio_with_quartiles(own[loss]) for loss in TIMED[1:]]
        images = f"{focal['batch']} of {focal['side']} px"
        lines.append([f"{detector}, {size}", images, *ratios, f"{ratio:.2f}", *counts])
    return markdown_table(head, lines, text_columns=2)


# --- files ----------------------------------------------------------------------------------------------------------

TABLES: dict[str, Callable[[Sequence[dict[str, Any]]], str]] = {
    "overfit": overfit_table,
    "auxiliary": partial(auxiliary_table, shown=SHOWN, goal=GOAL),
    "unseen": partial(auxiliary_table, shown=SHOWN_UNSEEN, goal=GOAL_UNSEEN),
    "steps": steps_table,
}
"""Table of each section, from the rows of its results file."""


def write(section: str, rows: list[dict[str, Any]], **more: str) -> None:
    """Writes the section's rows."""
    measured_in = {**environment(), "threads": str(torch.get_num_threads()), **more}
    write_rows(RESULTS / f"transformers_{section}.csv", rows, measured_in)


def main() -> None:
    """Parses the command line and runs a section."""
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
        section.add_argument("--threads", type=int, default=1, help="PyTorch threads (default: 1)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.run(options)


if __name__ == "__main__":
    main()
