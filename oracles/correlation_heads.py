"""Heads with Correlation Loss beside those of its authors: dense ones and set predictors."""

from __future__ import annotations

import types
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from mmdet.models.dense_heads.paa_head import EPS, levels_to_images
from mmdet.models.utils import images_to_levels, multi_apply
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps
from mmengine.structures import InstanceData
from torch import Tensor
from torch.autograd.function import Function

from concordet.detectors import build_detector
from concordet.detectors.dense import DenseDetector
from oracles.clones import definition
from oracles.comparison import Comparison, largest
from oracles.correlations import BIASED, soft_ranks
from oracles.dense import YOLACT, Case, detector, maps, oracle, records_of, scaled, use_ours
from oracles.heads import (
    HEADS,
    RETINANET,
    STRIDES,
    TOLERANCE,
    AuthorsHead,
    Fixed,
    Head,
    flat,
    ours,
    predictions,
    published_head,
)
from oracles.scenes import CLASSES, HEIGHT, WIDTH, Scene, batches
from oracles.sets import (
    QUERIES,
    SparseOracle,
    layer_oracle,
    layer_predictions,
    layer_terms,
    sparse_model,
    sparse_record,
)

REPOSITORY = "CorrLoss"
DENSE = {
    "atss": ("atss", "CorrATSSHead", ("loss", "loss_single", "centerness_target")),
    "paa": ("paa", "CorrPAAHead", ("loss",)),
    "foveabox": (
        "fovea", "CorrFoveaHead", ("loss", "get_points", "get_bbox_targets", "get_targets", "_get_target_single"),
    ),
    "retinanet": ("retina", "CorrRetinaHead", ("loss", "loss_single")),
    "yolact": ("yolact", "CorrYOLACTHead", ("loss", "loss_single_OHEM")),
}  # fmt: skip
"""Name of the file, class, and methods that are the authors'."""

LAYERS = {"detr": "CorrDETRHead", "deformable_detr": "CorrDeformableDETRHead"}
SPARSE = "mmdet/models/roi_heads/bbox_heads/dii_head.py"
WEIGHT = 0.3
LOSSES = {
    "pearson": f"default+pearson({WEIGHT})",
    "spearman": f"default+spearman({WEIGHT}, strength=1)",
    "concordance": f"default+concordance({WEIGHT})",
}
"""Coefficients, with the published strength of soft ranks."""

BY_LEVEL = "one coefficient over all levels, as in the paper's text; published configuration: one per level, averaged"
BY_IMAGE = "one coefficient over the batch, as in the paper's text; published code: one per image, added"
Pairs = dict[str, list[tuple[Tensor, Tensor]]]


def compare() -> Iterator[Comparison]:
    """The term and its gradient, for each coefficient."""
    ranks = soft_ranks()
    if ranks is None or definition(REPOSITORY, SPARSE, "loss", owner="DIIHead") is None:
        return
    pairs = [b for b in batches(2) if min(len(s.boxes) for s in b)]
    for coefficient, loss in LOSSES.items():
        reason = BIASED if coefficient == "concordance" else ""
        for head in (*HEADS, RETINANET):
            yield from rows(f"{head.detector}, {coefficient}", _dense(head, coefficient, loss, pairs, ranks), reason)
        single = _yolact(coefficient, loss, [[scene] for batch in pairs for scene in batch], ranks)
        yield from rows(f"yolact, {coefficient}, one image", single, reason)
        for name in LAYERS:
            yield from rows(f"{name}, {coefficient}", _layer(name, coefficient, loss, pairs, ranks), reason)
        yield from rows(f"sparse_rcnn, {coefficient}", _sparse(coefficient, loss, pairs, ranks), reason)
    found = _dense(RETINANET, "spearman", LOSSES["spearman"], pairs, ranks, by_level=True)
    yield from rows("retinanet, spearman by level", found, BY_LEVEL)
    found = _yolact("spearman", LOSSES["spearman"], pairs, ranks)
    yield from rows("yolact, spearman by image", found, BY_IMAGE)


def rows(what: str, found: Pairs, reason: str) -> Iterator[Comparison]:
    """One row for the value, one for the gradient."""
    for name, values in found.items():
        deviation = max(largest([pair]) for pair in values)
        yield Comparison(f"{what}: {name}", REPOSITORY, len(values), deviation, "relative", TOLERANCE, reason)


