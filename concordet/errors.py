"""What can stop a run for a reason that its user can mend."""

from __future__ import annotations


class UsageError(ValueError):
    """Something asked for does not exist or contradicts something else; the command line exits with status 2."""


class DivergedError(ValueError):
    """A loss or a weight is no longer a finite number."""


class InterruptedRun(Exception):
    """Ctrl-C during training; what was reached is kept, and the message says how to go on."""


class LostProcess(InterruptedRun):
    """Another process of the same run is gone, or does not answer."""
