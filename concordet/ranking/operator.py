"""From a definition to a loss: choose positives and negatives, count, spread, and hand the update to autograd."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from concordet.distributed import SingleProcess, process_group
from concordet.ranking import definitions
from concordet.ranking.bucketed import BucketedCounts
from concordet.ranking.counts import Counts, nowhere
from concordet.ranking.definitions import Definition, Payers, Side
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
"""Number of positives that nobody has counted yet."""

DEFINITIONS: dict[str, Definition] = {}
"""Known losses by name; an operator that torch.compile understands takes names, not objects."""


def register(definition: Definition) -> Definition:
    """Make a definition known to :func:`ranking_loss`; ValueError where another one has its name."""
    known = DEFINITIONS.setdefault(definition.name, definition)
    if known is not definition:
        raise ValueError(f"a ranking loss named {definition.name!r} is registered already; choose another name.")
    return definition


for _definition in (
    definitions.AP,
    definitions.INTERPOLATED_AP,
    definitions.ALRP,
    definitions.RANK_SORT,
    definitions.NDCG,
):
    register(_definition)


def ranking_loss(
    definition: Definition,
    logits: Tensor,
    labels: Tensor,
    side: Tensor | None = None,
    *,
    delta: float,
    self_relation: float,
    method: str = "auto",
    group: str | None = None,
    n_positives: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The terms of a registered ranking loss, each with its error-driven gradient with respect to the logits.

    Args:
        definition: what to compute.
        logits: ``[n]`` float; half precision is computed in float32, sums always in float64.
        labels: ``[n]`` integer, 1 positive, 0 negative, anything else ignored.
        side: ``[p]`` or ``[n]`` (read at the positives) side information, detached.
        delta: half width of the smoothed step.
        self_relation: what a positive adds to its own rank.
        method: a name in :data:`METHODS`.
        group: name of a process group, or None for this process alone.
        n_positives: how many there are, where that is known: a device then need not be asked.

    Returns:
        ``[t]`` values of the terms, and ``[p]`` weights of the positives (constants; empty if the definition has none).
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    # sizes that a compiler can know beforehand: [n] side information stays [n] here, [p] stays [p]
    side = logits.new_zeros(0) if side is None else side.detach()
    if side.dtype != torch.float64:
        side = side.float()
    wants_gradient = torch.is_grad_enabled() and logits.requires_grad
    values, _, weights = _ranking(
        logits,
        labels,
        side,
        definition.name,
        delta,
        self_relation,
        method,
        group or "",
        UNKNOWN if n_positives is None else n_positives,
        wants_gradient,
    )
    return values, weights


def compute_terms(
    logits: Tensor,
    labels: Tensor,
    side: Tensor,
    definition: str,
    delta: float,
    self_relation: float,
    method: str,
    group: str,
    n_positives: int,
    wants_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Values ``[t]``, updates ``[t, n]`` (``[t, 0]`` if not wanted) and weights like ``side``; without autograd."""
    with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
        return _compute(
            logits,
            labels,
            side,
            DEFINITIONS[definition],
            delta,
            self_relation,
            METHODS[method],
            process_group(group),
            n_positives,
            wants_gradient,
        )


_ranking = torch.library.custom_op("concordet::ranking", mutates_args=())(compute_terms)


