"""Criteria: a core (classification and box), an auxiliary head's term and couplings, weighed in one place.

A criterion takes the detector's :class:`~concordet.assigned.Assigned` and returns named, weighted terms whose sum is
the loss.  ``build_criterion("focal+concordance(0.3)", defaults)`` makes one by name, :func:`list_losses` lists names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast

import torch
import torch.distributed as dist
from torch import nn

from concordet.assigned import Assigned
from concordet.boxes import paired_iou
from concordet.losses.criteria import cores as terms
from concordet.losses.criteria.box import BoxTerm
from concordet.losses.criteria.cores import Core, Coupling, QualityHead, Terms
from concordet.losses.criteria.mask import MaskTerm, mask_term, segmentation_term
from concordet.losses.functional.reduction import at_least_float32


@dataclass(frozen=True)
class LossDefaults:
    """The terms a detector was published with; criteria by name start from them.

    Attributes:
        classification: name of the base loss.
        box: its box term.
        quality: its auxiliary head, None for none.
        softmax: it classifies by one softmax over classes and background; only cross entropy and Harmonic loss keep
            that, every other loss has a sigmoid a class.
        positive_iou: IoU from which on a prediction is positive; aLRP's localization errors are relative to it.
        quality_weight: factor of the auxiliary head's term.
        focal: alpha and gamma of its focal loss.
        ap_delta: half the width of AP loss's step.
        background: weight of background in a softmax's cross entropy, which is then a weighted mean (DETR: 0.1); None
            is the sum over the normalizer.
        mask: its mask term, which losses that do not rank keep.
    """

    classification: str = "focal"
    box: BoxTerm = field(default_factory=BoxTerm)
    quality: QualityHead | None = None
    softmax: bool = False
    positive_iou: float = 0.5
    quality_weight: float = 1.0
    focal: tuple[float, float] = (0.25, 2.0)
    ap_delta: float = 1.0
    background: float | None = None
    mask: MaskTerm = field(default_factory=MaskTerm)


class Criterion(nn.Module):
    """Named, weighted terms of one stage: classification and box, auxiliary head, couplings.

    Args:
        core: function (or module, where it has state) of (assigned, IoUs of the positives ``[p]``) to terms.
        quality: trains the detector's auxiliary head on centerness or on IoU; None builds the detector without it.
        couplings: name to function of (assigned, IoUs) and weight, added to the loss.
        calibrated: scores mean probabilities; False for ranking losses, which decide on the order alone, so that a
            detector must not drop boxes below a fixed score.
        softmax: the detector is to classify by one softmax over classes and background.
        mask: mask term, where the detector predicts masks.
        quality_weight: factor of the auxiliary head's term.

    The IoU of each positive's decoded box is computed once and carries no gradient: it is a target.
    """

    def __init__(
        self,
        core: Core,
        *,
        quality: QualityHead | None = None,
        couplings: dict[str, tuple[Coupling, float]] | None = None,
        calibrated: bool = True,
        softmax: bool = False,
        mask: MaskTerm | None = None,
        quality_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.calibrated = calibrated
        self.softmax = softmax
        self.mask = mask or MaskTerm()
        self.core = core
        self.quality = quality
        self.quality_weight = quality_weight
        self.couplings = dict(couplings or {})
        self.group: dist.ProcessGroup | None = None  # see rank_over

    def forward(self, assigned: Assigned) -> Terms:
        """Named 0-dim terms, each already weighted, all connected to the graph; their sum is the loss."""
        # Losses are computed in fp32 whatever the detector ran in: bf16 IoUs and counts are not usable.
        with torch.autocast(assigned.logits.device.type, enabled=False):
            assigned = replace(assigned, logits=at_least_float32(assigned.logits), group=self.group)
            ious = paired_iou(assigned.boxes.detach(), assigned.gt_boxes)
            losses = self.core(assigned, ious)
            if assigned.mask_logits is not None:
                classification = terms.sum_terms({k: v for k, v in losses.items() if k != "box"})
                losses["mask"] = mask_term(self.mask, assigned, classification)
            if assigned.segment_logits is not None:
                losses["segmentation"] = segmentation_term(assigned)
            if self.quality is not None:
                losses["quality"] = self.quality_weight * terms.quality_term(assigned, ious, self.quality)
            for name, (coupling, weight) in self.couplings.items():
                losses[name] = weight * coupling(assigned, ious)
        return losses

    def on_epoch_end(self) -> None:
        """Lets a core with state (aLRP's self-balancing) take note that a training epoch is over."""
        hook = getattr(self.core, "on_epoch_end", None)
        if hook is not None:
            hook()


# --- criteria by name -----------------------------------------------------------------------------------------------

_AP_BOX = BoxTerm("giou", weight=2.0)
_SCORED_BOX = BoxTerm("giou", weighting="score")


def _ap(defaults: LossDefaults, method: str) -> Core:
    ranking = partial(terms.average_precision_term, delta=defaults.ap_delta, method=method)
    return partial(terms.separate, classification=ranking, box=_AP_BOX)


def _focal(defaults: LossDefaults) -> Core:
    alpha, gamma = defaults.focal
    focal = partial(terms.focal_term, alpha=alpha, gamma=gamma)
    return partial(terms.separate, classification=focal, box=defaults.box)


def _cross_entropy(defaults: LossDefaults) -> Core:
    entropy = partial(terms.cross_entropy_term, background=defaults.background)
    return partial(terms.separate, classification=entropy, box=defaults.box)


def _rank_sort(method: str) -> Core:
    return partial(terms.self_balanced, classification=partial(terms.rank_sort_term, method=method), box=_SCORED_BOX)


def _alrp(defaults: LossDefaults, *, balanced: float = 1.0, giou: float = 1.0) -> Core:
    return terms.AverageLRP(positive_iou=defaults.positive_iou, balanced=balanced > 0, giou=giou > 0)


BASES: dict[str, Callable[..., Core]] = {
    "focal": _focal,
    "ce": _cross_entropy,
    "ap": lambda defaults: _ap(defaults, "auto"),
    "alrp": _alrp,
    "rank_sort": lambda defaults: _rank_sort("auto"),
    "bucketed_ap": lambda defaults: _ap(defaults, "bucketed"),
    "bucketed_rank_sort": lambda defaults: _rank_sort("bucketed"),
    "harmonic": lambda defaults, **settings: partial(terms.harmonic, background=defaults.background, **settings),
    "quality_focal": lambda defaults: partial(
        terms.separate, classification=terms.quality_focal_term, box=BoxTerm("giou", 2.0, "score")
    ),
    "varifocal": lambda defaults: partial(
        terms.separate, classification=terms.varifocal_term, box=BoxTerm("giou", 1.5, "iou")
    ),
    "distributional_ranking": lambda defaults: partial(
        terms.separate, classification=terms.distributional_ranking_term, box=defaults.box
    ),
}
"""Base losses: name to core, given the detector's usual terms and the settings that it has (:data:`SETTINGS`)."""

RANKING = {"ap", "alrp", "rank_sort", "bucketed_ap", "bucketed_rank_sort"}
"""Bases that decide on the order of scores alone."""

SOFTMAX = {"ce", "harmonic"}
"""Bases that keep a softmax classifier where a detector has one."""

_BALANCED_DICE = MaskTerm("dice", weighting="score", balanced=True)

MASKS: dict[str, MaskTerm] = {
    "ap": MaskTerm("dice"),
    "bucketed_ap": MaskTerm("dice"),
    "alrp": _BALANCED_DICE,
    "rank_sort": _BALANCED_DICE,
    "bucketed_rank_sort": _BALANCED_DICE,
}
"""Mask terms of ranking losses: weighed and balanced as their box terms are.  Other losses keep the detector's own."""

COUPLINGS: dict[str, tuple[Coupling, float]] = {
    "concordance": (partial(terms.correlation_coupling, coefficient="concordance"), 0.3),
    "spearman": (partial(terms.correlation_coupling, coefficient="spearman"), 0.1),
    "pearson": (partial(terms.correlation_coupling, coefficient="pearson"), 0.3),
    "pse": (partial(terms.association_coupling, form="squared"), 1.0),
    "pce": (partial(terms.association_coupling, form="cross_entropy"), 1.0),
}
"""Terms added with ``+``: name to function and default weight."""

HEADS: dict[str, QualityHead] = {"centerness": "centerness", "iou_head": "iou"}
"""Auxiliary heads added with ``+``."""

SETTINGS: dict[str, tuple[str, ...]] = {
    "harmonic": ("alpha", "gamma", "margin", "contrast"),
    "alrp": ("balanced", "giou"),
    "spearman": ("strength",),
    "pse": ("slope",),
    "pce": ("slope",),
}
"""Numbers that may stand in brackets by name, ``harmonic(alpha=0.5)``: those that the papers' tables vary."""

_PART = re.compile(r"(?P<name>[a-z_]+)(?:\((?P<inside>[^()]*)\))?")


def list_losses() -> list[str]:
    """Names that ``loss=`` takes; those with a leading ``+`` are added to another.

    Example:
        >>> "rank_sort" in list_losses() and "+concordance" in list_losses()
        True
    """
    return ["default", *BASES, *(f"+{name}" for name in (*COUPLINGS, *HEADS))]


def build_criterion(loss: str, defaults: LossDefaults | None = None) -> Criterion:
    """The criterion of this name.

    Args:
        loss: a base name, then any couplings and an auxiliary head: ``rank_sort``, ``focal+concordance(0.3)``,
            ``focal+pse``, ``default+spearman(0.1)``.  A number in brackets is the coupling's weight (>= 0); what else
            stands there has a name (:data:`SETTINGS`): ``harmonic(alpha=0.5,gamma=0)``, ``focal+pse(1,slope=0.8)``.
            ``default`` is the detector's own, auxiliary head included; every other base is built without that head
            unless ``+centerness`` or ``+iou_head`` asks for it.
        defaults: the detector's published terms; None is focal loss with GIoU.

    Raises:
        ValueError: for an unknown name, a bad weight or a combination without meaning.

    Example:
        >>> sorted(build_criterion("focal+concordance(0.3)").couplings)
        ['concordance']
    """
    defaults = defaults or LossDefaults()
    (name, weight, settings), *extras = (_parse(part, loss) for part in loss.replace(" ", "").split("+"))
    if weight is not None:
        raise ValueError(
            f"loss {name!r} in {loss!r} takes no weight; only couplings do, as in 'focal+concordance(0.3)'"
        )
    if name in COUPLINGS or name in HEADS:
        raise ValueError(f"{name!r} in {loss!r} is no loss of its own; add it to a base loss, as in 'focal+{name}'")
    if name != "default" and name not in BASES:
        raise ValueError(f"unknown loss {name!r} in {loss!r}; choose one of default, {', '.join(BASES)}")
    base = defaults.classification if name == "default" else name
    criterion = Criterion(
        BASES[base](defaults, **settings),
        quality=defaults.quality if name == "default" else None,
        calibrated=base not in RANKING,
        softmax=defaults.softmax and base in SOFTMAX,
        quality_weight=defaults.quality_weight,
        mask=MASKS.get(base, defaults.mask),
    )
    for extra, weight, settings in extras:
        _add(criterion, extra, weight, settings, loss)
    return criterion


def _parse(part: str, loss: str) -> tuple[str, float | None, dict[str, float]]:
    match = _PART.fullmatch(part)
    if match is None:
        raise ValueError(f"cannot read {part!r} in loss {loss!r}; write it as 'focal' or 'focal+concordance(0.3)'")
    name, weight, settings = match["name"], None, {}
    for item in match["inside"].split(",") if match["inside"] is not None else ():
        key, _, text = item.rpartition("=")
        if key and key not in SETTINGS.get(name, ()):
            known = ", ".join(SETTINGS[name]) if name in SETTINGS else "none"
            raise ValueError(f"{name!r} in loss {loss!r} has no setting {key!r}; those that it has: {known}")
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            what = key or "weight"
            raise ValueError(f"{what} in {part!r} of loss {loss!r} must be a number of at least 0, got {text!r}")
        if key:
            settings[key] = value
        else:
            weight = value
    return name, weight, settings


def _add(criterion: Criterion, name: str, weight: float | None, settings: dict[str, float], loss: str) -> None:
    if name in HEADS:
        if weight is not None:
            raise ValueError(f"auxiliary head {name!r} in {loss!r} takes no weight")
        if criterion.quality not in (None, HEADS[name]):
            raise ValueError(f"loss {loss!r} asks for two auxiliary heads; a detector has one")
        criterion.quality = HEADS[name]
        return
    if name in BASES or name == "default":
        raise ValueError(f"loss {loss!r} has two base losses; keep one of them and add couplings to it")
    if name not in COUPLINGS:
        raise ValueError(f"unknown coupling {name!r} in {loss!r}; choose one of {', '.join((*COUPLINGS, *HEADS))}")
    if name in criterion.couplings:
        raise ValueError(f"coupling {name!r} stands twice in {loss!r}; add their weights instead")
    function, default = COUPLINGS[name]
    criterion.couplings[name] = (partial(function, **settings), default if weight is None else weight)


def rank_over(model: nn.Module, group: dist.ProcessGroup | None) -> None:
    """Lets every criterion in a model rank, correlate and balance over the batches of a group's processes.

    Values of these terms are then those of one process with the whole batch, and so is the mean of gradients over
    processes, which DDP takes.  The other terms are sums over predictions and need no group: their normalizers are
    averaged over all processes in any case.

    Args:
        model: a detector, or anything else with criteria in it.
        group: processes that all run their criteria at every step; None for each process alone, as published.

    Example:
        >>> criterion = build_criterion("rank_sort")
        >>> rank_over(criterion, None)
    """
    for module in model.modules():
        if isinstance(module, Criterion):
            module.group = group


class StagedCriterion(nn.Module):
    """One criterion a stage (RPN and head, Cascade's three heads, decoder layers), each with a weight.

    Args:
        stages: name to criterion; an :class:`~concordet.assigned.Assigned` finds its own by its ``stage``.
        weights: name to factor of all of a stage's terms; 1 where it is not named.
    """

    def __init__(self, stages: Mapping[str, Criterion], weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.stages = nn.ModuleDict(stages)
        self.weights = dict(weights or {})

    @property
    def calibrated(self) -> bool:
        """Whether the last stage's scores mean probabilities."""
        return bool(list(self.stages.values())[-1].calibrated)

    @property
    def softmax(self) -> bool:
        """Whether the last stage classifies by a softmax."""
        return bool(list(self.stages.values())[-1].softmax)

    def forward(self, records: Sequence[Assigned]) -> Terms:
        """All stages' weighted terms, each named ``stage_term``."""
        losses = {}
        for assigned in records:
            weight = self.weights.get(assigned.stage, 1.0)
            for name, value in self.stages[assigned.stage](assigned).items():
                losses[f"{assigned.stage}_{name}"] = weight * value
        return losses

    def on_epoch_end(self) -> None:
        """Passes the end of an epoch on to every stage."""
        for criterion in self.stages.values():
            cast(Criterion, criterion).on_epoch_end()
