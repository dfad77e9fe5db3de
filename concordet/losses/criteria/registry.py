"""Criteria by name, and the registration of users' own losses and couplings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar, overload

from concordet.errors import closest, unknown
from concordet.losses.criteria.bases import BASES, Base, LossDefaults, QualityHead
from concordet.losses.criteria.box import BoxTerm
from concordet.losses.criteria.cores import Core, SelfBalancedCore, SeparateCore
from concordet.losses.criteria.couplings import COUPLINGS, Coupling, WeightedCoupling
from concordet.losses.criteria.criterion import Criterion, Needs
from concordet.losses.criteria.mask import MaskTerm
from concordet.losses.criteria.names import NAME_PATTERN, LossName, NamePart

HEADS: dict[str, QualityHead] = {"centerness": "centerness", "iou_head": "iou"}
"""Auxiliary heads that a loss name adds with ``+``."""

LossT = TypeVar("LossT", bound=Callable[..., Any])


def list_losses() -> list[str]:
    """Names that ``loss=`` takes; names with a leading ``+`` are added to another.

    Returns:
        ``default``, the base losses, and couplings and auxiliary heads with a ``+``; registered ones too.

    Example:
        >>> "rank_sort" in list_losses() and "+concordance" in list_losses()
        True
    """
    return ["default", *BASES, *(f"+{name}" for name in (*COUPLINGS, *HEADS))]


def build_criterion(loss: str | LossName, defaults: LossDefaults | None = None) -> Criterion:
    """The criterion of this name.

    Args:
        loss: Base loss, then any couplings and an auxiliary head: ``rank_sort``, ``focal+concordance(0.3)``,
            ``focal+pse``, ``default+spearman(0.1)``. A number in parentheses is the weight of a coupling (at least 0);
            other numbers have names: ``harmonic(alpha=0.5,gamma=0)``, ``focal+pse(1,slope=0.8)``. ``default`` is the
            detector's own loss, auxiliary head included; every other base loss is built without that head unless
            ``+centerness`` or ``+iou_head`` adds it.
        defaults: Terms that the detector was published with; None for focal loss with GIoU.

    Returns:
        A module that maps an :class:`~concordet.assigned.Assigned` to named 0-dim terms whose sum is the loss.

    Raises:
        ValueError: for an unknown name, an invalid number or a combination without meaning.

    Example:
        >>> sorted(build_criterion("focal+concordance(0.3)").couplings)
        ['concordance']
    """
    defaults = defaults or LossDefaults()
    name = LossName.parse(loss) if isinstance(loss, str) else loss
    entry, settings = _base(name, defaults)
    head = defaults.quality if name.is_default else None
    couplings: dict[str, WeightedCoupling] = {}
    for extra in name.extras:
        if extra.name in HEADS:
            head = _head(extra, head, name)
        else:
            couplings[extra.name] = _coupling(extra, couplings, name)
    softmax = defaults.softmax and entry.softmax
    return Criterion(
        entry.core(defaults, **settings),
        needs=Needs(
            softmax=softmax,
            quality_head=head,
            samples=softmax,
            ranks_only=entry.ranks_only,
            balances_boxes=entry.balances_boxes,
        ),
        couplings=couplings,
        mask=entry.mask or defaults.mask,
        quality_weight=defaults.quality_weight,
    )


def _base(loss: LossName, defaults: LossDefaults) -> tuple[Base, dict[str, float]]:
    part = loss.base
    if part.name in COUPLINGS or part.name in HEADS:
        raise ValueError(
            f"loss must begin with a base loss, got {str(loss)!r}; add {part.name!r} to one, as in 'focal+{part.name}'"
        )
    if not loss.is_default and part.name not in BASES:
        raise ValueError(_unknown("loss", part, ("default", *BASES), loss))
    if part.weight is not None:
        raise ValueError(
            f"base loss {part.name!r} must have no weight, got {part.text!r}; only couplings have one, as in "
            "'focal+concordance(0.3)'"
        )
    if loss.is_default:
        if defaults.classification not in BASES:  # checked here: it may be registered after the defaults are made
            raise ValueError(unknown("classification of LossDefaults", defaults.classification, BASES))
        return BASES[defaults.classification], _settings(part, (), loss)
    return BASES[part.name], _settings(part, BASES[part.name].settings, loss)


def _head(part: NamePart, head: QualityHead | None, loss: LossName) -> QualityHead:
    if part.weight is not None or part.settings:
        raise ValueError(f"auxiliary head {part.name!r} must have no weight, got {part.text!r} in {str(loss)!r}")
    if head not in (None, HEADS[part.name]):
        raise ValueError(f"loss must have one auxiliary head, got two in {str(loss)!r}; leave one of them out")
    return HEADS[part.name]


def _coupling(part: NamePart, couplings: dict[str, WeightedCoupling], loss: LossName) -> WeightedCoupling:
    if part.name in BASES or part.name == "default":
        raise ValueError(f"loss must have one base loss, got two in {str(loss)!r}; keep one and add couplings to it")
    if part.name not in COUPLINGS:
        raise ValueError(_unknown("coupling", part, (*COUPLINGS, *HEADS), loss))
    if part.name in couplings:
        raise ValueError(f"coupling {part.name!r} must be named once, got {str(loss)!r}; add up the weights instead")
    entry = COUPLINGS[part.name]
    settings = _settings(part, entry.settings, loss)
    if settings and entry.check is not None:
        entry.check(**settings)
    function = partial(entry.function, **settings) if settings else entry.function
    return WeightedCoupling(function, entry.weight if part.weight is None else part.weight)


def _unknown(name: str, part: NamePart, choices: Sequence[str], loss: LossName) -> str:
    meant = closest(part.name, choices)
    fix = "choose one of them" if meant is None else f"did you mean {meant}?"
    return f"{name} must be one of {', '.join(choices)}, got {part.name!r} in {str(loss)!r}; {fix}"


def _settings(part: NamePart, known: Sequence[str], loss: LossName) -> dict[str, float]:
    for name, _ in part.settings:
        if name not in known:
            raise ValueError(
                f"setting of {part.name!r} must be one of: {', '.join(known) or 'none'}, got {name!r} in {str(loss)!r}"
            )
    return dict(part.settings)


# --- registration ---------------------------------------------------------------------------------------------------


@overload
def register_loss(
    name: str,
    *,
    box: BoxTerm | None = None,
    balances_boxes: bool = False,
    ranks_only: bool = False,
    softmax: bool = False,
    mask: MaskTerm | None = None,
) -> Callable[[LossT], LossT]: ...


@overload
def register_loss(
    name: str,
    loss: LossT,
    *,
    box: BoxTerm | None = None,
    balances_boxes: bool = False,
    ranks_only: bool = False,
    softmax: bool = False,
    mask: MaskTerm | None = None,
) -> LossT: ...


def register_loss(
    name: str,
    loss: LossT | None = None,
    *,
    box: BoxTerm | None = None,
    balances_boxes: bool = False,
    ranks_only: bool = False,
    softmax: bool = False,
    mask: MaskTerm | None = None,
) -> LossT | Callable[[LossT], LossT]:
    """Registers a loss under a name that ``loss=`` and ``--loss`` then take; also a decorator.

    The loss is one of:

    * a function ``loss(assigned, ious)`` that returns the classification loss, 0-dim, or several values by name. Box,
      mask, auxiliary head and couplings are added as for any other loss.
    * a subclass of :class:`~concordet.losses.Core`, constructed as ``loss(defaults)`` for each criterion, which returns
      all classification and box terms and may have parameters, buffers and state.

    Keyword-only parameters with a number as default are settings: ``def my_loss(assigned, ious, *, gamma=2.0)`` can be
    called by the name ``my_loss(gamma=1)``.

    Args:
        name: Name of the loss: lowercase letters, digits and underscores.
        loss: Function or class, see above; None for a decorator.
        box: Box term of a function; None for the detector's default.
        balances_boxes: Box and mask terms of a function are scaled to its value; None of them then needs a weight.
        ranks_only: The loss depends only on the order of the scores: they are not probabilities, and detectors drop no
            boxes below a fixed score.
        softmax: The loss works with a softmax over classes and background (``assigned.softmax``), and keeps it for
            detectors that have one; otherwise every detector is built with one sigmoid per class.
        mask: Mask term for detectors that predict masks; None for the detector's default.

    Returns:
        The loss itself, or a decorator.

    Raises:
        ValueError: if the name is taken or malformed, or the loss is neither a function of two arguments nor a Core.
            Running the same definition again (in a notebook) replaces it.

    Example:
        >>> from concordet.losses import build_criterion, functional, register_loss
        >>> @register_loss("doc_focal")
        ... def doc_focal(assigned, ious, *, gamma=2.0):
        ...     losses = functional.focal_loss(assigned.logits, assigned.class_targets(), gamma=gamma, reduction="none")
        ...     return assigned.normalized_sum(losses)
        >>> build_criterion("doc_focal(gamma=1)+concordance(0.3)").core.box
        BoxTerm(kind='giou', weight=1.0, weighting='none', beta=0.1111111111111111)
    """

    def register(loss: LossT) -> LossT:
        factory: Callable[..., Core]
        wanted = f"loss {name!r} must be a function of ({', '.join(_ARGUMENTS)}) or a subclass of Core"
        if inspect.isclass(loss):
            if not issubclass(loss, Core):
                raise ValueError(f"{wanted}, got {loss!r}")
            if box is not None or balances_boxes:
                raise ValueError(
                    f"box and balances_boxes of loss {name!r} belong to functions, and a Core decides; leave them out"
                )
            factory, settings = loss, _keyword_settings(wanted, loss, ("defaults",))
        else:
            factory, settings = _function_core(loss, box, balances_boxes), _keyword_settings(wanted, loss, _ARGUMENTS)
        _check_name("loss", name, loss)
        BASES[name] = Base(factory, ranks_only, softmax, balances_boxes, mask, settings)
        _REGISTERED[name] = loss
        return loss

    return register if loss is None else register(loss)


@overload
def register_coupling(name: str, *, weight: float = 1.0) -> Callable[[LossT], LossT]: ...


@overload
def register_coupling(name: str, coupling: LossT, *, weight: float = 1.0) -> LossT: ...


def register_coupling(
    name: str, coupling: LossT | None = None, *, weight: float = 1.0
) -> LossT | Callable[[LossT], LossT]:
    """Registers a coupling under a name that can be added to any loss with ``+``; also a decorator.

    Args:
        name: Name of the coupling: lowercase letters, digits and underscores.
        coupling: Function ``coupling(assigned, ious)`` that returns a 0-dim value; keyword-only parameters with a
            number as default are settings. None for a decorator.
        weight: Default weight, for a name without one.

    Returns:
        The coupling itself, or a decorator.

    Raises:
        ValueError: if the name is taken or malformed, the coupling is not a function of two arguments, or the weight is
            negative. Running the same definition again (in a notebook) replaces it.

    Example:
        >>> from concordet.losses import build_criterion, register_coupling
        >>> @register_coupling("doc_gap", weight=0.5)
        ... def doc_gap(assigned, ious):
        ...     return (assigned.scores() - ious).abs().sum() / assigned.normalizer
        >>> build_criterion("rank_sort+doc_gap").couplings["doc_gap"].weight
        0.5
    """
    if not 0 <= weight < float("inf"):
        raise ValueError(f"weight of coupling {name!r} must be a number of at least 0, got {weight!r}")

    def register(coupling: LossT) -> LossT:
        wanted = f"coupling {name!r} must be a function of ({', '.join(_ARGUMENTS)})"
        settings = _keyword_settings(wanted, coupling, _ARGUMENTS)
        _check_name("coupling", name, coupling)
        COUPLINGS[name] = Coupling(coupling, weight, settings)
        _REGISTERED[name] = coupling
        return coupling

    return register if coupling is None else register(coupling)


_ARGUMENTS = ("assigned", "ious")
_REGISTERED: dict[str, Callable[..., Any]] = {}
"""Users' losses and couplings by name."""


