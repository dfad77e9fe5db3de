"""Set predictors: terms of one decoder layer's predictions, matched by both."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import Tensor

from concordet.detectors import build_detector
from concordet.detectors.architectures.set_prediction.detection_transformer import to_pixels
from concordet.detectors.parts.objects import Objects
from concordet.detectors.set_prediction import Outcome, Stage
from oracles.comparison import Comparison, largest
from oracles.heads import CONFIGS, TOLERANCE
from oracles.scenes import CLASSES, HEIGHT, WIDTH, batches

QUERIES = 100
SETS = {
    "deformable_detr": (
        "deformable_detr/deformable-detr_r50_16xb2-50e_coco.py",
        "weight 1 of the class as in Transformers, there 2",
    ),
    "detr": ("detr/detr_r50_8xb2-150e_coco.py", ""),
}


def compare() -> Iterator[Comparison]:
    """Classification, L1 and GIoU terms."""
    pairs = [b for b in batches(2) if min(len(s.boxes) for s in b)]
    for name, (path, reason) in SETS.items():
        model = build_detector(name, num_classes=CLASSES, size="nano", loss="default")
        stage = list(model.criterion.stages)[-1]
        config = Config.fromfile(CONFIGS / path).model
        settings = config.bbox_head
        settings.update(num_classes=CLASSES, train_cfg=config.train_cfg)
        if name == "deformable_detr":
            settings.update(share_pred_layer=True, num_pred_layer=1, as_two_stage=False)
        head = MODELS.build(settings)
        terms = {"classification": 0, "l1": 1, "box": 2}
        found: dict[str, list[tuple[Tensor, Tensor]]] = {term: [] for term in terms}
        for seed, batch in enumerate(pairs):
            generator = torch.Generator().manual_seed(seed)
            width = CLASSES + bool(model.criterion.needs.softmax)
            logits = torch.randn(len(batch), QUERIES, width, generator=generator)
            boxes = 0.1 + 0.8 * torch.rand(len(batch), QUERIES, 4, generator=generator)
            boxes[..., 2:] *= 0.3
            size = (HEIGHT, WIDTH)
            objects = Objects.of([s.boxes for s in batch], [s.labels for s in batch])
            layer = Stage(stage, logits, to_pixels(boxes, [size] * len(batch)))
            outcome = Outcome([layer], [size] * len(batch), objects)
            (record,) = model._records(outcome, trained=True)
            mine = model.criterion.stages[stage](record)
            theirs = head.loss_by_feat_single(
                logits,
                boxes,
                [InstanceData(bboxes=s.boxes, labels=s.labels) for s in batch],
                [{"img_shape": size}] * len(batch),
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
                    f"{name}: {term} term, twice ours", "mmdet 3.3.0", len(values), deviation, "relative", TOLERANCE
                )
