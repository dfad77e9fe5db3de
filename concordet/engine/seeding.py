"""Random draws that depend on seed, epoch and image only.

A resumed run and runs with other numbers of workers or processes then draw the same augmentations.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_MASK = (1 << 64) - 1


def mix(*numbers: int) -> int:
    """A 63-bit hash of several integers (SplitMix64's finalizer applied to each).

    Example:
        >>> mix(0, 1) != mix(1, 0), 0 <= mix(5, 7) < 2**63
        (True, True)
    """
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = (state + (number & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def seed_all(*numbers: int) -> None:
    """Seeds the global generators of Python, NumPy and torch (on every device)."""
    seed = mix(*numbers)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 -- the global one is what augmentations of others draw from
    torch.manual_seed(seed)


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seeds the global CPU generators inside the block, and restores their states after it."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    seed = mix(*numbers)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.random.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
