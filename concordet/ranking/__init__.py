"""Soft counts, the definitions made of them, and the engine that turns a definition into a loss. See README.md."""

from concordet.ranking.counts import Counts, step, step_at_zero
from concordet.ranking.definitions import Definition, Payers, Result, Side, Term
from concordet.ranking.operator import METHODS, ranking_loss, register

__all__ = [
    "METHODS",
    "Counts",
    "Definition",
    "Payers",
    "Result",
    "Side",
    "Term",
    "ranking_loss",
    "register",
    "step",
    "step_at_zero",
]
