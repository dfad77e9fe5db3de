"""From a definition to a loss: select positives and negatives, count, distribute, and pass the update to autograd."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import threshold

from concordet.distributed import SingleProcess, process_group
from concordet.ranking import definitions
from concordet.ranking.backend_torch import compiled_for, fused_for
from concordet.ranking.bucketed import BucketedCounts
from concordet.ranking.counts import MASKED_LOGIT, Counts
from concordet.ranking.definitions import AuxKind, Definition, Support, Term
from concordet.ranking.exact import ExactCounts
from concordet.ranking.intervals import sort_ascending
from concordet.ranking.quadratic import QuadraticCounts
from concordet.ranking.segments import Segments
from concordet.ranking.sums import as_number, on_host


def count_exactly(
    positives: Tensor,
    negatives: Tensor,
    delta: float,
    processes: SingleProcess,
    segments: Segments,
    negative_segments: Tensor | None,
) -> Counts:
    """Soft counts in near-linear time: by compiled loops where Numba is installed, else by PyTorch's operations."""
    compiled = compiled_for(negatives)
    method = ExactCounts if compiled is None else compiled.CompiledCounts
    return method(positives, negatives, delta, processes, segments, negative_segments)


METHODS: dict[str, Callable[[Tensor, Tensor, float, SingleProcess, Segments, Tensor | None], Counts]] = {
    "exact": count_exactly,
    "quadratic": QuadraticCounts,
    "bucketed": BucketedCounts,
    "auto": count_exactly,
}
"""Functions that compute soft counts, by method. ``auto`` is exact, the fastest of them at every size."""

UNKNOWN = -1
"""Number of positives that has not been counted yet."""

DEFINITIONS: dict[str, Definition] = {}
"""Registered losses by name: a custom operator takes names, not objects."""


class RankingOptions(NamedTuple):
    """Options that every ranking loss takes, whatever its definition.

    A named tuple, because a custom operator takes the fields one by one.

    Attributes:
        delta: half width of the smoothed step.
        self_relation: what a positive adds to its own rank.
        method: a name in :data:`METHODS`.
        group: name of a process group, or "" for this process only.
        n_positives: number of positives if the caller knows it, which saves a synchronization with the device;
            otherwise :data:`UNKNOWN`.
        n_segments: number of independent rankings.
        finite: whether the logits that count are known to be finite, which saves a check.

    Example:
        >>> RankingOptions(delta=0.5).method
        'auto'
    """

    delta: float = 1.0
    self_relation: float = 1.0
    method: str = "auto"
    group: str = ""
    n_positives: int = UNKNOWN
    n_segments: int = 1
    finite: bool = False


def register(definition: Definition) -> Definition:
    """Makes a definition known to :func:`ranking_loss`.

    Running the same definition again (in a notebook) replaces it.

    Raises:
        ValueError: if another definition has this name.
    """
    registered = DEFINITIONS.get(definition.name, definition)
    if registered is not definition and _origin(registered) != _origin(definition):
        raise ValueError(f"name must be free, got {definition.name!r}, which is registered; choose another name")
    DEFINITIONS[definition.name] = definition
    return definition


def _origin(definition: Definition) -> tuple[str, str]:
    return definition.compute.__module__, definition.compute.__qualname__


for _definition in (definitions.AP, definitions.ALRP, definitions.RANK_SORT, definitions.NDCG):
    register(_definition)


