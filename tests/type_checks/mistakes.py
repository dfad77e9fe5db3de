"""Mistakes that type checkers must see: an ``ignore`` that is not needed is an error of both of them."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from torch import Tensor

from concordet.engine import TrainConfig
from concordet.losses import AssociationLoss, CorrelationLoss, RankSortLoss
from concordet.losses.functional import ap_loss, association_loss, correlation_loss, focal_loss


def mistakes(x: Tensor) -> None:
    """Never called."""
    TrainConfig(lose="ap")  # type: ignore[call-arg]
    TrainConfig(size="small")  # type: ignore[arg-type]
    ap_loss(x, x.long(), method="fast")  # type: ignore[arg-type]
    correlation_loss(x, x, coefficient="kendall")  # type: ignore[arg-type]
    association_loss(x, x, form="cubic")  # type: ignore[arg-type]
    focal_loss(x, x, reduction="average")  # type: ignore[arg-type]
    RankSortLoss(method="fast")  # type: ignore[arg-type]
    CorrelationLoss(coefficient="kendall")  # type: ignore[arg-type]
    AssociationLoss(form="cubic", reduction="mean")  # type: ignore[arg-type]
