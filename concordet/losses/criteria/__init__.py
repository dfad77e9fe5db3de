"""Criteria: modules that turn a detector's :class:`~concordet.assigned.Assigned` into named, weighted loss terms."""

from concordet.losses.criteria.bases import BASES, Base, LossDefaults, QualityHead
from concordet.losses.criteria.box import BoxTerm
from concordet.losses.criteria.cores import Core, NoTerms
from concordet.losses.criteria.couplings import COUPLINGS, Coupling, WeightedCoupling
from concordet.losses.criteria.criterion import Criterion, Needs, StagedCriterion, add_l1, rank_over, rank_records
from concordet.losses.criteria.mask import MaskTerm
from concordet.losses.criteria.names import LossName
from concordet.losses.criteria.registry import HEADS, build_criterion, list_losses, register_coupling, register_loss
from concordet.losses.criteria.terms import Term, Terms, sum_terms

__all__ = [
    "BASES",
    "COUPLINGS",
    "HEADS",
    "Base",
    "BoxTerm",
    "Core",
    "Coupling",
    "Criterion",
    "LossDefaults",
    "LossName",
    "MaskTerm",
    "Needs",
    "NoTerms",
    "QualityHead",
    "StagedCriterion",
    "Term",
    "Terms",
    "WeightedCoupling",
    "add_l1",
    "build_criterion",
    "list_losses",
    "rank_over",
    "rank_records",
    "register_coupling",
    "register_loss",
    "sum_terms",
]
