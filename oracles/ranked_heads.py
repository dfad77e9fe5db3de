"""Dense heads with ranking losses: the authors' loss methods, run from clones, on mmdetection's assignment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from mmdet.models.dense_heads.paa_head import EPS, levels_to_images
from mmdet.models.losses import GIoULoss
from mmdet.models.utils import multi_apply
from mmdet.structures.bbox import bbox_overlaps
from mmengine.structures import InstanceData
from torch import Tensor

from concordet.boxes import paired_iou
from concordet.detectors import build_detector
from concordet.detectors.base import Detector
from concordet.losses.criteria import Criterion
from concordet.losses.functional import ap_loss
from oracles.clones import definition
from oracles.comparison import Comparison, largest
from oracles.heads import HEADS, TOLERANCE, AuthorsHead, Head, predictions, published_head, record_of
from oracles.published import float64_buffers, module
from oracles.scenes import CLASSES, HEIGHT, WIDTH, Scene, batches

FUNCTIONS = {
    "rank_sort": "RankSort",
    "bucketed_rank_sort": "BucketedRankSort",
    "ap": "APLoss",
    "bucketed_ap": "BucketedAPLoss",
}
"""The published function of each loss."""

RANK_SORT, BUCKETED = "RankSortLoss", "BucketedRankingBasedLosses"
LOSSES = {RANK_SORT: ["rank_sort"], BUCKETED: list(FUNCTIONS)}
METHODS = {
    "atss": ("rank_based_atss_head.py", "RankBasedATSSHead", ("loss",)),
    "paa": ("rank_based_paa_head.py", "RankBasedPAAHead", ("loss", "get_pos_loss")),
}
"""File, class, and methods that are the authors'."""

COST = "positives are chosen with 1.3 times the GIoU loss, as in PAA with its own loss; published configuration: 1"
CHOSEN = ", {} choice of positives"
APART = "published code counts a positive of IoU 0 as a negative; concordet as a positive"
INTERPOLATED = "the paper's precision; published code interpolates it"


def compare() -> Iterator[Comparison]:
    """Terms and gradients of ATSS and PAA, with each loss of both repositories."""
    atss, paa, _ = HEADS
    for repository, losses in LOSSES.items():
        if module(repository) is None:
            continue
        for loss in losses:
            kind = ", interpolated" if loss == "ap" else ""
            yield from _rows(repository, atss, loss, kind, interpolated=bool(kind))
            what = kind + CHOSEN.format("same")
            yield from _rows(repository, paa, loss, what, cost=1.3, interpolated=bool(kind))
    if module(RANK_SORT) is not None:
        yield from _rows(RANK_SORT, paa, "rank_sort", CHOSEN.format("published"), COST)
    if module(BUCKETED) is not None:
        yield from _rows(BUCKETED, atss, "ap", " as in its paper", INTERPOLATED)


def _rows(
    repository: str, head: Head, loss: str, what: str = "", reason: str = "", **settings: Any
) -> Iterator[Comparison]:
    """Terms and gradients; RS Loss's of batches in which a positive does not overlap its object apart, and once."""
    pairs = [b for b in batches(2) if min(len(s.boxes) for s in b)]
    found: dict[tuple[bool, str], list[tuple[Tensor, Tensor]]] = {}
    for seed, batch in enumerate(pairs):
        terms, apart = _terms(repository, head, loss, seed, batch, **settings)
        for name, values in terms.items():
            found.setdefault((apart and "rank_sort" in loss, name), []).append(values)
    for (apart, name), values in found.items():
        if apart and (reason or repository != RANK_SORT):
            continue
        yield Comparison(
            f"{head.detector} with {loss}{what}{', a positive of IoU 0' if apart else ''}: {name}", repository,
            len(values), max(largest([pair]) for pair in values), "relative", TOLERANCE, APART if apart else reason,
        )  # fmt: skip


class RankedHead(AuthorsHead):
    """The authors' head in float64: in float32 means of buckets, and boxes encoded and decoded, lose digits."""

    def get_anchors(self, sizes: Any, metas: Any, device: Any) -> Any:
        """mmdetection's anchors of each image and level."""
        anchors, flags = super().get_anchors(sizes, metas, device)
        return [[level.double() for level in image] for image in anchors], flags

    def terms(self, logits: list[Tensor], deltas: list[Tensor], batch: list[Scene]) -> dict[str, Tensor]:
        """The published terms."""
        self.batch = [InstanceData(bboxes=s.boxes, labels=s.labels) for s in batch]
        metas = [{"img_shape": (HEIGHT, WIDTH), "pad_shape": (HEIGHT, WIDTH)}] * len(batch)
        with float64_buffers():
            return self.loss(logits, deltas, [s.boxes for s in batch], [s.labels for s in batch], metas)


