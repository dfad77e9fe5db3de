"""The data of a run: data sets from the configuration, and loaders whose order depends on seed and epoch only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from concordet.data.targets import DetectionDataset, Transforms
from concordet.engine.config import DataConfig, TrainConfig
from concordet.engine.seeding import mix, seeded
from concordet.errors import UsageError, unknown

Split = Literal["train", "val"]


def build_dataset(config: DataConfig, split: Split, *, augment: bool = False, masks: bool = False) -> Any:
    """The training or evaluation data of a run.

    Args:
        config: Name, path and options of the data set.
        split: "train" or "val".
        augment: Whether to apply the training augmentations of ``config``.
        masks: Default of the data set's option ``masks``.

    Raises:
        ValueError: it is missing, invalid or empty, or lacks the masks that are needed.
    """
    options = dict(config.train_options if split == "train" else config.val_options)
    for option in ("split", "annotations", "images"):
        value = getattr(config, f"{split}_{option}")
        if value is not None:
            options[option] = value
    if masks:
        options.setdefault("masks", True)
    if config.classes is not None:
        options.setdefault("classes", config.classes)
    if config.allow_outside:
        options.setdefault("allow_outside", True)
    dataset = _open_named(config, split, options) if config.path is None else _open_path(config, split, options)
    if len(dataset) == 0:
        where = options.get("annotations") or config.path or config.root or config.name
        raise ValueError(f"the {split} split of {where} has no images; name another split, folder or annotation file")
    dataset.transforms = transforms_of(config, dataset.default_flip if augment else None)
    return dataset


def check_named(config: DataConfig) -> None:
    """Raises a UsageError where neither a path nor a known name says what the data is."""
    from concordet.data import list_datasets

    if config.path is None and config.name is None:
        raise UsageError(
            "the data must be named, got none; give its folder or annotation file, such as `concordet train photos "
            "--out runs/first`, or --data.name digits for digit scenes that need no download"
        )
    if config.name is not None and config.name not in list_datasets():
        raise UsageError(unknown("data.name", config.name, list_datasets()))


def _open_named(config: DataConfig, split: Split, options: dict[str, Any]) -> Any:
    """A split of the data set that ``config`` names."""
    from concordet.data import load_dataset
    from concordet.data.registry import dataset_class

    check_named(config)
    assert config.name is not None
    if config.root is not None:
        options["root"] = config.root
    if "split" not in options and "annotations" not in options:
        options["split"] = dataset_class(config.name).default_splits[split]
    return load_dataset(config.name, **options)


def _open_path(config: DataConfig, split: Split, options: dict[str, Any]) -> Any:
    """A split of the data set whose format is recognized from the path in ``config``."""
    from concordet.data import detect_format

    for option in ("annotations", "images"):
        if option in options:
            raise UsageError(
                f"data.{split}_{option} belongs to a data set by name, got it with the path {config.path}; "
                "leave one out"
            )
    if config.root is not None:
        raise UsageError(f"data.root belongs to a data set by name, got it with the path {config.path}; leave one out")
    source = detect_format(config.path or "", config.name, allow_outside=config.allow_outside)
    chosen = options.pop("split", split)
    dataset = source.open(chosen, val_fraction=config.val_fraction, val_seed=config.val_seed, **options)
    dataset.origin = source.layout.description
    return dataset


class DetectionSubset(DetectionDataset):
    """A subset of the images of a data set.

    Args:
        base: Data set.
        indices: Indices of the images, in order.
        transforms: Transforms of these images; those of ``base`` by default.
    """

    def __init__(self, base: DetectionDataset, indices: Sequence[int], transforms: Any = None) -> None:
        self.base: DetectionDataset
        self.indices: list[int]
        self.base, self.indices = base, list(indices)
        self.class_names: list[str]
        self.category_ids: list[int]
        self.class_names, self.category_ids = base.class_names, base.category_ids
        self.default_flip: str
        self.origin: str | None
        self.default_flip, self.origin = base.default_flip, base.origin
        self.transforms: Transforms | None = transforms or base.transforms

    def __len__(self) -> int:
        return len(self.indices)

    def sample(self, index: int) -> Any:
        return self.base.sample(self.indices[index])

    def load_image(self, index: int) -> Any:
        return self.base.load_image(self.indices[index])

    def image_path(self, index: int) -> Path | None:
        return self.base.image_path(self.indices[index])

    def ground_truth(self) -> dict[str, Any]:
        truth = self.base.ground_truth()
        images = [truth["images"][index] for index in self.indices]
        ids = {image["id"] for image in images}
        return truth | {
            "images": images,
            "annotations": [annotation for annotation in truth["annotations"] if annotation["image_id"] in ids],
        }

    def summary(self) -> dict[str, int]:
        truth = self.ground_truth()
        objects = [annotation for annotation in truth["annotations"] if not annotation.get("iscrowd")]
        with_objects = {annotation["image_id"] for annotation in objects}
        return {
            "images": len(self),
            "objects": len(objects),
            "images_without_objects": len(self) - len(with_objects),
            "classes": len(self.class_names),
        }


def hold_out_for_calibration(train: DetectionDataset, config: TrainConfig) -> tuple[DetectionDataset, Any]:
    """The images to train on, and those to fit the calibrator on (None if the fraction is 0).

    The choice depends on the seed and the names of the images only.

    Raises:
        ValueError: there are too few images.
    """
    from concordet.data.splits import HoldOut

    fraction, seed = config.calibration.fraction, config.calibration.seed
    if fraction == 0:
        return train, None
    names = [image["file_name"] for image in train.ground_truth()["images"]]
    rest, chosen = (HoldOut(split, fraction, seed).indices(names) for split in ("train", "val"))
    return DetectionSubset(train, rest), DetectionSubset(train, chosen, transforms_of(config.data, None))


def describe_source(config: DataConfig, splits: dict[str, Any]) -> dict[str, Any] | None:
    """Description of data that was opened by its path, with the held-out images; None for data opened by name.

    Args:
        config: Data of the run.
        splits: Data sets by split.
    """
    from concordet.data.detect import count_sentence

    if config.path is None:
        return None
    described: dict[str, Any] = {"path": config.path, "description": count_sentence(splits["train"].origin, splits)}
    held_out = getattr(splits.get("val"), "held_out", None)
    if held_out is not None:
        images = [image["file_name"] for image in splits["val"].ground_truth()["images"]]
        described["held_out"] = {"fraction": held_out.fraction, "seed": held_out.seed, "images": images}
    return described


def transforms_of(config: DataConfig, flip: str | None) -> Any:
    """The training transforms that ``config`` names, or those of evaluation if ``flip`` is None."""
    from concordet.data import eval_transforms, train_transforms

    if flip is None or config.augment == "none":
        return eval_transforms()
    if config.augment == "jitter":
        return train_transforms(flip=flip, scale_jitter=(0.8, 1.25))
    if config.augment == "ssd":
        return train_transforms(flip=flip, photometric=True, zoom_out=0.5, iou_crop=True)
    return train_transforms(flip=flip)


class EpochSampler(Sampler[tuple[int, int]]):
    """Pairs (epoch, image index) of one process, which depend on seed and epoch only.

    All processes share one permutation, of which each takes every ``world``-th index, so that an update has the same
    images with any number of processes.

    Args:
        length: Number of images.
        seed: Seed of the order.
        rank: Rank of this process.
        world: Number of processes.
        shuffle: Whether to draw a random order; otherwise it is that of the data set.
        first: Epoch that a resumed run starts with: the trainer creates its iterator before it knows the epoch.
        skip: Number of images of this process in that epoch that the run has already processed.
        update: Number of images of one update; a remainder at the end of an epoch is left out. If it is None, or there
            are fewer images than that, images are repeated from the start of the order, so that every process makes
            the same number of steps.
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
        skip: int = 0,
        update: int | None = None,
    ) -> None:
        self.skip = skip
        self.length: int
        self.seed: int
        self.rank: int
        self.world: int
        self.shuffle: bool
        self.length, self.seed, self.rank, self.world, self.shuffle = length, seed, rank, world, shuffle
        self.first: int = first
        self.epoch: int = first
        self.total: int = length // update * update if update and length >= update else -(-length // world) * world

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
        own = order[self.rank :: self.world][self.skip if self.epoch == self.first else 0 :]
        return iter([(self.epoch, index) for index in own])


