"""How many processes a run has, how they share its batches, and what is said when one of them is lost."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch

from concordet.engine.config import TrainConfig
from concordet.errors import UsageError

LOST = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
"""What messages of torch.distributed have in them where it raises plain RuntimeErrors."""


def is_main_process() -> bool:
    """Whether this is the process that writes files, before any process group exists, under the usual launchers."""
    names = ("RANK",) if "RANK" in os.environ else ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
    return all(int(os.environ.get(name, 0)) == 0 for name in names)


def nodes(config: TrainConfig) -> int:
    """Machines; torchrun knows their number."""
    return int(os.environ.get("GROUP_WORLD_SIZE", config.nodes))


def devices(config: TrainConfig) -> int | str:
    """Processes on this machine; on a CPU "auto" is one.

    Raises:
        UsageError: neither a number from 1 nor "auto".
    """
    if config.devices != "auto":
        if not config.devices.isdigit() or int(config.devices) < 1:
            raise UsageError(f"devices is a number of processes from 1 or auto, not {config.devices}")
        return int(config.devices)
    if "WORLD_SIZE" in os.environ:
        return int(os.environ.get("LOCAL_WORLD_SIZE", int(os.environ["WORLD_SIZE"]) // nodes(config)))
    if config.accelerator == "cpu" or not torch.cuda.is_available():
        return 1
    return "auto"


def n_processes(config: TrainConfig) -> int:
    """Processes on all machines together."""
    if "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    here = devices(config)
    return (here if isinstance(here, int) else torch.cuda.device_count()) * nodes(config)


def strategy(config: TrainConfig) -> Any:
    """Lightning's strategy: DDP where there are several processes."""
    if n_processes(config) == 1:
        return "auto"
    from lightning.pytorch.strategies import DDPStrategy

    return DDPStrategy(timeout=timedelta(seconds=config.timeout))


def images_per_update(config: TrainConfig) -> int:
    """Images of all processes and of all batches that are added up.

    Example:
        >>> from concordet.engine.config import DataConfig, OptimConfig
        >>> images_per_update(TrainConfig(data=DataConfig(batch_size=4), optim=OptimConfig(accumulate=3), devices="2"))
        24
    """
    return config.data.batch_size * config.optim.accumulate * n_processes(config)


def with_updates_of(config: TrainConfig, images: int) -> TrainConfig:
    """The configuration in which these processes together make updates of so many images, in as few batches as fit.

    A batch of a process has at most ``data.batch_size`` images; ``optim.accumulate`` is what it has to be then.

    Raises:
        ValueError: the processes cannot share the images evenly.

    Example:
        >>> from concordet.engine.config import DataConfig
        >>> config = with_updates_of(TrainConfig(data=DataConfig(batch_size=4), devices="2"), 24)
        >>> config.data.batch_size, config.optim.accumulate
        (4, 3)
    """
    if images == images_per_update(config):
        return config
    own, left = divmod(images, n_processes(config))
    if left:
        raise ValueError(
            f"the run makes updates of {images} images, which {n_processes(config)} processes cannot share evenly; "
            f"continue it on a number of processes that divides {images}"
        )
    batch = max(size for size in range(1, min(own, config.data.batch_size) + 1) if own % size == 0)
    return replace(
        config,
        data=replace(config.data, batch_size=batch),
        optim=replace(config.optim, accumulate=own // batch),
    )


def another_was_lost(error: BaseException) -> bool:
    """Whether this process failed because another one is gone, or has not answered in time.

    Example:
        >>> another_was_lost(RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"))
        True
    """
    if isinstance(error, getattr(torch.distributed, "DistError", ())):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in LOST)
