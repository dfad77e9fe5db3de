"""From a definition to a loss: choose positives and negatives, count, distribute, and hand the update to autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from concordet.distributed import SingleProcess, process_group
from concordet.ranking import definitions
from concordet.ranking.bucketed import BucketedCounts
from concordet.ranking.counts import MASKED_LOGIT, Counts
from concordet.ranking.definitions import AuxKind, Definition, Support
from concordet.ranking.exact import ExactCounts
from concordet.ranking.quadratic import QuadraticCounts
from concordet.ranking.sums import on_host

METHODS: dict[str, Callable[[Tensor, Tensor, float, SingleProcess], Counts]] = {
    "exact": ExactCounts,
    "quadratic": QuadraticCounts,
    "bucketed": BucketedCounts,
    "auto": ExactCounts,
}
"""How soft counts are computed. ``auto`` is exact: it is the fastest at every size."""

UNKNOWN = -1
"""Number of positives that has not been counted yet."""

DEFINITIONS: dict[str, Definition] = {}
"""Registered losses by name; an operator that torch.compile understands takes names, not objects."""


class RankingOptions(NamedTuple):
    """What every ranking loss can be told, whatever its definition.

    A named tuple, as an operator takes its fields one by one.

    Attributes:
        delta: half width of the smoothed step.
        self_relation: what a positive adds to its own rank.
        method: a name in :data:`METHODS`.
        group: name of a process group, or "" for this process only.
        n_positives: number of positives where it is known, so that a device need not be asked; else :data:`UNKNOWN`.

    Example:
        >>> RankingOptions(delta=0.5).method
        'auto'
    """

    delta: float = 1.0
    self_relation: float = 1.0
    method: str = "auto"
    group: str = ""
    n_positives: int = UNKNOWN


def register(definition: Definition) -> Definition:
    """Make a definition known to :func:`ranking_loss`.

    Raises:
        ValueError: if another definition has this name.
    """
    registered = DEFINITIONS.setdefault(definition.name, definition)
    if registered is not definition:
        raise ValueError(f"name must be free, got {definition.name!r}, which is registered; choose another name")
    return definition


for _definition in (definitions.AP, definitions.ALRP, definitions.RANK_SORT, definitions.NDCG):
    register(_definition)


def ranking_loss(
    definition: Definition,
    logits: Tensor,
    labels: Tensor,
    aux: Tensor | None = None,
    *,
    options: RankingOptions = RankingOptions(),  # noqa: B008 (immutable)
    **settings: float,
) -> tuple[Tensor, Tensor]:
    """The terms of a registered ranking loss, each with its error-driven gradient with respect to the logits.

    Args:
        definition: loss to compute.
        logits: ``[n]`` float; half precision is computed in float32, sums always in float64.
        labels: ``[n]`` integer, 1 positive, 0 negative, anything else ignored.
        aux: ``[p]`` or ``[n]`` (read at the positives) auxiliary input, detached.
        options: step, method, processes.
        settings: numbers of this definition; those left out have its defaults.

    Returns:
        ``[t]`` values of the terms, and ``[p]`` weights of the positives (constants; empty if the definition has none).

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
    logits = logits if logits.dtype == torch.float64 else logits.float()
    # sizes that a compiler can know beforehand: [n] auxiliary input stays [n] here, [p] stays [p]
    aux = logits.new_zeros(0) if aux is None else aux.detach()
    if aux.dtype != torch.float64:
        aux = aux.float()
    wants_gradient = torch.is_grad_enabled() and logits.requires_grad
    values, _, weights = _ranking(logits, labels, aux, definition.name, numbers, wants_gradient, *options)
    return values, weights


