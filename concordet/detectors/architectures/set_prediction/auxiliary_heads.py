"""Co-DETR's additions to Deformable DETR in training: auxiliary heads on the encoder's output, and their queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from concordet.assigned import Assigned
from concordet.detectors.architectures.dense.atss import CODEC, atss_head
from concordet.detectors.architectures.two_stage.faster_rcnn import box_pool, box_stage
from concordet.detectors.dense import AnchorHead
from concordet.detectors.networks.backbones import Size
from concordet.detectors.parts.assigners import atss_matches
from concordet.detectors.parts.objects import Objects
from concordet.detectors.parts.postprocess import PostProcess
from concordet.detectors.parts.proposals import region_proposals
from concordet.detectors.two_stage import TwoStageHead
from concordet.losses.criteria import StagedCriterion

MAX_QUERIES = 300  # extra queries per head and image, as published


@dataclass(frozen=True)
class Positives:
    """p boxes of an auxiliary head that are matched to objects, in the order of images."""

    record: Assigned  # the head's; its positives are these
    boxes: Tensor  # [p, 4] anchors or proposals, xyxy pixels
    features: Tensor  # [p, d] at their locations


class Adapter(nn.Module):
    """The encoder's output as a feature pyramid, with one more level at half the resolution of the coarsest.

    Zong et al. 2023, Sec. 3.2 (multi-scale adapter).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.downsample: nn.Sequential = nn.Sequential(
            nn.Conv2d(channels, channels, 3, stride=2, padding=1), nn.GroupNorm(32, channels)
        )

    def forward(self, memory: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Levels ``[b, d, h, w]``, finest first, of ``[b, n, d]`` and the levels' heights and widths."""
        parts = memory.split([height * width for height, width in shapes], dim=1)
        levels = [x.transpose(1, 2).unflatten(2, shape) for x, shape in zip(parts, shapes, strict=True)]
        return [*levels, self.downsample(levels[-1])]


class AuxiliaryHeads(nn.Module):
    """ATSS and Faster R-CNN, as in this package, on the encoder's output (Zong et al. 2023, Sec. 3.2; Table 1).

    Records are named ``rpn``, ``roi`` and ``atss``.

    Args:
        channels: Channels of the encoder's output.
        strides: Strides of its levels.
        criterion: Loss with stages of these names.
        num_classes: Foreground classes.
        size: Size of the heads.
    """

    def __init__(
        self,
        channels: int,
        strides: Sequence[int],
        criterion: StagedCriterion,
        *,
        num_classes: int,
        size: Size,
    ) -> None:
        super().__init__()
        self.adapter: Adapter = Adapter(channels)
        strides = [*strides, 2 * strides[-1]]
        atss = criterion.stages["atss"]
        head, anchors = atss_head(atss, num_classes, size, channels, strides)
        self.atss: AnchorHead = AnchorHead(
            head, anchors, CODEC, atss_matches, softmax=atss.needs.softmax, postprocess=PostProcess()
        )
        staged = StagedCriterion({name: criterion.stages[name] for name in ("rpn", "roi")})
        self.rcnn: TwoStageHead = TwoStageHead(
            region_proposals(channels, strides, staged, size=size),
            box_pool(size),
            {"roi": box_stage(staged, num_classes, size, channels)},
            postprocess=PostProcess(),
            sampled=staged.needs.samples,
        )

    def forward(
        self, batch: ImageList, memory: Tensor, shapes: Sequence[tuple[int, int]], objects: Objects
    ) -> tuple[list[Assigned], dict[str, Positives]]:
        """The heads' records, and their positives by head.

        Args:
            batch: Images at the network's input size.
            memory: ``[b, n, d]`` output of the encoder.
            shapes: Height and width of each of its levels.
            objects: Objects of the images.
        """
        levels = self.adapter(memory, shapes)
        rpn, rcnn = self._rcnn(batch, levels, objects)
        atss = self._atss(batch, levels, objects)
        return [rpn, rcnn.record, atss.record], {"rcnn": rcnn, "atss": atss}

    def _atss(self, batch: ImageList, levels: list[Tensor], objects: Objects) -> Positives:
        (predictions,) = self.atss.predict(batch, levels)
        record = self.atss.assign(replace(predictions, stage="atss"), objects)
        flat = torch.cat([x.flatten(2) for x in levels], dim=2).transpose(1, 2).flatten(0, 1)  # one anchor per location
        return Positives(record, predictions.anchors.flatten(0, 1)[record.positive], flat[record.positive])

    def _rcnn(self, batch: ImageList, levels: list[Tensor], objects: Objects) -> tuple[Assigned, Positives]:
        rpn = self.rcnn.propose(batch, {str(i): x for i, x in enumerate(levels)})
        (proposals, record), (rois,) = self.rcnn.training_records(rpn, objects)
        boxes = torch.cat(rois.references)[record.positive]
        each = [boxes[record.image_ids == i] for i in range(len(objects))]
        return proposals, Positives(record, boxes, self.rcnn.pool(self.rcnn.box_pool, rpn, each).mean(dim=(2, 3)))


class QueryMaker(nn.Module):
    """Queries from boxes and the features at their locations (Zong et al. 2023, Eq. 5).

    Args:
        channels: Channels of the queries.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.place: nn.Sequential = nn.Sequential(nn.Linear(2 * channels, 2 * channels), nn.LayerNorm(2 * channels))
        self.content: nn.Sequential = nn.Sequential(nn.Linear(channels, channels), nn.LayerNorm(channels))
        self.origin: nn.Parameter = nn.Parameter(torch.randn(channels))

    def forward(self, embedded: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Position embeddings and queries, both ``[..., d]``.

        Args:
            embedded: ``[..., 2 d]`` boxes as sines and cosines.
            features: ``[..., d]`` at the boxes' locations.
        """
        positions, queries = self.place(embedded).chunk(2, dim=-1)
        return positions + self.origin, queries + self.content(features)
