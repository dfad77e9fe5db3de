"""What Co-DETR adds to a Deformable DETR in training: auxiliary heads on the encoder's output, queries from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from concordet.assigned import Assigned
from concordet.detectors.architectures.dense.atss import CODEC, atss_head
from concordet.detectors.architectures.two_stage.faster_rcnn import box_pool, box_stage
from concordet.detectors.dense import DenseDetector
from concordet.detectors.networks.backbones import Size
from concordet.detectors.parts.assigners import atss_matches
from concordet.detectors.parts.proposals import objects_of, region_proposals
from concordet.detectors.parts.targets import Target
from concordet.detectors.two_stage import TwoStageDetector
from concordet.losses.criteria import Criterion, StagedCriterion

MOST = 300  # extra queries of a head and an image, as published


@dataclass(frozen=True)
class Positives:
    """p boxes of an auxiliary head that have an object, in the order of images."""

    record: Assigned  # the head's; its positives are these
    boxes: Tensor  # [p, 4] anchors or proposals, xyxy pixels
    features: Tensor  # [p, d] where they were found


class Adapter(nn.Module):
    """The encoder's output as a feature pyramid, with one level more at half the resolution of the coarsest.

    Zong et al. 2023, Sec. 3.2 (multi-scale adapter).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.downsample = nn.Sequential(
            nn.Conv2d(channels, channels, 3, stride=2, padding=1), nn.GroupNorm(32, channels)
        )

    def forward(self, memory: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Levels ``[b, d, h, w]``, finest first, of ``[b, n, d]`` and the levels' heights and widths."""
        parts = memory.split([height * width for height, width in shapes], dim=1)
        levels = [x.transpose(1, 2).unflatten(2, shape) for x, shape in zip(parts, shapes, strict=True)]
        return [*levels, self.downsample(levels[-1])]


class AuxiliaryHeads(nn.Module):
    """ATSS and Faster R-CNN, the zoo's own, on the encoder's output (Zong et al. 2023, Sec. 3.2; Table 1).

    Records are named ``rpn``, ``roi`` and ``atss``.

    Args:
        channels: of the encoder.
        strides: of its levels.
        criterion: with stages of these names.
        num_classes: foreground classes.
        size: of the heads.
        **settings: of detectors.
    """

    def __init__(
        self,
        channels: int,
        strides: Sequence[int],
        criterion: StagedCriterion,
        *,
        num_classes: int,
        size: Size,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.adapter = Adapter(channels)
        strides = [*strides, 2 * strides[-1]]
        own = cast(Criterion, criterion.stages["atss"])
        head, anchors = atss_head(own, num_classes, size, channels, strides)
        self.atss = DenseDetector(
            nn.Identity(), head, anchors, CODEC, atss_matches, own, num_classes=num_classes, **settings
        )
        staged = StagedCriterion({name: cast(Criterion, criterion.stages[name]) for name in ("rpn", "roi")})
        self.rcnn = TwoStageDetector(
            nn.Identity(),
            region_proposals(channels, strides, staged, size=size),
            box_pool(size),
            [box_stage(staged, num_classes, size, channels)],
            staged,
            num_classes=num_classes,
            **settings,
        )
        del self.atss.criterion, self.rcnn.criterion  # they are stages of the whole detector's

    def forward(
        self, batch: ImageList, memory: Tensor, shapes: Sequence[tuple[int, int]], targets: list[Target]
    ) -> tuple[list[Assigned], dict[str, Positives]]:
        """The heads' records, and what they found positive.

        Args:
            batch: images at the network's input size.
            memory: ``[b, n, d]`` the encoder's output.
            shapes: height and width of each of its levels.
            targets: resized.
        """
        levels = self.adapter(memory, shapes)
        rpn, rcnn = self._rcnn(batch, levels, targets)
        atss = self._atss(batch, levels, targets)
        return [rpn, rcnn.record, atss.record], {"rcnn": rcnn, "atss": atss}

    def _atss(self, batch: ImageList, levels: list[Tensor], targets: list[Target]) -> Positives:
        (predictions,) = self.atss._stages(batch, levels)
        record = self.atss._assign(replace(predictions, stage="atss"), targets)
        where = torch.cat([x.flatten(2) for x in levels], dim=2).transpose(1, 2).flatten(0, 1)  # one anchor a location
        return Positives(record, torch.cat(predictions.anchors)[record.positive], where[record.positive])

    def _rcnn(self, batch: ImageList, levels: list[Tensor], targets: list[Target]) -> tuple[Assigned, Positives]:
        head, objects = self.rcnn, [objects_of(t) for t in targets]
        found = head._proposed(batch, {str(i): x for i, x in enumerate(levels)})
        proposals = head._trained_rpn_record(found, objects)
        refined = head._refine(found, head._training_boxes(found, objects))
        (record,) = head._roi_records(found, refined, objects)
        boxes = torch.cat(refined[0].references)[record.positive]
        each = [boxes[record.image_ids == i] for i in range(len(objects))]
        return proposals, Positives(record, boxes, head._pool(head.box_pool, found, each).mean(dim=(2, 3)))


class QueryMaker(nn.Module):
    """Queries from boxes and the features where they were found (Zong et al. 2023, Eq. 5).

    Args:
        channels: of the queries.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.place = nn.Sequential(nn.Linear(2 * channels, 2 * channels), nn.LayerNorm(2 * channels))
        self.content = nn.Sequential(nn.Linear(channels, channels), nn.LayerNorm(channels))
        self.origin = nn.Parameter(torch.randn(channels))

    def forward(self, embedded: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Position embeddings and queries, both ``[..., d]``.

        Args:
            embedded: ``[..., 2 d]`` the boxes as sines and cosines.
            features: ``[..., d]``.
        """
        positions, queries = self.place(embedded).chunk(2, dim=-1)
        return positions + self.origin, queries + self.content(features)
