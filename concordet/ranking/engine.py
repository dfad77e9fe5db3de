"""From a definition to a loss: choose positives and negatives, count, spread, and hand the update to autograd."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from concordet.ranking import definitions
from concordet.ranking.bucketed import BucketedCounts
from concordet.ranking.counts import Counts, nowhere
from concordet.ranking.definitions import Definition, Payers, Side
from concordet.ranking.exact import ExactCounts
from concordet.ranking.processes import Everyone, everyone
from concordet.ranking.quadratic import QuadraticCounts

METHODS: dict[str, Callable[[Tensor, Tensor, float, Everyone], Counts]] = {
    "exact": ExactCounts,
    "quadratic": QuadraticCounts,
    "bucketed": BucketedCounts,
    "auto": ExactCounts,
}
"""How soft counts are computed. ``auto`` is exact: it is the fastest at every size."""

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
        logits, labels, side, definition.name, delta, self_relation, method, group or "", wants_gradient
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
            everyone(group),
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
    return (grad_logits, *[None] * 8)


_ranking.register_autograd(_backward, setup_context=_setup_context)


def _compute(
    logits: Tensor,
    labels: Tensor,
    side: Tensor,
    definition: Definition,
    delta: float,
    self_relation: float,
    method: Callable[[Tensor, Tensor, float, Everyone], Counts],
    processes: Everyone,
    wants_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    n_terms = definition.n_terms
    n_updates = len(logits) if wants_gradient else 0
    positive = (labels == 1).nonzero().squeeze(1)  # [p]
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

    poison = _poison(logits, labels)
    own_logits = logits.index_select(0, positive).nan_to_num_()
    # all processes' positives, and which of them are ours
    (positives, quality), mine = processes.gather(own_logits, own_side)
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
    updates = rows[0][None] if n_terms == 1 else torch.stack(rows)
    return values, updates, weights


def _poison(logits: Tensor, labels: Tensor) -> Tensor:
    """0, or NaN where there is a NaN among the logits that count: NaN must not become a number."""
    if logits.device.type == "cpu" and not logits.sum().isnan():
        return logits.new_zeros(())  # the quick answer; opposite infinities may need the slow one
    bad = logits.isnan() & ((labels == 0) | (labels == 1))
    return torch.where(bad.any(), torch.nan, 0.0).to(logits.dtype)