def ranking_loss(
    definition: Definition,
    logits: Tensor,
    labels: Tensor,
    aux: Tensor | None = None,
    *,
    segments: Tensor | None = None,
    options: RankingOptions = RankingOptions(),  # noqa: B008 (immutable)
    **settings: float,
) -> tuple[Tensor, Tensor]:
    """The terms of a registered ranking loss, each with its error-driven gradient with respect to the logits.

    Args:
        definition: loss to compute.
        logits: ``[n]`` float; half precision is computed in float32, sums always in float64.
        labels: ``[n]`` integer, 1 positive, 0 negative, anything else ignored.
        aux: ``[p]`` or ``[n]`` (read at the positives) auxiliary input; it gets no gradient.
        segments: ``[n]`` integer in 0..s-1, the ranking of each logit, with ``options.n_segments`` = s; None for one.
        options: step, method, processes.
        settings: numbers of this definition; those left out have its defaults.

    Returns:
        ``[t]`` values of the terms (``[t, s]`` with ``segments``), and ``[p]`` weights of the positives in their order
        in ``labels`` (constants; empty if the definition has none).

    Raises:
        ValueError: if the definition has no setting of a given name.

    Example:
        >>> logits, labels = torch.tensor([2.0, 1.0, 0.0]), torch.tensor([0, 1, 0])
        >>> ranking_loss(definitions.AP, logits, labels, options=RankingOptions(delta=0.0))[0]
        tensor([0.5000])
    """
    unknown = [name for name in settings if name not in definition.settings]
    if unknown:
        known = ", ".join(definition.settings) or "none"
        raise ValueError(f"settings of {definition.name!r} must be among {known}, got {unknown[0]!r}; leave it out")
    numbers = [float(settings.get(name, default)) for name, default in definition.settings.items()]
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    # [n] auxiliary input is not reduced to [p] here: a compiler knows n beforehand and not p
    if aux is not None:
        aux = aux.detach() if aux.dtype in (torch.float32, torch.float64) else aux.detach().float()
    if segments is not None and segments.dtype != torch.int64:
        segments = segments.long()
    wants_gradient = torch.is_grad_enabled() and logits.requires_grad
    values, _, weights = _ranking(logits, labels, aux, segments, definition.name, numbers, wants_gradient, *options)
    return values, weights