class SeededDataset(Dataset[Any]):
    """A data set indexed by (epoch, index), whose random draws depend on (seed, epoch, index) only."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset: Any
        self.seed: int
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, index = key
        with seeded(self.seed, epoch, index):
            return self.dataset[index]


def eval_loader(dataset: Any, *, batch_size: int, workers: int, rank: int = 0, world: int = 1) -> DataLoader[Any]:
    """A loader in the order of the data set; several processes share the images, some of which are repeated."""
    from concordet.data import collate

    return DataLoader(
        SeededDataset(dataset, 0),
        batch_size=batch_size,
        sampler=EpochSampler(len(dataset), seed=0, rank=rank, world=world, shuffle=False),
        num_workers=workers,
        collate_fn=collate,
    )


class DetectionData(pl.LightningDataModule):
    """Loaders of a run's training and evaluation data, which are opened beforehand so that errors come early.

    Args:
        config: Batch size and workers.
        train: Training data.
        val: Evaluation data, or None.
        seed: Seed of order and augmentation.
        first_epoch: Epoch that training starts with; above 0 for a resumed run.
        first_update: Update of that epoch that training starts with; above 0 for a run resumed within an epoch.
        accumulate: Batches of a process per update.

    Example:
        >>> from concordet.data import load_dataset, train_transforms
        >>> from concordet.engine import DataConfig
        >>> scenes = load_dataset("digits", length=8, size=64, transforms=train_transforms(flip="none"))
        >>> data = DetectionData(DataConfig(batch_size=4, workers=0), scenes, None, seed=0)
        >>> images, targets = next(iter(data.train_dataloader()))
        >>> len(images), sorted(targets[0])
        (4, ['boxes', 'ignored_boxes', 'image_id', 'labels', 'scale'])
    """

    def __init__(
        self,
        config: DataConfig,
        train: Any,
        val: Any | None,
        *,
        seed: int,
        first_epoch: int = 0,
        first_update: int = 0,
        accumulate: int = 1,
    ) -> None:
        super().__init__()
        self.config: DataConfig
        self.train: Any
        self.val: Any | None
        self.seed: int
        self.first_epoch: int
        self.config, self.train, self.val, self.seed, self.first_epoch = config, train, val, seed, first_epoch
        self.first_update: int
        self.accumulate: int
        self.first_update, self.accumulate = first_update, accumulate

    def _rank_and_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches in a new order every epoch; an incomplete last update is left out unless it is the only one."""
        from concordet.data import collate

        rank, world = self._rank_and_world()
        own = self.config.batch_size * self.accumulate
        sampler = EpochSampler(
            len(self.train),
            seed=self.seed,
            rank=rank,
            world=world,
            first=self.first_epoch,
            skip=self.first_update * own,
            update=own * world,
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
        """The evaluation data, in its own order."""
        if self.val is None:
            return []
        rank, world = self._rank_and_world()
        size, workers = self.config.batch_size, self.config.workers
        return eval_loader(self.val, batch_size=size, workers=workers, rank=rank, world=world)
