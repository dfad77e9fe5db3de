"""Every loss: as a function (:mod:`concordet.losses.functional`), as a module, and by name (criteria)."""

from concordet.losses.box import BoxTerm
from concordet.losses.criteria import Criterion, Usual, build_criterion, list_losses

__all__ = [
    "BoxTerm",
    "Criterion",
    "Usual",
    "build_criterion",
    "list_losses",
]
