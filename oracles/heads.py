"""Losses of whole heads: the same raw predictions and objects, matched and weighted by both."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmdet
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import Tensor, nn

from concordet.assigned import Assigned
from concordet.detectors import build_detector
from concordet.detectors.base import Detector
from oracles.clones import definition
from oracles.comparison import Comparison, largest
from oracles.scenes import CLASSES, HEIGHT, WIDTH, Scene, batches

CONFIGS = Path(mmdet.__file__).parent / ".mim" / "configs"
STRIDES = (8, 16, 32, 64, 128)
TOLERANCE = 1e-5
"""Relative tolerance, for float32."""


@dataclass(frozen=True)
class Head:
    """A head to compare.

    Attributes:
        detector: concordet's name.
        config: mmdetection's configuration.
        per_location: anchors per location.
        quality: whether it predicts centerness or IoU.
        terms: our term to theirs.
        normalizers: factors of their terms that undo another normalizer, given each image's number of positives.
        reasons: why a term differs, by our name.
    """

    detector: str
    config: str
    per_location: int
    quality: bool
    terms: dict[str, str]
    normalizers: Callable[[list[int]], dict[str, float]]
    reasons: dict[str, str]


def _as_ours(positives: list[int]) -> dict[str, float]:
    return {}


def one_per_image(positives: list[int]) -> dict[str, float]:
    """mmdetection counts at least one positive per image, concordet at least one per batch."""
    factor = sum(max(count, 1) for count in positives) / max(sum(positives), 1)
    return {"classification": factor, "quality": factor}


def _images_beside_positives(positives: list[int]) -> dict[str, float]:
    """FoveaBox's head divides the classification by the positives plus the images."""
    return {"classification": (sum(positives) + len(positives)) / max(sum(positives), 1)}


RETINANET = Head(
    "retinanet", "retinanet/retinanet_r50_fpn_1x_coco.py", 9, False,
    {"classification": "loss_cls", "box": "loss_bbox"}, _as_ours, {},
)  # fmt: skip
HEADS = (
    Head(
        "atss", "atss/atss_r50_fpn_1x_coco.py", 1, True,
        {"classification": "loss_cls", "box": "loss_bbox", "quality": "loss_centerness"}, one_per_image, {},
    ),
    Head(
        "paa", "paa/paa_r50_fpn_1x_coco.py", 1, True,
        {"classification": "loss_cls", "box": "loss_bbox", "quality": "loss_iou"}, _as_ours,
        {},
    ),
    Head(
        "foveabox", "foveabox/fovea_r50_fpn_4xb4-1x_coco.py", 1, False,
        {"classification": "loss_cls", "box": "loss_bbox"},
        _images_beside_positives, {},
    ),
)  # fmt: skip


class Fixed(nn.Module):
    """A network with fixed outputs."""

    def __init__(self, outputs: Any) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, features: Any) -> Any:
        """The outputs, independent of the input."""
        return self.outputs


