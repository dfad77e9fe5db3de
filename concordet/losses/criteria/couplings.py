"""The table of couplings: terms added to a loss that tie the scores of the positives to their IoUs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from concordet.assigned import Assigned
from concordet.losses import functional

CouplingFunction = Callable[..., Tensor]
"""Maps ``(assigned, ious, **settings)`` to a 0-dim value."""


@dataclass(frozen=True)
class Coupling:
    """An entry of the table of couplings.

    Attributes:
        function: of (assigned, IoUs of the positives ``[p]``, settings by name) to a 0-dim value.
        weight: default weight.
        settings: names of the numbers that a loss name may set, as in ``spearman(0.1,strength=1)``.
        check: function of the settings by name that raises a ValueError where one is out of range; None for no check.
    """

    function: CouplingFunction
    weight: float = 1.0
    settings: tuple[str, ...] = ()
    check: Callable[..., object] | None = None


@dataclass(frozen=True)
class WeightedCoupling:
    """A coupling as part of a criterion: function, settings and weight."""

    function: CouplingFunction
    weight: float

    def __call__(self, assigned: Assigned, ious: Tensor) -> Tensor:
        """Weighted 0-dim value."""
        return self.weight * self.function(assigned, ious)


def correlation_coupling(
    assigned: Assigned, ious: Tensor, *, coefficient: functional.Coefficient, strength: float | None = None
) -> Tensor:
    """1 - correlation of the positives' class probabilities with their IoUs (Correlation Loss)."""
    return functional.correlation_loss(
        assigned.scores(), ious, coefficient=coefficient, strength=strength, group=assigned.group
    )


def association_coupling(
    assigned: Assigned, ious: Tensor, *, form: functional.AssociationForm, slope: float = 1.0
) -> Tensor:
    """PSE or PCE over the number of positives (Association Loss, Eq. 12)."""
    losses = functional.association_loss(assigned.scores(), ious, form=form, slope=slope, reduction="sum")
    return losses / assigned.normalizer


_NONE = torch.zeros(0)  # the functions check their settings without any positive, too
_check_strength = partial(functional.correlation_loss, _NONE, _NONE, coefficient="spearman")
_check_slope = partial(functional.association_loss, _NONE, _NONE)

COUPLINGS: dict[str, Coupling] = {
    "concordance": Coupling(partial(correlation_coupling, coefficient="concordance"), weight=0.3),
    "spearman": Coupling(
        partial(correlation_coupling, coefficient="spearman"), 0.1, settings=("strength",), check=_check_strength
    ),
    "pearson": Coupling(partial(correlation_coupling, coefficient="pearson"), weight=0.3),
    "pse": Coupling(partial(association_coupling, form="squared"), settings=("slope",), check=_check_slope),
    "pce": Coupling(partial(association_coupling, form="cross_entropy"), settings=("slope",), check=_check_slope),
}
"""Couplings by the name that is added to a loss name with ``+``."""