def compute_terms(
    logits: Tensor,
    labels: Tensor,
    aux: Tensor | None,
    segments: Tensor | None,
    definition: str,
    settings: list[float],
    wants_gradient: bool,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Values ``[t]`` or ``[t, s]``, updates ``[t, n]`` (``[t, 0]`` if not wanted) and weights; without autograd.

    Args:
        logits: ``[n]`` float32 or float64.
        labels: ``[n]`` integer.
        aux: ``[p]``, ``[n]`` or None.
        segments: ``[n]`` integer, or None.
        definition: name of a registered definition.
        settings: values of its settings, in its order.
        wants_gradient: whether updates are computed.
        options: fields of :class:`RankingOptions`.
    """
    with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
        registered = DEFINITIONS[definition]
        named = dict(zip(registered.settings, settings, strict=True))
        return _compute(logits, labels, aux, segments, registered, named, wants_gradient, RankingOptions(*options))


_ranking = torch.library.custom_op(
    "concordet::ranking",
    compute_terms,
    mutates_args=(),
    schema=(
        "(Tensor logits, Tensor labels, Tensor? aux, Tensor? segments, str definition, float[] settings,"
        " bool wants_gradient, float delta, float self_relation, str method, str group, SymInt n_positives,"
        " SymInt n_segments, bool finite) -> (Tensor, Tensor, Tensor)"
    ),
)


@_ranking.register_fake
def _ranking_fake(
    logits: Tensor,
    labels: Tensor,
    aux: Tensor | None,
    segments: Tensor | None,
    definition: str,
    settings: list[float],
    wants_gradient: bool,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    registered = DEFINITIONS[definition]
    n_terms, n_segments = registered.n_terms, RankingOptions(*options).n_segments
    per_positive = aux is not None and registered.aux is AuxKind.PER_POSITIVE
    return (
        logits.new_empty(n_terms) if segments is None else logits.new_empty(n_terms, n_segments),
        logits.new_empty(n_terms, logits.shape[0] if wants_gradient else 0),
        aux.new_empty(aux.shape) if per_positive and aux is not None else logits.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(output[1], inputs[0], inputs[3])
    ctx.n_others = len(inputs) - 1
    ctx.set_materialize_grads(False)


class _NoSecondDerivative(torch.autograd.Function):
    """Identity whose backward pass raises an error: an error-driven update has no derivative."""

    @staticmethod
    def forward(ctx: Any, update: Tensor, logits: Tensor) -> Tensor:
        return update.view_as(update)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "a ranking loss must be differentiated once, got a second derivative; its gradient is an error-driven "
            "update, which has none: leave it out of gradient penalties"
        )


def _backward(
    ctx: Any, grad_values: Tensor | None, grad_updates: Tensor | None, grad_weights: Tensor | None
) -> tuple[Tensor | None, ...]:
    updates, logits, segments = ctx.saved_tensors
    if grad_values is None:  # only the weights were used, which are constants
        return (updates.new_zeros(updates.shape[1]), *[None] * ctx.n_others)
    # each term's update is scaled by the gradient that arrives at its own output
    scales = grad_values if segments is None else grad_values.index_select(1, segments)
    grad_logits = updates[0] * scales[0]
    for update, scale in zip(updates[1:], scales[1:], strict=True):
        grad_logits = torch.addcmul(grad_logits, update, scale)
    if torch.is_grad_enabled():  # create_graph=True
        grad_logits = _NoSecondDerivative.apply(grad_logits, logits)
    return (grad_logits, *[None] * ctx.n_others)


_ranking.register_autograd(_backward, setup_context=_setup_context)


def _compute(
    logits: Tensor,
    labels: Tensor,
    aux: Tensor | None,
    segments: Tensor | None,
    definition: Definition,
    settings: dict[str, float],
    wants_gradient: bool,
    options: RankingOptions,
) -> tuple[Tensor, Tensor, Tensor]:
    # kernels address rows by their number: a view of a column or an expanded tensor would be read as another one
    logits, labels = logits.contiguous(), labels.contiguous()
    aux, segments = (other if other is None else other.contiguous() for other in (aux, segments))
    processes = process_group(options.group)
    n_terms, n_positives, n_segments = definition.n_terms, options.n_positives, options.n_segments
    per_positive = definition.aux is AuxKind.PER_POSITIVE
    if per_positive and aux is not None and n_positives == UNKNOWN and not on_host(labels):
        n_positives = len(aux)
    positive = _positives(labels, n_positives)  # [p]
    if per_positive and aux is not None and len(aux) != len(positive):
        raise ValueError(
            f"{definition.name}: values per positive must be {len(positive)}, as many as the positives in labels, got "
            f"{len(aux)}; give them in the order of the positives"
        )
    fused = fused_for(logits)
    exact_here = processes.size == 1 and options.method in ("auto", "exact")
    if fused is not None and exact_here and fused.takes(logits, positive, definition.name, settings):
        values, updates, weights = fused.compute(
            logits, labels, aux, positive, segments, definition.name, n_segments=n_segments, delta=options.delta,
            self_relation=options.self_relation, wants_gradient=wants_gradient,
        )  # fmt: skip
        return (
            values if segments is not None else values.squeeze(1),
            updates,
            logits.new_empty(0) if weights is None else weights,
        )
    miscounted = None if on_host(labels) or n_positives == UNKNOWN else (labels == 1).sum() != n_positives
    finite = options.finite or (on_host(logits) and math.isfinite(as_number(logits.sum())))
    local_logits = logits.index_select(0, positive)
    if not finite:
        local_logits.nan_to_num_()
    columns = [local_logits]
    if definition.aux is not AuxKind.NONE:
        columns.append(_at_positives(definition, aux, positive))
    if segments is not None:
        columns.append(segments.index_select(0, positive))
    # positives of all processes, and the slice of this one's
    gathered, local = processes.all_gather(*columns)
    n_updates = len(logits) if wants_gradient else 0
    weights = None
    if len(gathered[0]) == 0:
        values = logits.new_zeros(n_terms, n_segments)
        updates = logits.new_zeros(n_terms, n_updates)
    else:
        positives, order = sort_ascending(gathered[0].flip(0))  # of equal ones, the later one first
        order = (len(order) - 1) - order
        index = None if segments is None else gathered[-1].index_select(0, order)
        rankings = Segments(index, n_segments)
        keys = logits.masked_fill(labels != 0, MASKED_LOGIT[logits.dtype])
        if not finite:
            keys.nan_to_num_()
        counts = METHODS[options.method](positives, keys, options.delta, processes, rankings, segments)
        all_aux = None if definition.aux is AuxKind.NONE else gathered[1].index_select(0, order)
        result = definition.compute(counts, all_aux, self_relation=options.self_relation, **settings)
        p = rankings.sizes(len(positives))  # [p] or one number
        values = rankings.means(_stack([term.value for term in result.terms]), p).to(logits.dtype)  # [t, s]
        placement = _Placement(positive, order, local, processes.size > 1)
        if result.weights is not None and per_positive and aux is not None:
            weights = placement.unsorted(result.weights / p).to(aux.dtype, copy=True)
        if wants_gradient:
            scale = processes.size / (p.double() if isinstance(p, Tensor) else p)
            updates = _updates(result.terms, counts, all_aux, scale, keys, placement)
        else:
            updates = logits.new_zeros(n_terms, 0)
    if not finite:
        values = values + _nan_if_invalid(logits, labels, segments, n_segments, miscounted)
    if weights is None:
        weights = torch.zeros_like(aux) if per_positive and aux is not None else logits.new_zeros(0)
    return values if segments is not None else values.squeeze(1), updates, weights


def _at_positives(definition: Definition, aux: Tensor | None, positive: Tensor) -> Tensor:
    """``[p]`` float64 auxiliary input of the positives."""
    if aux is None:
        raise ValueError(
            f"aux of {definition.name!r} must be a tensor, got None; pass one value {definition.aux.value}"
        )
    return (aux if definition.aux is AuxKind.PER_POSITIVE else aux.index_select(0, positive)).double()


class _Placement:
    """Maps the sorted positives of all processes back to this process's positives, and to its logits."""

    def __init__(self, positive: Tensor, order: Tensor, local: slice, several: bool) -> None:
        self._positive, self._order, self._local, self._several = positive, order, local, several

    def unsorted(self, values: Tensor) -> Tensor:
        """``[..., local p]`` values of this process's positives in their order in the labels."""
        return values.index_copy(-1, self._order, values)[..., self._local]

    def subtract(self, rows: Tensor, values: Tensor) -> Tensor:
        """``rows`` ``[..., n]`` less the values of this process's positives, in place; ``values`` are overwritten."""
        values = values.neg_()  # index_add_ with alpha=-1 is slower: it adds index by index
        if self._several:
            return rows.index_add_(-1, self._positive, self.unsorted(values).to(rows.dtype))
        return rows.index_add_(-1, self._positive.index_select(0, self._order), values.to(rows.dtype))


def _stack(rows: list[Tensor]) -> Tensor:
    return rows[0][None] if len(rows) == 1 else torch.stack(rows)  # torch.stack would copy a single row


def _updates(
    terms: tuple[Term, ...],
    counts: Counts,
    aux: Tensor | None,
    scale: Tensor | float,
    keys: Tensor,
    placement: _Placement,
) -> Tensor:
    """``[t, n]`` error-driven update of every term."""
    denominators = _stack([term.pmf_denominator for term in terms])  # [t, p]
    # an infinite denominator makes the coefficient 0
    above_minimum = _stack([threshold(term.pmf_denominator, term.min_denominator, torch.inf) for term in terms])
    coefficients = _stack([term.error for term in terms]) * scale / above_minimum
    errors = coefficients * denominators
    if len(terms) == 1 and terms[0].support is Support.NEGATIVES:
        return placement.subtract(counts.spread_to_negatives(coefficients[0])[None], errors)
    updates = keys.new_zeros(len(terms), len(keys))  # filled row by row: stacked rows would need twice the memory
    for term, row, error, update in zip(terms, coefficients, errors, updates, strict=True):
        if term.support is Support.NEGATIVES:
            update.copy_(counts.spread_to_negatives(row))
        elif aux is not None:
            error.sub_(counts.spread_to_worse(row, aux))
        else:
            raise ValueError("support must be NEGATIVES in a loss without auxiliary input, got WORSE_POSITIVES")
    return placement.subtract(updates, errors)


def _positives(labels: Tensor, n_positives: int) -> Tensor:
    """``[p]`` indices of the positives.

    Raises:
        ValueError: on a CPU, if ``n_positives`` is wrong; on other devices the loss becomes NaN.
    """
    is_positive = labels == 1
    if n_positives == UNKNOWN or on_host(labels):
        positive = is_positive.nonzero().squeeze(1)
        if n_positives not in (UNKNOWN, len(positive)):
            raise ValueError(
                f"n_positives must be {len(positive)}, the number of labels that are 1, got {n_positives}; "
                "correct it or leave it out"
            )
        return positive
    try:
        return torch.nonzero_static(is_positive, size=n_positives, fill_value=0).squeeze(1)
    except NotImplementedError:  # older PyTorch has it on CPUs only
        return is_positive.nonzero().squeeze(1)


def _nan_if_invalid(
    logits: Tensor, labels: Tensor, segments: Tensor | None, n_segments: int, miscounted: Tensor | None
) -> Tensor:
    """``[s]`` 0, or NaN where a logit that counts is NaN or the number of positives is wrong."""
    bad = logits.isnan() & ((labels == 0) | (labels == 1))
    if segments is None:
        bad = bad.any()[None]
    else:
        bad = bad.new_zeros(n_segments, dtype=torch.int64).index_add_(0, segments, bad.long()) > 0
    if miscounted is not None:
        bad = bad | miscounted
    return torch.where(bad, torch.nan, 0.0).to(logits.dtype)
