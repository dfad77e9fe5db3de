"""Terms of a loss: named values, each with its role."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from concordet.distributed import process_group

Role = Literal["classification", "box", "extra"]
ValueT = TypeVar("ValueT")
Terms = dict[str, Tensor]
"""Values of a criterion's terms by name; their sum is the loss."""


@dataclass(frozen=True)
class Term:
    """One term of a loss.

    Attributes:
        value: 0-dim value, weighted.
        role: ``classification``: what self-balanced box and mask terms are scaled to; ``box``: localization; ``extra``:
            everything added to these two.

    Example:
        >>> Term(torch.tensor(0.5), "box")
        Term(value=tensor(0.5000), role='box')
    """

    value: Tensor
    role: Role = "classification"


CoreTerms = dict[str, Term]
"""What a core returns: its terms by name."""


def as_terms(values: Tensor | Mapping[str, Tensor | Term]) -> CoreTerms:
    """Terms from the return value of a loss: one value, named ``classification``, or values by name.

    Example:
        >>> as_terms(torch.tensor(1.0))
        {'classification': Term(value=tensor(1.), role='classification')}
    """
    named = {"classification": values} if isinstance(values, Tensor) else values
    return {name: value if isinstance(value, Term) else Term(value) for name, value in named.items()}


def joined(terms: Mapping[str, ValueT], others: Mapping[str, ValueT]) -> dict[str, ValueT]:
    """Terms of two parts of a loss.

    Raises:
        ValueError: if both have a term of the same name.

    Example:
        >>> joined({"classification": 1.0}, {"box": 2.0})
        {'classification': 1.0, 'box': 2.0}
    """
    for name in others:
        if name in terms:
            raise ValueError(
                f"term {name!r} must come from one part of the loss, got it from two; rename the term of your own part"
            )
    return {**terms, **others}


def sum_terms(terms: Mapping[str, Tensor]) -> Tensor:
    """0-dim sum of all terms."""
    return torch.stack(list(terms.values())).sum()


def sum_of_role(terms: CoreTerms, role: Role) -> Tensor:
    """0-dim sum of the terms with this role; 0 if there is none."""
    return sum_terms({name: term.value for name, term in terms.items() if term.role == role} or {"": torch.zeros(())})


def balance(classification: Tensor, box: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Factor that makes the box term as large as the classification term, without gradient; 1 if the box term is 0.

    With a group it is the same everywhere: the ratio of the means of both terms over its processes.
    """
    classification, box = process_group(group).all_mean(torch.stack([classification, box]).detach())
    return torch.where(box > 0, classification / torch.where(box > 0, box, 1), 1)
