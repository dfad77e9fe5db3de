"""The base of detectors on Transformers' networks: the network, matching costs, boxes in pixels, weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.ops import box_convert

from concordet.detectors.networks.backbones import Features
from concordet.detectors.networks.weights import load_weights
from concordet.detectors.parts.hungarian import Costs
from concordet.detectors.set_prediction import SetPredictor
from concordet.errors import missing_package
from concordet.losses.criteria import StagedCriterion


class DetectionTransformer(SetPredictor):
    """A network of Transformers that detects by queries, in torchvision's convention.

    Args:
        network: Model whose ``model.backbone.model`` computes the feature maps.
        criterion: Loss, which also determines the matching costs.
        **settings: Arguments of :class:`SetPredictor`.
    """

    def __init__(self, network: Any, criterion: StagedCriterion, **settings: Any) -> None:
        super().__init__(criterion, costs=costs_for(criterion), **settings)
        self.network = network

    @property
    def backbone(self) -> Features:
        """The network that computes the feature maps."""
        return self.network.model.backbone.model


def costs_for(criterion: StagedCriterion) -> Costs:
    """Matching costs: the class cost has factor 1 with a softmax, 2 with sigmoids and 4 with ranking losses.

    The last is BRS-DETR's (thesis Sec. 4.1).
    """
    classification = 1.0 if criterion.needs.softmax else 4.0 if criterion.needs.ranks_only else 2.0
    return Costs(classification, box_format="cxcywh")


@contextmanager
def needs_transformers() -> Iterator[None]:
    """Context for imports from Transformers.

    Raises:
        ValueError: if it is not installed, or too old.
    """
    try:
        yield
    except ImportError as error:
        raise ValueError(missing_package("this detector", "transformers (5.5 or newer)", "transformers")) from error


def check_queries(num_queries: int) -> None:
    """Raises a ValueError if the number of queries is less than 1."""
    if num_queries < 1:
        raise ValueError(f"num_queries must be at least 1, got {num_queries}")


def to_pixels(boxes: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Boxes ``[b, k, 4]`` from center and size in units of each image to xyxy pixels."""
    extents = boxes.new_tensor([[width, height, width, height] for height, width in sizes])
    return box_convert(boxes * extents[:, None], "cxcywh", "xyxy")


def load_network(model: nn.Module, weights: str | Path | WeightsEnum) -> None:
    """Loads a folder that Transformers' ``save_pretrained`` wrote, or anything that :func:`load_weights` takes."""
    if isinstance(weights, str | Path) and Path(weights).is_dir():
        from concordet.detectors.networks.transformers_base import load_folder

        load_folder(cast(DetectionTransformer, model).network, Path(weights))  # the only detectors that load so
    else:
        load_weights(model, weights)