def names(repository: str) -> dict[str, Any]:
    """What the authors' methods find as global names."""
    return {
        "bbox_overlaps": bbox_overlaps,
        "levels_to_images": levels_to_images,
        "multi_apply": multi_apply,
        "vectorize_labels": definition(repository, "mmdet/core/utils/misc.py", "vectorize_labels"),
        "np": np,
        "EPS": EPS,
    }


def _published(repository: str, head: Head, loss: str, cost: float, model: Detector) -> RankedHead:
    file, owner, methods = METHODS[head.detector]
    scope = names(repository)
    changes = {"reg_decoded_bbox": False} if head.detector == "atss" else {}  # the authors decode its targets
    path = f"mmdet/models/dense_heads/{file}"
    found = RankedHead(repository, path, owner, published_head(head, **changes), methods, scope)
    found.head.bbox_coder.encode = lambda anchors, boxes: model.codec.encode(boxes, anchors)  # its own has float32
    found.anchor_generator = found.head.prior_generator  # its name in mmdetection's second version
    found.rank_loss_type = FUNCTIONS[loss]
    found.loss_rank = getattr(module(repository, stable=True), FUNCTIONS[loss])  # ties are compared with the losses
    found.delta, found.loc_weight = 0.5, 2.0
    found.loss_bbox = WeightedChoice(cost)
    return found


class WeightedChoice(GIoULoss):
    """The configuration's GIoU loss; PAA's choice of positives, which names a reduction, has it ``cost`` times."""

    def __init__(self, cost: float) -> None:
        super().__init__(reduction="none")
        self.cost = cost

    def forward(self, *given: Any, **settings: Any) -> Tensor:
        """``[p]`` losses."""
        return super().forward(*given, **settings) * (self.cost if "reduction_override" in settings else 1.0)


def _interpolate(criterion: Criterion) -> None:
    term = criterion.core.classification
    rank: Callable[..., Any] = lambda logits, labels, aux, **options: (  # noqa: E731
        ap_loss(logits, labels, delta=term.delta, interpolated=True, **options),
    )
    term.rank = rank


@cache
def _model(detector: str, loss: str, interpolated: bool) -> Detector:
    model = build_detector(
        detector, num_classes=CLASSES, backbone="resnet18", image_size=(HEIGHT, WIDTH), loss=loss
    ).train()
    if interpolated:
        _interpolate(model.criterion)
    return model


def _terms(
    repository: str, head: Head, loss: str, seed: int, batch: list[Scene], *, cost: float = 1.0,
    interpolated: bool = False,
) -> tuple[dict[str, tuple[Tensor, Tensor]], bool]:  # fmt: skip
    """Terms and gradients of concordet and of the authors, and whether a positive does not overlap its object."""
    head = replace(head, quality=False)
    model = _model(head.detector, loss, interpolated)
    published = _published(repository, head, loss, cost, model)
    batch = [Scene(s.kind, s.boxes.double(), s.labels) for s in batch]
    raw = [[m.double().requires_grad_() for m in maps] for maps in predictions(head, seed, len(batch))]
    record = record_of(head, model, raw, batch)
    mine, theirs = model.criterion(record), published.terms(raw[0], raw[1], batch)
    terms = {"ranking": "loss_rank", "sorting": "loss_sort"} if "rank_sort" in loss else {"ranking": "loss_rank"}
    # the published first term has the gradient of both
    ranked, box = (sum(mine[name] for name in terms), theirs["loss_rank"]), (mine["box"], theirs["loss_bbox"])
    gradients = []
    for side in range(2):
        parts = torch.autograd.grad(ranked[side], raw[0], retain_graph=True), torch.autograd.grad(box[side], raw[1])
        gradients.append([torch.cat([g.flatten() for g in part]) for part in parts])
    values = {name: (mine[name], theirs[other]) for name, other in terms.items()} | {"box": box}
    values |= dict(zip(("gradient of ranking", "gradient of box"), zip(*gradients, strict=True), strict=True))
    return values, bool((paired_iou(record.boxes, record.gt_boxes) == 0).any())
