"""Counts of operations: deterministic, where times are not."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

VIEWS = frozenset(
    (
        "alias as_strided chunk detach detach_ expand expand_as flatten lift_fresh narrow permute reshape resolve_conj "
        + "resolve_neg select slice split split_with_sizes squeeze t transpose unbind unflatten unsqueeze view view_as"
    ).split()
)


def count_operations(loss, logits, *others):
    """Top-level aten operations that are no views, of ``loss(logits, ...)`` with several outputs and its backward."""

    def step(gradients=None):
        outputs = loss(logits.detach().requires_grad_(), *others)
        gradients = [torch.ones_like(output) for output in outputs] if gradients is None else gradients
        torch.autograd.backward(outputs, gradients)
        return gradients

    gradients = step()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        step(gradients)
    n = 0
    for event in recorded.events():
        if not event.name.startswith("aten::") or event.name.removeprefix("aten::") in VIEWS:
            continue
        parent = event.cpu_parent
        while parent is not None and not parent.name.startswith("aten::"):
            parent = parent.cpu_parent
        n += parent is None
    return n