def torchsort(operators: types.ModuleType) -> SimpleNamespace:
    """torchsort's soft ranks by those of fast-soft-sort, which it ports; differentiable."""

    class SoftRank(Function):
        @staticmethod
        def forward(context: Any, values: Tensor, strength: float) -> Tensor:
            context.operator = operators.SoftRank(values.detach().double().numpy(), regularization_strength=strength)
            return torch.from_numpy(context.operator.compute())  # in float64: ranks of this strength hardly differ

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
            return torch.from_numpy(context.operator.vjp(gradient.numpy())).float(), None

    def soft_rank(values: Tensor, regularization_strength: float) -> Tensor:
        return SoftRank.apply(values[0], regularization_strength)[None]

    return SimpleNamespace(soft_rank=soft_rank)


class Published(AuthorsHead):
    """mmdetection's head with the authors' losses and coefficients."""

    def __init__(self, path: str, owner: str, head: Any, methods: tuple[str, ...], ranks: types.ModuleType) -> None:
        scope = {
            "torchsort": torchsort(ranks),
            "bbox_overlaps": bbox_overlaps,
            "bbox_cxcywh_to_xyxy": bbox_cxcywh_to_xyxy,
            "images_to_levels": images_to_levels,
            "levels_to_images": levels_to_images,
            "multi_apply": multi_apply,
            "reduce_mean": lambda value: value,
            "accuracy": lambda *given: None,
            "EPS": EPS,
        }
        methods = (*methods, "pearsonr", "concordancer", "spearmanr")
        super().__init__(REPOSITORY, path, owner, head, methods, scope)
        self.corr_w, self.corr_threshold, self.regul_strength, self.use_loss_single = WEIGHT, 1, 1.0, 0


def dense(detector: str, head: Any, coefficient: str, ranks: types.ModuleType) -> Published:
    """The authors' head on mmdetection's."""
    name, owner, methods = DENSE[detector]
    published = Published(f"mmdet/models/dense_heads/corr_{name}_head.py", owner, head, methods, ranks)
    published.corr_type = coefficient
    return published


