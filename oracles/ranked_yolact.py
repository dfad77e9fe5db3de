"""YOLACT with RS Loss, without its masks: the authors' training step, run from a clone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from mmdet.models.losses import GIoULoss
from mmengine.structures import InstanceData
from torch import Tensor

from concordet.assigned import Assigned
from concordet.detectors import build_detector
from concordet.detectors.dense import DenseDetector
from oracles.clones import definition
from oracles.comparison import Comparison, largest
from oracles.dense import YOLACT, maps, oracle, records_of, scaled, use_ours
from oracles.heads import TOLERANCE, AuthorsHead, Fixed, flat
from oracles.published import float64_buffers, module
from oracles.ranked_heads import RANK_SORT, names
from oracles.scenes import Scene, batches

CLASSES = 80
"""The authors' head has this number in its code."""

HEAD = "mmdet/models/dense_heads/ranksort_yolact_head.py"
DETECTOR = "mmdet/models/detectors/ranksort_yolact.py"
TERMS = {"ranking": "ranking_loss", "sorting": "sorting_loss", "box": "loss_bbox"}


class Outputs:
    """A head with fixed outputs, and its loss."""

    def __init__(self, outputs: Any, loss: Callable[..., Any]) -> None:
        self.outputs, self.loss = outputs, loss

    def __call__(self, *given: Any) -> Any:
        return self.outputs


def compare() -> Iterator[Comparison]:
    """Terms, and the gradient of ranking and sorting, with concordet's anchors and matching, in float64."""
    losses = module(RANK_SORT)
    if losses is None:
        return
    model = build_detector(
        "yolact", num_classes=CLASSES, backbone="resnet18", image_size=YOLACT.size, loss="rank_sort"
    ).train()
    model.predict = lambda batch, features: DenseDetector.predict(model, batch, features)  # without masks
    sigmoid = {"type": "CrossEntropyLoss", "use_sigmoid": True, "reduction": "none"}
    base = oracle(YOLACT, num_classes=CLASSES, loss_cls=sigmoid)
    head = AuthorsHead(RANK_SORT, HEAD, "RankSortYOLACTHead", base, ("loss", "delta2bbox"), names(RANK_SORT))
    head.loss_bbox = GIoULoss()
    base.bbox_coder.encode = lambda anchors, boxes: model.codec.encode(boxes, anchors)  # its own has float32
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for seed, scenes in enumerate(batches(1)):
        if any(s.kind in ("empty", "crowd") for s in scenes):
            continue  # of crowds the published loop takes minutes
        batch = [scaled(Scene(s.kind, s.boxes.double(), s.labels), YOLACT.size) for s in scenes]
        logits = [m.double().requires_grad_() for m in maps(YOLACT, seed, CLASSES, shift=-2.0)]
        deltas = [m.double() for m in maps(YOLACT, 100 + seed, 4)]
        model.backbone = Fixed({str(i): m for i, m in enumerate(logits)})
        model.head = Fixed((flat(logits, CLASSES), flat(deltas, 4), None))
        record = records_of(model, YOLACT, batch)
        outcome = DenseDetector._predict(model, [torch.rand(3, *YOLACT.size) for _ in batch], None)
        use_ours(base, YOLACT, outcome.stages[-1].anchors[0], model.assigner)
        head.anchor_generator = base.prior_generator  # its name in mmdetection's second version
        head.batch = [InstanceData(bboxes=s.boxes, labels=s.labels) for s in batch]
        mine, theirs = model.criterion(record), _step(losses.RankSort, head, record, (logits, deltas, None), batch)
        for name, other in TERMS.items():
            found.setdefault(name, []).append((mine[name], theirs[other]))
        each = (mine["ranking"] + mine["sorting"], theirs["ranking_loss"])  # it has the gradient of both
        one, two = (torch.cat([g.flatten() for g in torch.autograd.grad(x, logits)]) for x in each)
        found.setdefault("gradient of ranking and sorting", []).append((one, two))
    for name, values in found.items():
        deviation = max(largest([pair]) for pair in values)
        yield Comparison(f"yolact with rank_sort: {name}", RANK_SORT, len(values), deviation, "relative", TOLERANCE)


def _step(rank: Any, head: AuthorsHead, record: Assigned, outputs: Any, batch: list[Scene]) -> dict[str, Tensor]:
    """The authors' training step on these outputs; masks are equally good."""
    train = definition(RANK_SORT, DETECTOR, "forward_train", owner="RankSortYOLACT")
    dice = torch.full((len(record.boxes),), 0.5, dtype=torch.float64, requires_grad=True)
    detector = SimpleNamespace(
        extract_feat=lambda images: [None],
        bbox_head=Outputs(outputs, head.loss),
        mask_head=Outputs(None, lambda *given: dice),
        loss_rank=rank,
    )
    metas = [{"img_shape": YOLACT.size, "pad_shape": YOLACT.size}] * len(batch)
    with float64_buffers():
        return train(detector, None, metas, [s.boxes for s in batch], [s.labels for s in batch], gt_masks=[])
