"""The processes of a run, the role of this one, and their shares of an update's images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch

from concordet.engine.config import TrainConfig
from concordet.errors import UsageError

LOST_CONNECTION = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
"""Parts of torch.distributed's messages in plain RuntimeErrors."""


@dataclass(frozen=True)
class Launch:
    """The processes of a run, computed once from its configuration and the launcher's environment.

    Attributes:
        nodes: Number of machines.
        devices: Number of processes on this machine.
        processes: Number of processes on all machines.
        is_main: Whether this process writes files; known before a process group exists.
        timeout: Seconds that processes wait for one another.
    """

    nodes: int
    devices: int
    processes: int
    is_main: bool
    timeout: int

    @classmethod
    def of(cls, config: TrainConfig, environment: Mapping[str, str] | None = None) -> Launch:
        """The processes of a run under torchrun, Slurm, Lightning's own launcher or none.

        Args:
            config: ``devices``, ``nodes``, ``accelerator`` and ``timeout`` are read.
            environment: Environment variables set by the launcher; those of this process by default.

        Raises:
            UsageError: ``devices`` is neither a number from 1 nor "auto".

        Example:
            >>> Launch.of(TrainConfig(devices="2", nodes=3), {"RANK": "4"})
            Launch(nodes=3, devices=2, processes=6, is_main=False, timeout=1800)
        """
        variables = os.environ if environment is None else environment
        nodes = int(variables.get("GROUP_WORLD_SIZE", config.nodes))
        world = int(variables["WORLD_SIZE"]) if "WORLD_SIZE" in variables else None
        if config.devices != "auto":
            if not config.devices.isdigit() or int(config.devices) < 1:
                raise UsageError(
                    f"devices must be auto or a number of processes from 1, got {config.devices}; give one of them"
                )
            devices = int(config.devices)
        elif world is not None:
            devices = int(variables.get("LOCAL_WORLD_SIZE", world // nodes))
        else:
            devices = 1 if config.accelerator == "cpu" else max(1, torch.cuda.device_count())
        ranks = ("RANK",) if "RANK" in variables else ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
        return cls(
            nodes=nodes,
            devices=devices,
            processes=devices * nodes if world is None else world,
            is_main=all(int(variables.get(rank, 0)) == 0 for rank in ranks),
            timeout=config.timeout,
        )

    def strategy(self) -> Any:
        """Lightning's strategy: DDP if there are several processes."""
        if self.processes == 1:
            return "auto"
        from lightning.pytorch.strategies import DDPStrategy

        return DDPStrategy(timeout=timedelta(seconds=self.timeout))

    def images_per_update(self, config: TrainConfig) -> int:
        """Number of images per update, over all processes and accumulated batches.

        Example:
            >>> from concordet.engine.config import DataConfig, OptimConfig
            >>> config = TrainConfig(data=DataConfig(batch_size=4), optim=OptimConfig(accumulate=3), devices="2")
            >>> Launch.of(config, {}).images_per_update(config)
            24
        """
        return config.data.batch_size * config.optim.accumulate * self.processes

    def with_images_per_update(self, config: TrainConfig, images: int) -> TrainConfig:
        """The configuration with which these processes make updates of ``images`` images.

        A batch of a process has at most ``data.batch_size`` images; ``optim.accumulate`` follows.

        Raises:
            ValueError: the processes cannot share the images evenly.

        Example:
            >>> from concordet.engine.config import DataConfig
            >>> config = TrainConfig(data=DataConfig(batch_size=4), devices="2")
            >>> config = Launch.of(config, {}).with_images_per_update(config, 24)
            >>> config.data.batch_size, config.optim.accumulate
            (4, 3)
        """
        if images == self.images_per_update(config):
            return config
        own, remainder = divmod(images, self.processes)
        if remainder:
            raise ValueError(
                f"the number of processes must divide the {images} images of an update, got {self.processes}; "
                f"continue the run on a number of processes that divides {images}"
            )
        batch = max(size for size in range(1, min(own, config.data.batch_size) + 1) if own % size == 0)
        return replace(
            config,
            data=replace(config.data, batch_size=batch),
            optim=replace(config.optim, accumulate=own // batch),
        )


def another_was_lost(error: BaseException) -> bool:
    """Whether this process failed because another one has ended or did not respond in time.

    Example:
        >>> another_was_lost(RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"))
        True
    """
    if isinstance(error, getattr(torch.distributed, "DistError", ())):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in LOST_CONNECTION)