def _function_core(function: Callable[..., Any], box: BoxTerm | None, balances_boxes: bool) -> Callable[..., Core]:
    core = SelfBalancedCore if balances_boxes else SeparateCore

    def build(defaults: LossDefaults, **settings: float) -> Core:
        return core(partial(function, **settings) if settings else function, box or defaults.box)

    return build


def _check_name(kind: str, name: str, loss: Callable[..., Any]) -> None:
    if not NAME_PATTERN.fullmatch(name):
        raise ValueError(f"name of a {kind} must be lowercase letters, digits and underscores, got {name!r}")
    taken = name == "default" or name in BASES or name in COUPLINGS or name in HEADS
    if taken and not (name in _REGISTERED and _same_definition(_REGISTERED[name], loss)):
        raise ValueError(f"name of a {kind} must be new, got {name!r}, which is registered; choose another name")


def _same_definition(first: Callable[..., Any], second: Callable[..., Any]) -> bool:
    """Whether both are the same definition in the same module."""
    origins = [(getattr(f, "__module__", None), getattr(f, "__qualname__", "<lambda>")) for f in (first, second)]
    return first is second or (origins[0] == origins[1] and "<lambda>" not in origins[0][1])


def _keyword_settings(wanted: str, loss: Callable[..., Any], arguments: Sequence[str]) -> tuple[str, ...]:
    """Names of the settings of a user's loss or coupling: its keyword-only parameters.

    Args:
        wanted: Beginning of a message: which loss or coupling must be what.
        loss: Loss or coupling.
        arguments: Names of the other arguments that it must take.

    Raises:
        ValueError: if it cannot be called with the arguments, or a setting has no number as default.
    """
    if not callable(loss):
        raise ValueError(f"{wanted}, got {loss!r}")
    signature = inspect.signature(loss)
    keywords = [p for p in signature.parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    for parameter in keywords:
        if not isinstance(parameter.default, int | float):
            raise ValueError(
                f"setting {parameter.name!r} of {' '.join(wanted.split()[:2])} must have a number as default, "
                f"got {parameter.default!r}"
            )
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise ValueError(f"{wanted}, got one with the parameters {signature}; {error}") from error
    return tuple(parameter.name for parameter in keywords)
