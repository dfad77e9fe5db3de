"""The table of base losses by name, and the defaults of a detector that they start from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

from concordet.errors import unknown
from concordet.losses.criteria.box import BoxTerm
from concordet.losses.criteria.classification import (
    CrossEntropyTerm,
    DistributionalRankingTerm,
    FocalTerm,
    MatchabilityAwareTerm,
    QualityFocalTerm,
    VarifocalTerm,
)
from concordet.losses.criteria.cores import ALRPCore, Core, HarmonicCore, SelfBalancedCore, SeparateCore
from concordet.losses.criteria.mask import MaskTerm
from concordet.losses.criteria.ranking import APTerm, NDCGTerm, RankSortTerm
from concordet.losses.functional.ranking import Method

QualityHead = Literal["centerness", "iou"]
"""What an auxiliary head learns to predict."""


@dataclass(frozen=True)
class LossDefaults:
    """The terms a detector was published with; criteria by name start from them.

    Attributes:
        classification: Name of the base loss.
        box: Box term.
        quality: Target of the auxiliary head; None for a detector without one.
        softmax: The classifier is one softmax over classes and background. Only cross entropy and Harmonic loss keep
            it; every other loss has one sigmoid per class.
        positive_iou: IoU from which on a prediction is positive; aLRP's localization errors are relative to it.
        quality_weight: Weight of the auxiliary head's term.
        focal: Alpha and gamma of focal loss.
        ap_delta: Half the width of AP loss's step.
        ap_box_weight: Weight of the box term of AP loss (sum(w GIoU loss) / sum(w) with w the largest score): 2 as
            published for ATSS, 1 for PAA.
        no_object_weight: Weight of the background in a softmax's cross entropy, which is then a weighted mean
            (DETR: 0.1); None for the sum over the normalizer.
        mask: Mask term, which losses that are not ranking losses keep.

    Example:
        >>> from concordet.losses import BoxTerm, LossDefaults, build_criterion
        >>> defaults = LossDefaults(classification="quality_focal", box=BoxTerm("giou", weight=2.0))
        >>> build_criterion("default+spearman(0.1)", defaults).core.box.weight
        2.0
    """

    classification: str = "focal"
    box: BoxTerm = field(default_factory=BoxTerm)
    quality: QualityHead | None = None
    softmax: bool = False
    positive_iou: float = 0.5
    quality_weight: float = 1.0
    focal: tuple[float, float] = (0.25, 2.0)
    ap_delta: float = 1.0
    ap_box_weight: float = 2.0
    no_object_weight: float | None = None
    mask: MaskTerm = field(default_factory=MaskTerm)

    def __post_init__(self) -> None:
        heads = get_args(QualityHead)
        if self.quality is not None and self.quality not in heads:
            raise ValueError(unknown("quality of LossDefaults", str(self.quality), (*heads, "None")))


@dataclass(frozen=True)
class Base:
    """An entry of the table of base losses.

    Attributes:
        core: function of the detector's defaults and the settings of the loss name that builds the core.
        ranks_only: the loss depends only on the order of the scores, which are then not probabilities.
        softmax: the loss keeps a softmax classifier, for detectors that have one.
        balances_boxes: box terms are scaled to the classification's value; set predictors do the same with L1.
        mask: mask term for detectors that predict masks; None keeps the detector's.
        settings: names of the numbers that a loss name may set, as in ``harmonic(alpha=0.5)``: those that the papers'
            tables vary.
    """

    core: Callable[..., Core]
    ranks_only: bool = False
    softmax: bool = False
    balances_boxes: bool = False
    mask: MaskTerm | None = None
    settings: tuple[str, ...] = ()


_SCORED_BOX = BoxTerm("giou", weighting="score")
_BALANCED_DICE = MaskTerm("dice", weighting="score", balanced=True)


def _focal(defaults: LossDefaults, *, giou: float | None = None) -> Core:
    box = defaults.box if giou is None else BoxTerm("giou", giou)
    return SeparateCore(FocalTerm(*defaults.focal), box)


def _cross_entropy(defaults: LossDefaults) -> Core:
    return SeparateCore(CrossEntropyTerm(defaults.no_object_weight), defaults.box)


def _ap(method: Method) -> Callable[[LossDefaults], Core]:
    def build(defaults: LossDefaults) -> Core:
        box = BoxTerm("giou", defaults.ap_box_weight, "score")
        return SeparateCore(APTerm(delta=defaults.ap_delta, method=method), box)

    return build


def _alrp(defaults: LossDefaults, *, balanced: float = 1.0, giou: float = 1.0) -> Core:
    return ALRPCore(positive_iou=defaults.positive_iou, balanced=balanced > 0, giou=giou > 0)


def _rank_sort(method: Method) -> Callable[[LossDefaults], Core]:
    return lambda defaults: SelfBalancedCore(RankSortTerm(method=method), _SCORED_BOX)


def _harmonic(defaults: LossDefaults, *, contrast: float = 1.0, **settings: float) -> Core:
    return HarmonicCore(
        contrast_weight=contrast, no_object_weight=defaults.no_object_weight, beta=defaults.box.beta, **settings
    )


def _quality_focal(defaults: LossDefaults) -> Core:
    return SeparateCore(QualityFocalTerm(), BoxTerm("giou", 2.0, "score"))


def _varifocal(defaults: LossDefaults) -> Core:
    return SeparateCore(VarifocalTerm(), BoxTerm("giou", 1.5, "iou"))


def _ndcg(defaults: LossDefaults) -> Core:
    # no detector was published with it, so the box weight is not tuned but self-balanced
    return SelfBalancedCore(NDCGTerm(), _SCORED_BOX)


def _matchability_aware(defaults: LossDefaults) -> Core:
    return SeparateCore(MatchabilityAwareTerm(), defaults.box)


def _distributional_ranking(defaults: LossDefaults) -> Core:
    return SeparateCore(DistributionalRankingTerm(), defaults.box)


BASES: dict[str, Base] = {
    "focal": Base(_focal, settings=("giou",)),
    "ce": Base(_cross_entropy, softmax=True),
    "ap": Base(_ap("auto"), ranks_only=True, mask=MaskTerm("dice")),
    "alrp": Base(_alrp, ranks_only=True, balances_boxes=True, mask=_BALANCED_DICE, settings=("balanced", "giou")),
    "rank_sort": Base(_rank_sort("auto"), ranks_only=True, balances_boxes=True, mask=_BALANCED_DICE),
    "ndcg": Base(_ndcg, ranks_only=True, balances_boxes=True, mask=_BALANCED_DICE),
    "bucketed_ap": Base(_ap("bucketed"), ranks_only=True, mask=MaskTerm("dice")),
    "bucketed_rank_sort": Base(_rank_sort("bucketed"), ranks_only=True, balances_boxes=True, mask=_BALANCED_DICE),
    "harmonic": Base(_harmonic, softmax=True, settings=("alpha", "gamma", "margin", "contrast")),
    "quality_focal": Base(_quality_focal),
    "varifocal": Base(_varifocal),
    "matchability_aware": Base(_matchability_aware),
    "distributional_ranking": Base(_distributional_ranking),
}
"""Base losses by name."""
