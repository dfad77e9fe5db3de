"""The images of a run: data sets by configuration, and loaders whose order depends on the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from concordet.engine.config import DataConfig
from concordet.engine.seeding import mix, seeded
from concordet.errors import UsageError, unknown

Part = Literal["train", "val"]


def build_dataset(config: DataConfig, part: Part, *, augment: bool = False, masks: bool = False) -> Any:
    """The training or the evaluated part of a data set.

    Args:
        config: Which data set, and where.
        part: "train" or "val".
        augment: With the training augmentations of ``config``.
        masks: With instance masks, unless ``config`` says otherwise.

    Raises:
        ValueError: it is missing, broken or empty, or has no masks where they are asked for.
    """
    from concordet.data import list_datasets, load_dataset

    options = dict(config.train_options if part == "train" else config.val_options)
    for option in ("split", "annotations", "images"):
        value = getattr(config, f"{part}_{option}")
        if value is not None:
            options[option] = value
    if config.root is not None:
        options["root"] = config.root
    if masks:
        options.setdefault("masks", True)
    if config.name not in list_datasets():
        raise UsageError(unknown("data.name", config.name, list_datasets()))
    if "split" not in options and "annotations" not in options:
        options["split"] = default_split(config.name, part)
    dataset = load_dataset(config.name, **options)
    if len(dataset) == 0:
        where = options.get("annotations") or options.get("root") or config.name
        raise ValueError(f"the {part} part of {where} has no images; name another split, folder or annotation file")
    dataset.transforms = transforms_of(config, dataset.default_flip if augment else None)
    return dataset


def transforms_of(config: DataConfig, flip: str | None) -> Any:
    """Training transforms by the name in ``config``, or evaluation's where ``flip`` is None."""
    from concordet.data import eval_transforms, train_transforms

    if flip is None or config.augment == "none":
        return eval_transforms()
    if config.augment == "jitter":
        return train_transforms(flip=flip, scale_jitter=(0.8, 1.25))
    if config.augment == "ssd":
        return train_transforms(flip=flip, photometric=True, zoom_out=0.5, iou_crop=True)
    return train_transforms(flip=flip)


def default_split(name: str, part: Part) -> str:
    """The part of a data set that trains, or that is evaluated, where the user names none."""
    if name == "voc":
        return {"train": "trainval", "val": "test"}[part]
    if name == "coco":
        return {"train": "train2017", "val": "val2017"}[part]
    return part


class EpochSampler(Sampler[tuple[int, int]]):
    """Pairs (epoch, image index) of one process, the same for the same seed and epoch whatever ran before.

    A resumed run starts at ``first``: the trainer makes its iterator before it knows the epoch.
    The order of all processes together is one permutation; each takes every ``world``-th place of it, so that an update
    of all processes sees the same images however many they are.  With ``update``, the images of one update, what does
    not fill one at the end of an epoch is left out.  Without, or where there are fewer images than that, the order is
    filled up from its start, so that every process makes as many steps.
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
        shuffle: bool = True,
        first: int = 0,
        update: int | None = None,
    ) -> None:
        self.length, self.seed, self.rank, self.world, self.shuffle = length, seed, rank, world, shuffle
        self.first = self.epoch = first
        self.total = length // update * update if update and length >= update else -(-length // world) * world

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before every epoch, with its number from 0."""
        self.epoch = max(epoch, self.first)

    def __len__(self) -> int:
        return self.total // self.world

    def __iter__(self) -> Iterator[tuple[int, int]]:
        if self.shuffle:
            generator = torch.Generator().manual_seed(mix(self.seed, self.epoch))
            order = torch.randperm(self.length, generator=generator).tolist()
        else:
            order = list(range(self.length))
        order = (order * (-(-self.total // self.length)))[: self.total]
        return iter([(self.epoch, index) for index in order[self.rank :: self.world]])


class SeededDataset(Dataset[Any]):
    """A data set read by (epoch, index), with every random draw a function of (seed, epoch, index)."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: tuple[int, int]) -> Any:
        epoch, index = place
        with seeded(self.seed, epoch, index):
            return self.dataset[index]


def eval_loader(dataset: Any, *, batch_size: int, workers: int, rank: int = 0, world: int = 1) -> DataLoader[Any]:
    """A loader in the data set's own order; with several processes each has its share, some images twice."""
    from concordet.data import collate

    return DataLoader(
        SeededDataset(dataset, 0),
        batch_size=batch_size,
        sampler=EpochSampler(len(dataset), seed=0, rank=rank, world=world, shuffle=False),
        num_workers=workers,
        collate_fn=collate,
    )


class DetectionData(pl.LightningDataModule):
    """Loaders of a run's two parts; the data sets are made by whoever makes this, so that errors come early.

    Args:
        config: batch size, workers.
        train: the training part.
        val: the evaluated part, or None.
        seed: of order and augmentation.
        first_epoch: the epoch that training starts with, above 0 for a resumed run.
        accumulate: batches of a process in one update.
    """

    def __init__(
        self,
        config: DataConfig,
        train: Any,
        val: Any | None,
        *,
        seed: int,
        first_epoch: int = 0,
        accumulate: int = 1,
    ) -> None:
        super().__init__()
        self.config, self.train, self.val, self.seed, self.first_epoch = config, train, val, seed, first_epoch
        self.accumulate = accumulate

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches in a new order every epoch; a last update that is not full is left out unless it is the only one."""
        from concordet.data import collate

        rank, world = self._place()
        update = self.config.batch_size * self.accumulate * world
        sampler = EpochSampler(
            len(self.train), seed=self.seed, rank=rank, world=world, first=self.first_epoch, update=update
        )
        return DataLoader(
            SeededDataset(self.train, self.seed),
            batch_size=self.config.batch_size,
            sampler=sampler,
            num_workers=self.config.workers,
            collate_fn=collate,
            persistent_workers=self.config.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The evaluated part, in its own order."""
        if self.val is None:
            return []
        rank, world = self._place()
        size, workers = self.config.batch_size, self.config.workers
        return eval_loader(self.val, batch_size=size, workers=workers, rank=rank, world=world)
