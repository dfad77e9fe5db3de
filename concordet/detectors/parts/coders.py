"""Box coders: decoding of regressions to boxes, and encoding of boxes as targets."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, BoxLinearCoder

from concordet.assigned import Regression


@dataclass(frozen=True)
class BoxCodec:
    """Two functions, of (regressions ``[k, d]``, anchors ``[k, 4]``) and of (boxes ``[k, 4]``, anchors ``[k, 4]``).

    Attributes:
        decode: Regressions ``[k, d]`` and anchors to boxes ``[k, 4]``, differentiable; d is 4 for most codecs.
        encode: Boxes and anchors to the regressions' targets ``[k, 4]``.
    """

    decode: Callable[[Tensor, Tensor], Tensor]
    encode: Callable[[Tensor, Tensor], Tensor]

    def regression(self, values: Tensor, boxes: Tensor, anchors: Tensor) -> Regression:
        """Regressions of the positives and their targets, for a criterion.

        Args:
            values: ``[p, d]`` regressions.
            boxes: ``[p, 4]`` of the objects.
            anchors: ``[p, 4]``.
        """
        return Regression(values, self.encode(boxes, anchors))


def delta_codec(weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)) -> BoxCodec:
    """Center offsets and log sizes relative to anchors (R-CNN's)."""
    coder = BoxCoder(weights)
    return BoxCodec(coder.decode_single, coder.encode_single)


def distance_codec() -> BoxCodec:
    """Distances to the four sides in units of the anchor's size (FCOS's)."""
    coder = BoxLinearCoder(normalize_by_size=True)
    return BoxCodec(coder.decode, lambda boxes, anchors: coder.encode(anchors, boxes))


def log_distance_codec(limit: float = 16.0) -> BoxCodec:
    """Logarithms of the distances to the four sides in units of the anchor's size (FoveaBox's, Eq. 4).

    Args:
        limit: Bound of the targets, from 1 / ``limit`` to ``limit`` sizes; predictions may go twice as far.

    Example:
        >>> codec, anchor = log_distance_codec(), torch.tensor([[0.0, 0.0, 16.0, 16.0]])
        >>> codec.encode(torch.tensor([[-8.0, 4.0, 24.0, 12.0]]), anchor).div(math.log(2))
        tensor([[ 0., -2.,  0., -2.]])
    """
    bound = math.log(2 * limit)

    def decode(values: Tensor, anchors: Tensor) -> Tensor:
        center, size = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
        distances = values.clamp(-bound, bound).exp() * size.repeat(1, 2)
        return torch.cat([center - distances[:, :2], center + distances[:, 2:]], dim=1)

    def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
        center, size = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
        distances = torch.cat([center - boxes[:, :2], boxes[:, 2:] - center], dim=1) / size.repeat(1, 2)
        return distances.clamp(1 / limit, limit).log()

    return BoxCodec(decode, encode)
