"""Order and random draws depend on (seed, epoch, index) only, not on the number of workers and processes."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from concordet.data.registry import dataset_class
from concordet.engine.config import DataConfig
from concordet.engine.data import DetectionData, EpochSampler, build_dataset, eval_loader
from concordet.engine.seeding import mix, seeded
from concordet.errors import UsageError

from ..trained import tiny


@given(st.integers(1, 60), st.integers(1, 5), st.integers(0, 3), st.integers(0, 9))
def test_the_shares_of_all_processes_are_every_image(length, world, seed, epoch):
    samplers = [EpochSampler(length, seed=seed, rank=rank, world=world) for rank in range(world)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    shares = [list(sampler) for sampler in samplers]
    assert {len(share) for share in shares} == {len(samplers[0])}
    together = [place for row in zip(*shares, strict=True) for place in row]
    assert sorted(index for _, index in together[:length]) == list(range(length))
    assert {e for e, _ in together} == {epoch}
    # one process has the same order
    alone = EpochSampler(length, seed=seed)
    alone.set_epoch(epoch)
    assert list(alone) == together[:length]


def test_each_epoch_has_its_order_and_a_resumed_run_starts_with_its_own():
    sampler = EpochSampler(50, seed=1)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    resumed = EpochSampler(50, seed=1, first=1)
    resumed.set_epoch(0)  # what the trainer says before it knows better
    assert list(resumed) == list(sampler)


@given(st.lists(st.tuples(st.integers(0, 2**32), st.integers(0, 1000), st.integers(0, 1000)), min_size=2, unique=True))
def test_different_places_have_different_seeds(places):
    assert len({mix(*place) for place in places}) == len(places)


def draws():
    return random.random(), np.random.rand(), torch.rand(2).tolist()  # noqa: NPY002


def test_seeded_draws_repeat_and_leave_no_trace():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with seeded(1, 2):
        first = draws()
    assert torch.equal(torch.get_rng_state(), before)
    draws()
    with seeded(1, 2):
        assert draws() == first
    with seeded(2, 1):
        assert draws() != first


def batches(workers, epoch=0):
    config = tiny(data_workers=workers).data
    data = DetectionData(config, build_dataset(config, "train", augment=True), None, seed=4, first_epoch=epoch)
    return list(data.train_dataloader())


def test_augmented_batches_do_not_depend_on_workers_or_on_what_ran_before():
    alone = batches(0, epoch=3)
    torch.rand(7)
    with_workers = batches(2, epoch=3)
    assert len(alone) == len(with_workers) == 3
    for (images, targets), (other_images, other_targets) in zip(alone, with_workers, strict=True):
        for image, other in zip(images, other_images, strict=True):
            assert torch.equal(image, other)
        for target, other in zip(targets, other_targets, strict=True):
            assert torch.equal(target["boxes"], other["boxes"])
    assert not torch.equal(alone[0][0][0], batches(0, epoch=2)[0][0][0])


def test_evaluation_goes_through_all_images_in_order():
    dataset = build_dataset(tiny().data, "val")
    ids = [t["image_id"] for _, targets in eval_loader(dataset, batch_size=4, workers=0) for t in targets]
    assert ids == list(range(6))


def test_parts_have_their_defaults():
    assert dataset_class("voc").default_splits["train"] == "trainval"
    assert dataset_class("coco").default_splits["val"] == "val2017"
    assert build_dataset(DataConfig(name="digits", val_options={"length": 3}), "val").split == "val"


def test_digits_are_never_mirrored():
    config = tiny(data_augment="flip").data
    augmented = build_dataset(config, "train", augment=True)
    plain = build_dataset(config, "train")
    assert torch.equal(augmented[0][0], plain[0][0])


def test_unknown_data_is_refused():
    with pytest.raises(UsageError, match=r"data\.name must be one of .*, got digit; did you mean digits\?"):
        build_dataset(DataConfig(name="digit"), "train")
    with pytest.raises(ValueError, match="has no option color"):
        build_dataset(DataConfig(name="digits", train_options={"color": 1}), "train")
    with pytest.raises(UsageError, match=r"the data must be named, got none; give its folder .*--data\.name digits"):
        build_dataset(DataConfig(), "train")