def _dense(
    head: Head,
    coefficient: str,
    loss: str,
    pairs: list[list[Scene]],
    ranks: types.ModuleType,
    *,
    by_level: bool = False,
) -> Pairs:
    model = build_detector(
        head.detector, num_classes=CLASSES, backbone="resnet18", image_size=(HEIGHT, WIDTH), loss=loss
    )
    published = dense(head.detector, published_head(head), coefficient, ranks)
    published.use_loss_single = int(by_level)
    cells = [(-(-HEIGHT // s), -(-WIDTH // s)) for s in STRIDES]
    case = Case(head.detector, head.config, (HEIGHT, WIDTH), cells, [head.per_location] * 5)
    metas = {"img_shape": (HEIGHT, WIDTH), "pad_shape": (HEIGHT, WIDTH)}
    found: Pairs = {"value": [], "gradient": []}
    for seed, batch in enumerate(pairs):
        maps = predictions(head, seed, len(batch))
        for m in maps[0]:
            m.requires_grad_()
        mine, _ = ours(head, model, maps, batch)
        if head.detector == "retinanet":
            outcome = DenseDetector._predict(model, [torch.rand(3, HEIGHT, WIDTH) for _ in batch], None)
            use_ours(published.head, case, outcome.stages[-1].anchors[0], model.assigner)
        published.batch = [InstanceData(bboxes=s.boxes, labels=s.labels) for s in batch]
        raw = maps if head.quality else maps[:2]
        theirs = published.loss(*raw, [s.boxes for s in batch], [s.labels for s in batch], [metas] * len(batch))
        other = theirs["loss_corr"]
        other = sum(other) if isinstance(other, list) else other
        _add(found, mine[coefficient], other, maps[0])
    return found


def _yolact(coefficient: str, loss: str, batches: list[list[Scene]], ranks: types.ModuleType) -> Pairs:
    """With concordet's anchors and matching; the published term is the sum of those of the images.

    In float64, and encoded by concordet's coder, since mmdetection's has float32: the authors decode their targets, and
    thin boxes lose two digits on the way.
    """
    model, head = detector(YOLACT, loss), oracle(YOLACT)
    head.bbox_coder.encode = lambda anchors, boxes: model.codec.encode(boxes, anchors)
    model.predict = lambda batch, features: DenseDetector.predict(model, batch, features)  # without masks
    published = dense("yolact", head, coefficient, ranks)
    metas = {"img_shape": YOLACT.size, "pad_shape": YOLACT.size}
    found: Pairs = {"value": [], "gradient": []}
    for seed, scenes in enumerate(batches):
        batch = [scaled(Scene(s.kind, s.boxes.double(), s.labels), YOLACT.size) for s in scenes]
        logits = [m.double().requires_grad_() for m in maps(YOLACT, seed, YOLACT.columns, len(batch))]
        deltas = [m.double() for m in maps(YOLACT, 100 + seed, 4, len(batch))]
        model.backbone = Fixed({str(i): m for i, m in enumerate(logits)})
        model.head = Fixed((flat(logits, YOLACT.columns), flat(deltas, 4), None))
        mine = model.criterion(records_of(model, YOLACT, batch))
        outcome = DenseDetector._predict(model, [torch.rand(3, *YOLACT.size) for _ in batch], None)
        use_ours(head, YOLACT, outcome.stages[-1].anchors[0], model.assigner)
        published.batch = [InstanceData(bboxes=s.boxes, labels=s.labels) for s in batch]
        objects = [s.boxes for s in batch], [s.labels for s in batch]
        theirs, _ = published.loss(logits, deltas, *objects, [metas] * len(batch))
        _add(found, mine[coefficient], sum(theirs["loss_corr"]), logits)
    return found


def _add(found: Pairs, mine: Tensor, other: Tensor, inputs: list[Tensor]) -> None:
    found["value"].append((mine, other))
    gradients = (torch.autograd.grad(x, inputs, allow_unused=True, materialize_grads=True) for x in (mine, other))
    one, two = (torch.cat([g.flatten() for g in each]) for each in gradients)
    found["gradient"].append((one, two))


class PublishedLayer(Published):
    """One decoder layer, whose term the published code does not weight."""

    def get_targets(self, logits: Any, boxes: Any, *given: Any) -> Any:  # type: ignore[override]  # its second version's
        """mmdetection's targets."""
        return self.head.get_targets(logits, boxes, self.batch, [{"img_shape": (HEIGHT, WIDTH)}] * len(logits))


def _layer(name: str, coefficient: str, loss: str, pairs: list[list[Scene]], ranks: types.ModuleType) -> Pairs:
    model = build_detector(name, num_classes=CLASSES, size="nano", loss=loss)
    path = f"mmdet/models/dense_heads/corr_{name}_head.py"
    published = PublishedLayer(path, LAYERS[name], layer_oracle(name), ("loss_single",), ranks)
    published.corr_type = coefficient
    found: Pairs = {"value": [], "gradient": []}
    for seed, batch in enumerate(pairs):
        logits, boxes = layer_predictions(model, seed, len(batch))
        logits.requires_grad_()
        published.batch = [InstanceData(bboxes=s.boxes, labels=s.labels) for s in batch]
        metas = [{"img_shape": (HEIGHT, WIDTH, 3)}] * len(batch)
        *_, theirs = published.loss_single(logits, boxes, None, None, metas, None)
        _add(found, layer_terms(model, logits, boxes, batch)[coefficient], WEIGHT * theirs, [logits])
    return found


def _sparse(coefficient: str, loss: str, pairs: list[list[Scene]], ranks: types.ModuleType) -> Pairs:
    model, oracle = sparse_model(loss), SparseOracle()
    published = Published(SPARSE, "DIIHead", oracle.head, ("loss",), ranks)
    published.corr_type = coefficient
    found: Pairs = {"value": [], "gradient": []}
    for seed, batch in enumerate(pairs):
        logits, boxes = oracle.predictions(seed, len(batch))
        logits.requires_grad_()
        mine = model.criterion.stages["stage1"](sparse_record(model, logits, boxes, batch))
        targets = oracle.head.get_targets(oracle.samples(logits.detach(), boxes, batch), oracle.training)
        sides = oracle.sides.expand(len(batch), QUERIES, 4)
        theirs = published.loss(logits.flatten(0, 1), boxes.flatten(0, 1), *targets, sides)
        _add(found, mine[coefficient], theirs["loss_corr"], [logits])
    return found
