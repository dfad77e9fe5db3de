"""Set predictors: terms of one decoder layer's predictions, matched by both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from mmdet.models.task_modules.samplers import PseudoSampler
from mmdet.registry import MODELS, TASK_UTILS
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import Tensor

from concordet.assigned import Assigned
from concordet.detectors import build_detector
from concordet.detectors.architectures.set_prediction.detection_transformer import to_pixels
from concordet.detectors.parts.objects import Objects
from concordet.detectors.set_prediction import Outcome, SetPredictor, Stage
from oracles.comparison import Comparison, largest
from oracles.heads import CONFIGS, TOLERANCE
from oracles.scenes import CLASSES, HEIGHT, WIDTH, Scene, batches

QUERIES = 100
SETS = {
    "deformable_detr": (
        "deformable_detr/deformable-detr_r50_16xb2-50e_coco.py",
        "as Transformers: class weight 1; mmdetection: 2",
    ),
    "detr": ("detr/detr_r50_8xb2-150e_coco.py", ""),
}


def compare() -> Iterator[Comparison]:
    """Classification, L1 and GIoU terms."""
    pairs = [b for b in batches(2) if min(len(s.boxes) for s in b)]
    for name, (_, reason) in SETS.items():
        model, head = build_detector(name, num_classes=CLASSES, size="nano", loss="default"), layer_oracle(name)
        terms = {"classification": 0, "l1": 1, "box": 2}
        found: dict[str, list[tuple[Tensor, Tensor]]] = {term: [] for term in terms}
        for seed, batch in enumerate(pairs):
            logits, boxes = layer_predictions(model, seed, len(batch))
            mine = layer_terms(model, logits, boxes, batch)
            theirs = head.loss_by_feat_single(
                logits,
                boxes,
                [InstanceData(bboxes=s.boxes, labels=s.labels) for s in batch],
                [{"img_shape": (HEIGHT, WIDTH)}] * len(batch),
            )
            for term, index in terms.items():
                found[term].append((mine[term], theirs[index]))
        for term, values in found.items():
            deviation = max(largest([pair]) for pair in values)
            yield Comparison(
                f"{name}: {term} term", "mmdet 3.3.0", len(values), deviation, "relative", TOLERANCE,
                reason if term == "classification" else "",
            )  # fmt: skip
            if term == "classification" and reason:
                deviation = max(largest([(2 * a, b)]) for a, b in values)
                yield Comparison(
                    f"{name}: {term} term, doubled", "mmdet 3.3.0", len(values), deviation, "relative", TOLERANCE
                )
    yield from _sparse(pairs)


def layer_oracle(name: str) -> Any:
    """mmdetection's head of DETR or Deformable DETR."""
    config = Config.fromfile(CONFIGS / SETS[name][0]).model
    settings = config.bbox_head
    settings.update(num_classes=CLASSES, train_cfg=config.train_cfg)
    if name == "deformable_detr":
        settings.update(share_pred_layer=True, num_pred_layer=1, as_two_stage=False)
    return MODELS.build(settings)


def layer_predictions(model: SetPredictor, seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Logits, and boxes as shares of the image, of one decoder layer."""
    generator = torch.Generator().manual_seed(seed)
    width = CLASSES + bool(model.criterion.needs.softmax)
    logits = torch.randn(count, QUERIES, width, generator=generator)
    boxes = 0.1 + 0.8 * torch.rand(count, QUERIES, 4, generator=generator)
    boxes[..., 2:] *= 0.3
    return logits, boxes


def layer_terms(model: SetPredictor, logits: Tensor, boxes: Tensor, batch: list[Scene]) -> dict[str, Tensor]:
    """concordet's terms of the last decoder layer with these predictions."""
    stage, sizes = list(model.criterion.stages)[-1], [(HEIGHT, WIDTH)] * len(batch)
    objects = Objects.of([s.boxes for s in batch], [s.labels for s in batch])
    outcome = Outcome([Stage(stage, logits, to_pixels(boxes, sizes))], sizes, objects)
    (record,) = model._records(outcome, trained=True)
    return model.criterion.stages[stage](record)


def _sparse(pairs: list[list[Scene]]) -> Iterator[Comparison]:
    """A head of Sparse R-CNN, whose boxes are in pixels."""
    model, oracle = sparse_model("default"), SparseOracle()
    found: dict[str, list[tuple[Tensor, Tensor]]] = {"classification": [], "l1": [], "box": []}
    for seed, batch in enumerate(pairs):
        logits, boxes = oracle.predictions(seed, len(batch))
        mine = model.criterion.stages["stage1"](sparse_record(model, logits, boxes, batch))
        theirs = oracle.head.loss_and_target(
            logits.flatten(0, 1), boxes.flatten(0, 1), oracle.samples(logits, boxes, batch), oracle.training,
            oracle.sides.expand(len(batch), QUERIES, 4),
        )["loss_bbox"]  # fmt: skip
        for term, other in (("classification", "loss_cls"), ("l1", "loss_bbox"), ("box", "loss_iou")):
            found[term].append((mine[term], theirs[other]))
    for term, values in found.items():
        deviation = max(largest([pair]) for pair in values)
        yield Comparison(f"sparse_rcnn: {term} term", "mmdet 3.3.0", len(values), deviation, "relative", TOLERANCE)


def sparse_model(loss: str) -> SetPredictor:
    """concordet's Sparse R-CNN."""
    return build_detector("sparse_rcnn", num_classes=CLASSES, size="nano", loss=loss)


def sparse_record(model: SetPredictor, logits: Tensor, boxes: Tensor, batch: list[Scene]) -> Assigned:
    """The record of a stage with these predictions."""
    objects = Objects.of([s.boxes for s in batch], [s.labels for s in batch])
    sizes = [(HEIGHT, WIDTH)] * len(batch)
    (record,) = model._records(Outcome([Stage("stage1", logits, boxes)], sizes, objects), trained=True)
    return record


class SparseOracle:
    """mmdetection's head and assigner."""

    def __init__(self) -> None:
        config = Config.fromfile(CONFIGS / "sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py").model
        settings, self.training = config.roi_head.bbox_head[0], config.train_cfg.rcnn[0]
        settings.update(num_classes=CLASSES)
        self.head = MODELS.build(settings)
        self.assigner = TASK_UTILS.build(self.training.assigner)
        self.sides = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT], dtype=torch.float32)

    def predictions(self, seed: int, count: int) -> tuple[Tensor, Tensor]:
        """Logits, and boxes in pixels."""
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(count, QUERIES, CLASSES, generator=generator)
        boxes = 0.1 + 0.8 * torch.rand(count, QUERIES, 4, generator=generator)
        boxes[..., 2:] *= 0.3
        return logits, to_pixels(boxes, [(HEIGHT, WIDTH)] * count)

    def samples(self, logits: Tensor, boxes: Tensor, batch: list[Scene]) -> list[Any]:
        """All predictions of each image with their objects."""
        found = []
        for scene, scores, own in zip(batch, logits, boxes, strict=True):
            predicted = InstanceData(bboxes=own, scores=scores, priors=own)
            truth = InstanceData(bboxes=scene.boxes, labels=scene.labels)
            assigned = self.assigner.assign(predicted, truth, img_meta={"img_shape": (HEIGHT, WIDTH)})
            found.append(PseudoSampler().sample(assigned, predicted, truth))
        return found
