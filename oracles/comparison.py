"""One row of the page: what was compared, on how much, and how far apart the results are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Comparison:
    """A comparison and its verdict.

    Attributes:
        what: what is compared.
        oracle: the other implementation.
        scenes: how many scenes, batches or files.
        deviation: largest deviation; relative to the largest value where ``unit`` says so.
        unit: what the deviation is measured in.
        tolerance: largest deviation that rounding explains.
        reason: why the two differ, where they do on purpose.
    """

    what: str
    oracle: str
    scenes: int
    deviation: float
    unit: str
    tolerance: float = 0.0
    reason: str = ""

    @property
    def verdict(self) -> str:
        """``equal``, ``departure`` or ``DIFFERS``."""
        if self.deviation <= self.tolerance:
            return "equal"
        return "departure" if self.reason else "DIFFERS"


def largest(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The largest absolute difference over the largest absolute value, over pairs of tensors; 0 of none."""
    difference = scale = 0.0
    for ours, theirs in pairs:
        if ours.numel() == 0:
            continue
        ours, theirs = ours.detach().double(), theirs.detach().double()
        difference = max(difference, float((ours - theirs).abs().max()))
        scale = max(scale, float(theirs.abs().max()))
    return difference / scale if scale else difference


def unequal(pairs: Iterable[tuple[Tensor, Tensor]]) -> int:
    """Number of entries that differ."""
    return sum(int((ours != theirs).sum()) for ours, theirs in pairs)
