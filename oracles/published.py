"""The authors' ranking losses, run from a clone of their repositories."""

from __future__ import annotations

import os
import subprocess
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from concordet.losses import functional as F
from oracles.comparison import Comparison, largest

REPOSITORIES = {
    "RankSortLoss": ("https://github.com/kemaloksuz/RankSortLoss", "mmdet/models/losses/ranking_losses.py"),
    "BucketedRankingBasedLosses": (
        "https://github.com/blisgard/BucketedRankingBasedLosses",
        "mmdet/models/losses/ranking_losses.py",
    ),
}
FOLDER = Path(".oracles")
"""Where clones lie; `ORACLES_CLONES` names folders of bare clones to read instead."""


def source(name: str) -> str | None:
    """The text of the repository's loss module; None where there is no network and no clone."""
    address, path = REPOSITORIES[name]
    given = os.environ.get("ORACLES_CLONES")
    folders = [p for p in Path(given).iterdir() if p.name.endswith(name)] if given else []
    clone = folders[0] / "repo" if folders and (folders[0] / "repo").exists() else FOLDER / f"{name}.git"
    if not clone.exists():
        FOLDER.mkdir(exist_ok=True)
        command = ["git", "clone", "--quiet", "--bare", "--depth", "1", address, str(clone)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return None
    shown = subprocess.run(
        ["git", f"--git-dir={clone}", "show", f"HEAD:{path}"], capture_output=True, text=True, check=False
    )
    return shown.stdout or None


def module(name: str) -> types.ModuleType | None:
    """The repository's loss module, on the CPU."""
    text = source(name)
    if text is None:
        return None
    loaded = types.ModuleType(name)
    loaded.__dict__["LOSSES"] = types.SimpleNamespace(register_module=lambda: lambda loss: loss)
    text = text.replace("from ..builder import LOSSES", "").replace(".cuda()", "")
    exec(compile(text, name, "exec"), loaded.__dict__)
    return loaded


def case(seed: int, n: int = 400, positives: int = 25, ties: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels and qualities."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, generator=generator, dtype=torch.float64)
    if ties:
        logits = (2 * logits).round() / 2
    labels = torch.zeros(n, dtype=torch.int64)
    labels[torch.randperm(n, generator=generator)[:positives]] = 1
    return logits, labels, 0.01 + 0.99 * torch.rand(n, generator=generator, dtype=torch.float64)


def compare() -> Iterator[Comparison]:
    """Every loss of both repositories that runs on the CPU, value and gradient, in float64."""
    torch.set_default_dtype(torch.float64)  # the published code makes its buffers in the default type
    try:
        for repository in REPOSITORIES:
            loaded = module(repository)
            if loaded is None:
                print(f"skipped: {repository} cannot be cloned; a network or ORACLES_CLONES is needed")
                continue
            yield from _compare_module(repository, loaded)
    finally:
        torch.set_default_dtype(torch.float32)


def _compare_module(repository: str, loaded: types.ModuleType) -> Iterator[Comparison]:
    def targets(labels: Tensor, quality: Tensor) -> Tensor:
        return torch.where(labels == 1, quality, 0.0)

    pairs: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
        "RankSort": (
            lambda x, y, q: sum(loaded.RankSort.apply(x, targets(y, q))[:1]),
            lambda x, y, q: sum(F.rank_sort_loss(x, y, q)),
        ),
        "APLoss": (
            lambda x, y, q: loaded.APLoss.apply(x, y.double()),
            lambda x, y, q: F.ap_loss(x, y, interpolated=True),
        ),
        "aLRPLoss": (
            lambda x, y, q: loaded.aLRPLoss.apply(x, y.double(), 1 - q[y == 1])[0],
            lambda x, y, q: F.alrp_loss(x, y, 1 - q[y == 1]).classification,
        ),
        "BucketedRankSort": (
            lambda x, y, q: sum(loaded.BucketedRankSort.apply(x, targets(y, q))[:1]),
            lambda x, y, q: sum(F.rank_sort_loss(x, y, q, method="bucketed")),
        ),
        "BucketedAPLoss": (
            lambda x, y, q: loaded.BucketedAPLoss.apply(x, y.double()),
            lambda x, y, q: F.ap_loss(x, y, method="bucketed"),
        ),
    }
    for name, (theirs, ours) in pairs.items():
        if not hasattr(loaded, name):
            continue
        gradients = []
        for seed in range(20):
            logits, labels, quality = case(seed)
            leaves = [logits.clone().requires_grad_() for _ in range(2)]
            for function, leaf in zip((ours, theirs), leaves, strict=True):
                function(leaf, labels, quality).backward()
            gradients.append((leaves[0].grad, leaves[1].grad))
        yield Comparison(f"{name}: gradient", repository, len(gradients), largest(gradients), "relative", 1e-6)