def compute_terms(
    logits: Tensor,
    labels: Tensor,
    aux: Tensor,
    definition: str,
    settings: list[float],
    wants_gradient: bool,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Values ``[t]``, updates ``[t, n]`` (``[t, 0]`` if not wanted) and weights like ``aux``; without autograd.

    Args:
        logits: ``[n]`` float32 or float64.
        labels: ``[n]`` integer.
        aux: ``[p]``, ``[n]`` or ``[0]``.
        definition: name of a registered definition.
        settings: values of its settings, in its order.
        wants_gradient: whether updates are computed.
        options: fields of :class:`RankingOptions`.
    """
    with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
        return _compute(
            logits, labels, aux, DEFINITIONS[definition], settings, wants_gradient, RankingOptions(*options)
        )


_ranking = torch.library.custom_op(
    "concordet::ranking",
    compute_terms,
    mutates_args=(),
    schema=(
        "(Tensor logits, Tensor labels, Tensor aux, str definition, float[] settings, bool wants_gradient,"
        " float delta, float self_relation, str method, str group, SymInt n_positives) -> (Tensor, Tensor, Tensor)"
    ),
)


@_ranking.register_fake
def _ranking_fake(
    logits: Tensor,
    labels: Tensor,
    aux: Tensor,
    definition: str,
    settings: list[float],
    wants_gradient: bool,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    n_terms = DEFINITIONS[definition].n_terms
    return (
        logits.new_empty(n_terms),
        logits.new_empty(n_terms, logits.shape[0] if wants_gradient else 0),
        aux.new_empty(aux.shape),
    )


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(output[1], inputs[0])
    ctx.n_others = len(inputs) - 1
    ctx.set_materialize_grads(True)


class _NoSecondDerivative(torch.autograd.Function):
    """Identity of an update, which refuses to be differentiated: an update is no derivative."""

    @staticmethod
    def forward(ctx: Any, update: Tensor, logits: Tensor) -> Tensor:
        return update.view_as(update)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "a ranking loss must be differentiated once, got a second derivative; its gradient is an error-driven "
            "update, which has none: leave it out of gradient penalties"
        )


def _backward(ctx: Any, grad_values: Tensor, grad_updates: Tensor, grad_weights: Tensor) -> tuple[Tensor | None, ...]:
    updates, logits = ctx.saved_tensors
    # each term's update is scaled by the gradient that arrives at its own output
    grad_logits = updates[0] * grad_values[0]
    for update, grad_value in zip(updates[1:], grad_values[1:], strict=True):
        grad_logits = torch.addcmul(grad_logits, update, grad_value)
    if torch.is_grad_enabled():  # create_graph=True
        grad_logits = _NoSecondDerivative.apply(grad_logits, logits)
    return (grad_logits, *[None] * ctx.n_others)


_ranking.register_autograd(_backward, setup_context=_setup_context)


def _compute(
    logits: Tensor,
    labels: Tensor,
    aux: Tensor,
    definition: Definition,
    settings: list[float],
    wants_gradient: bool,
    options: RankingOptions,
) -> tuple[Tensor, Tensor, Tensor]:
    processes = process_group(options.group)
    n_terms, n_positives = definition.n_terms, options.n_positives
    n_updates = len(logits) if wants_gradient else 0
    if definition.aux is AuxKind.PER_POSITIVE and n_positives == UNKNOWN and not on_host(labels):
        n_positives = len(aux)
    positive, miscounted = _positives(labels, n_positives)  # [p]
    if definition.aux is AuxKind.PER_POSITIVE and len(aux) != len(positive):
        raise ValueError(
            f"expected one value for each of the {len(positive)} positives in labels, got {len(aux)}; "
            "give them in the order of the positives."
        )
    weights = torch.zeros_like(aux)
    if definition.aux is AuxKind.NONE:
        local_aux = logits.new_zeros(len(positive), dtype=torch.float64)
    else:
        local_aux = (aux[positive] if definition.aux is AuxKind.PER_LOGIT else aux).double()

    nan_if_invalid = _nan_if_invalid(logits, labels, miscounted)
    local_positives = logits.index_select(0, positive).nan_to_num_()
    # all processes' positives, and which of them are this one's
    (positives, all_aux), local = processes.all_gather(local_positives, local_aux)
    if len(positives) == 0:
        return logits.new_zeros(n_terms) + nan_if_invalid, logits.new_zeros(n_terms, n_updates), weights

    keys = torch.where(labels == 0, logits, MASKED_LOGIT[logits.dtype]).nan_to_num_()
    counts = METHODS[options.method](positives, keys, options.delta, processes)
    named = dict(zip(definition.settings, settings, strict=True))
    result = definition.compute(counts, all_aux, self_relation=options.self_relation, **named)
    values = torch.stack([term.value.mean() for term in result.terms]).to(logits.dtype) + nan_if_invalid
    if result.weights is not None:
        local_weights = (result.weights[local] / len(positives)).to(weights.dtype)
        per_positive = definition.aux is AuxKind.PER_POSITIVE
        weights = local_weights if per_positive else weights.index_copy_(0, positive, local_weights)
    if not wants_gradient:
        return values, logits.new_zeros(n_terms, 0), weights

    rows = []
    for term in result.terms:
        spreads = term.pmf_denominator > 0
        error = torch.where(spreads, term.error, 0) * (processes.size / len(positives))  # [p]
        coefficients = torch.where(spreads, error / term.pmf_denominator, 0)
        if term.support is Support.NEGATIVES:
            row, positive_update = counts.spread_to_negatives(coefficients), -error
        else:
            row, positive_update = torch.zeros_like(logits), counts.spread_to_worse(coefficients, all_aux) - error
        rows.append(row.index_copy_(0, positive, positive_update[local].to(row.dtype)))
    # one row needs no copy
    return values, rows[0][None] if n_terms == 1 else torch.stack(rows), weights


def _positives(labels: Tensor, n_positives: int) -> tuple[Tensor, Tensor]:
    """``[p]`` indices of the positives, and 0-dim whether ``n_positives`` is wrong.

    Raises:
        ValueError: on a CPU, for a wrong number; elsewhere the loss becomes NaN.
    """
    is_positive = labels == 1
    right = torch.zeros((), dtype=torch.bool, device=labels.device)
    if n_positives == UNKNOWN or on_host(labels):
        positive = is_positive.nonzero().squeeze(1)
        if n_positives not in (UNKNOWN, len(positive)):
            raise ValueError(
                f"n_positives is {n_positives}, and {len(positive)} labels are 1; give their number or leave it out."
            )
        return positive, right
    try:
        positive = torch.nonzero_static(is_positive, size=n_positives, fill_value=0).squeeze(1)
    except NotImplementedError:  # older PyTorch has it on CPUs only
        return is_positive.nonzero().squeeze(1), right
    return positive, is_positive.sum() != n_positives


def _nan_if_invalid(logits: Tensor, labels: Tensor, miscounted: Tensor) -> Tensor:
    """0, or NaN where a logit that counts is NaN or the number of positives is wrong."""
    if on_host(logits) and not logits.sum().isnan():
        return logits.new_zeros(())  # the quick answer; opposite infinities may need the slow one
    bad = logits.isnan() & ((labels == 0) | (labels == 1))
    return torch.where(bad.any() | miscounted, torch.nan, 0.0).to(logits.dtype)