@_ranking.register_fake
def _ranking_fake(
    logits: Tensor,
    labels: Tensor,
    side: Tensor,
    definition: str,
    delta: float,
    self_relation: float,
    method: str,
    group: str,
    n_positives: int,
    wants_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    n_terms = DEFINITIONS[definition].n_terms
    return (
        logits.new_empty(n_terms),
        logits.new_empty(n_terms, logits.shape[0] if wants_gradient else 0),
        side.new_empty(side.shape),
    )


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(output[1])
    ctx.set_materialize_grads(True)


def _backward(ctx, grad_values, grad_updates, grad_weights):
    (updates,) = ctx.saved_tensors
    # each term's update is scaled by the gradient that arrives at its own output
    grad_logits = updates[0] * grad_values[0]
    for update, grad_value in zip(updates[1:], grad_values[1:], strict=True):
        grad_logits = torch.addcmul(grad_logits, update, grad_value)
    return (grad_logits, *[None] * 9)


_ranking.register_autograd(_backward, setup_context=_setup_context)


def _compute(
    logits: Tensor,
    labels: Tensor,
    side: Tensor,
    definition: Definition,
    delta: float,
    self_relation: float,
    method: Callable[[Tensor, Tensor, float, SingleProcess], Counts],
    processes: SingleProcess,
    n_positives: int,
    wants_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    n_terms = definition.n_terms
    n_updates = len(logits) if wants_gradient else 0
    if definition.side is Side.BY_POSITIVE and n_positives == UNKNOWN and not on_host(labels):
        n_positives = len(side)
    positive, miscounted = _positives(labels, n_positives)  # [p]
    if definition.side is Side.BY_POSITIVE and len(side) != len(positive):
        raise ValueError(
            f"expected one value for each of the {len(positive)} positives in labels, got {len(side)}; "
            "give them in the order of the positives."
        )
    weights = torch.zeros_like(side)
    if definition.side is Side.NONE:
        own_side = logits.new_zeros(len(positive), dtype=torch.float64)
    else:
        own_side = (side[positive] if definition.side is Side.BY_LOGIT else side).double()

    poison = _poison(logits, labels, miscounted)
    own_logits = logits.index_select(0, positive).nan_to_num_()
    # all processes' positives, and which of them are ours
    (positives, quality), mine = processes.all_gather(own_logits, own_side)
    if len(positives) == 0:
        return logits.new_zeros(n_terms) + poison, logits.new_zeros(n_terms, n_updates), weights

    keys = torch.where(labels == 0, logits, nowhere(logits.dtype)).nan_to_num_()
    counts = method(positives, keys, delta, processes)
    result = definition.compute(counts, self_relation, quality)
    values = torch.stack([term.value.mean() for term in result.terms]).to(logits.dtype) + poison
    if result.weights is not None:
        own = (result.weights[mine] / len(positives)).to(weights.dtype)
        weights = own if definition.side is Side.BY_POSITIVE else weights.index_copy_(0, positive, own)
    if not wants_gradient:
        return values, logits.new_zeros(n_terms, 0), weights

    rows = []
    for term in result.terms:
        moved = torch.where(term.mass > 0, term.error, 0) * (processes.size / len(positives))  # [p]
        amount = torch.where(term.mass > 0, moved / term.mass, 0)
        if term.payers is Payers.NEGATIVES:
            row, gain = counts.spread_to_negatives(amount), -moved
        else:
            row, gain = torch.zeros_like(logits), counts.spread_to_worse(amount, quality) - moved
        rows.append(row.index_copy_(0, positive, gain[mine].to(row.dtype)))
    # one row needs no copy
    return values, rows[0][None] if n_terms == 1 else torch.stack(rows), weights


def _positives(labels: Tensor, n_positives: int) -> tuple[Tensor, Tensor]:
    """``[p]`` where the positives are, and 0-dim whether ``n_positives`` is wrong.

    Raises:
        ValueError: on a CPU, for a wrong number; elsewhere the loss becomes NaN.
    """
    is_positive = labels == 1
    none = torch.zeros((), dtype=torch.bool, device=labels.device)
    if n_positives == UNKNOWN or on_host(labels):
        positive = is_positive.nonzero().squeeze(1)
        if n_positives not in (UNKNOWN, len(positive)):
            raise ValueError(
                f"n_positives is {n_positives}, and {len(positive)} labels are 1; give their number or leave it out."
            )
        return positive, none
    try:
        positive = torch.nonzero_static(is_positive, size=n_positives, fill_value=0).squeeze(1)
    except NotImplementedError:  # older PyTorch has it on CPUs alone
        return is_positive.nonzero().squeeze(1), none
    return positive, is_positive.sum() != n_positives


def _poison(logits: Tensor, labels: Tensor, miscounted: Tensor) -> Tensor:
    """0, or NaN where there is a NaN among the logits that count, or the positives are other than was said."""
    if on_host(logits) and not logits.sum().isnan():
        return logits.new_zeros(())  # the quick answer; opposite infinities may need the slow one
    bad = logits.isnan() & ((labels == 0) | (labels == 1))
    return torch.where(bad.any() | miscounted, torch.nan, 0.0).to(logits.dtype)
