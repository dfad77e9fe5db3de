"""Soft counts, the definitions made of them, and the engine that turns a definition into a loss. See README.md."""

from concordet.ranking.counts import Counts, step, step_at_zero
from concordet.ranking.definitions import AuxKind, Definition, Result, Support, Term
from concordet.ranking.operator import RankingOptions, ranking_loss, register

__all__ = [
    "AuxKind",
    "Counts",
    "Definition",
    "RankingOptions",
    "Result",
    "Support",
    "Term",
    "ranking_loss",
    "register",
    "step",
    "step_at_zero",
]
