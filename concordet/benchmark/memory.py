"""Peak memory of this process, or of a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def reset_peak(device: str = "cpu") -> None:
    """Resets the peak of this process, if the operating system allows it, or of a GPU."""
    if device != "cpu":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def peak_mb(device: str = "cpu") -> float:
    """Peak memory in MB: of this process, or of what PyTorch allocated on a GPU; 0 on Windows."""
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated() / 1e6
    if STATUS.exists():  # getrusage's peak would include that of the parent process before exec
        lines = STATUS.read_text(encoding="ascii", errors="replace").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