def predictions(head: Head, seed: int, n_images: int) -> list[list[Tensor]]:
    """Raw maps of each level, ``[b, k x, h, w]``: logits (x = c), regressions (x = 4) and quality (x = 1)."""
    generator = torch.Generator().manual_seed(seed)
    channels = [head.per_location * c for c in (CLASSES, 4, 1)]
    levels = [(-(-HEIGHT // s), -(-WIDTH // s)) for s in STRIDES]
    return [
        [shift + 0.5 * torch.randn(n_images, c, *level, generator=generator) for level in levels]
        for c, shift in zip(channels, (-2.0, 0.0, 0.0), strict=True)
    ]


def flat(maps: list[Tensor], columns: int) -> Tensor:
    """``[b, a, columns]`` of all levels."""
    return torch.cat([m.permute(0, 2, 3, 1).reshape(len(m), -1, columns) for m in maps], 1)


def ours(
    head: Head, model: Detector, maps: list[list[Tensor]], batch: list[Scene]
) -> tuple[dict[str, Tensor], list[int]]:
    """concordet's terms, and how many positives each image has."""
    record = record_of(head, model, maps, batch)
    positives = torch.bincount(record.image_ids, minlength=len(batch)).tolist()
    return model.criterion(record), positives


def record_of(head: Head, model: Detector, maps: list[list[Tensor]], batch: list[Scene]) -> Assigned:
    """The record that concordet's loss sees."""
    logits, regressions, quality = maps
    model.backbone = Fixed({str(i): m for i, m in enumerate(logits)})
    model.head = Fixed(
        (flat(logits, CLASSES), flat(regressions, 4), flat(quality, 1).squeeze(-1) if head.quality else None)
    )
    images = [torch.rand(3, HEIGHT, WIDTH, dtype=logits[0].dtype) for _ in batch]
    targets = [{"boxes": s.boxes, "labels": s.labels + 1} for s in batch]
    return model.train().assigned(images, targets)[-1]


def published_head(head: Head, **changes: Any) -> Any:
    """mmdetection's head, with its configuration and ``changes``."""
    config = Config.fromfile(CONFIGS / head.config).model
    settings = config.bbox_head
    settings.update(num_classes=CLASSES, train_cfg=config.train_cfg, test_cfg=config.test_cfg, **changes)
    return MODELS.build(settings)


class AuthorsHead:
    """mmdetection's head with methods of the authors; what they read otherwise is mmdetection's.

    Args:
        repository: name of the repository.
        path: file of the authors' head.
        owner: its class.
        head: mmdetection's head.
        methods: names of the authors' methods.
        scope: what these find as global names.
    """

    def __init__(
        self, repository: str, path: str, owner: str, head: Any, methods: tuple[str, ...], scope: dict[str, Any]
    ) -> None:
        self.head, self.batch, self.sampling = head, [], False
        for name in methods:
            setattr(self, name, types.MethodType(definition(repository, path, name, scope, owner=owner), self))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.head, name)

    def get_anchors(self, sizes: Any, metas: Any, device: Any) -> Any:
        """mmdetection's anchors of each image and level."""
        return self.head.get_anchors(sizes, metas, device="cpu")

    def get_targets(self, anchors: Any, flags: Any, boxes: Any, metas: Any, **given: Any) -> Any:
        """mmdetection's targets; the number of negatives comes after that of positives, as in its second version."""
        kept = {name: given[name] for name in ("unmap_outputs", "return_sampling_results") if name in given}
        found = self.head.get_targets(anchors, flags, self.batch, batch_img_metas=metas, **kept)
        if hasattr(self.head, "paa_reassign"):
            return found
        last = 6 if hasattr(self.head, "centerness_target") else 5  # ATSS's begin with the anchors
        return (*found[:last], 0, *found[last:])


def theirs(head: Head, maps: list[list[Tensor]], batch: list[Scene]) -> dict[str, Tensor]:
    """mmdetection's terms."""
    module = published_head(head)
    meta = {"img_shape": (HEIGHT, WIDTH), "pad_shape": (HEIGHT, WIDTH), "batch_input_shape": (HEIGHT, WIDTH)}
    objects = [InstanceData(bboxes=s.boxes, labels=s.labels) for s in batch]
    raw = maps if head.quality else maps[:2]
    if head.detector == "foveabox":  # exp is part of its network
        raw = [raw[0], [m.clone() for m in raw[1]]]
    losses = module.loss_by_feat(*raw, objects, [meta] * len(batch))
    return {k: sum(v) if isinstance(v, list | tuple) else v for k, v in losses.items()}


def compare() -> Iterator[Comparison]:
    """Every head over batches of two scenes that have an object."""
    for head in HEADS:
        pairs: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in head.terms}
        model = build_detector(
            head.detector, num_classes=CLASSES, backbone="resnet18", image_size=(HEIGHT, WIDTH), loss="default"
        )
        count = 0
        for seed, batch in enumerate(batches(2)):
            if min(len(s.boxes) for s in batch) == 0:
                continue  # what is left there are the normalizers
            maps = predictions(head, seed, len(batch))
            mine, positives = ours(head, model, maps, batch)
            published = theirs(head, maps, batch)
            factors = head.normalizers(positives)
            count += 1
            for name, other in head.terms.items():
                pairs[name].append((mine[name], published[other] * factors.get(name, 1.0)))
        for name, values in pairs.items():
            deviation = max(largest([pair]) for pair in values)
            yield Comparison(
                f"{head.detector}: {name} term", "mmdet 3.3.0", count, deviation, "relative", TOLERANCE,
                head.reasons.get(name, ""),
            )  # fmt: skip
