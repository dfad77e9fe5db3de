"""Digit scenes: the same everywhere, tight boxes, disjoint splits."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from concordet.data import DigitScenes, collate
from concordet.data.digits.scenes import Draws, draw_scene, handwritten_digits, split_digits


def checksum(dataset, count):
    digest = hashlib.sha256()
    for index in range(count):
        scene = dataset.scene(index)
        for part in (scene.image, scene.boxes, scene.digits):
            digest.update(np.ascontiguousarray(part).astype(part.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()[:16]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"split": "train"}, "4f11efad16c1fd2f"),
        ({"split": "val", "seed": 3}, "1e936c5b71095431"),
        ({"split": "train", "size": 192, "classes": "175"}, "29dc8e25b4d9ccf5"),
    ],
)
def test_scenes_are_the_same_on_every_machine(options, expected):
    assert checksum(DigitScenes(length=20, **options), 20) == expected


def test_scene_does_not_depend_on_order_length_or_other_scenes():
    forwards, backwards = DigitScenes(length=6), DigitScenes(length=9)
    later = [backwards.scene(i).image for i in reversed(range(6))][::-1]
    for index in range(6):
        np.testing.assert_array_equal(forwards.scene(index).image, later[index])


def test_other_seeds_and_splits_have_other_scenes():
    images = [DigitScenes(split, seed=seed).scene(0).image for split in ("train", "val") for seed in (0, 1)]
    assert len({image.tobytes() for image in images}) == 4


def test_splits_share_no_digit_image_and_hold_every_numeral():
    _, numerals = handwritten_digits()
    train, val = (np.concatenate(split_digits()[split]) for split in ("train", "val"))
    assert sorted([*train, *val]) == list(range(1797))
    share = np.bincount(numerals[val]) / np.bincount(numerals)
    assert (abs(share - 0.25) < 0.01).all()
    for split, own in (("train", train), ("val", val)):
        used = np.concatenate([DigitScenes(split, length=60).scene(i).sources for i in range(60)])
        assert np.isin(used, own).all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.sampled_from([48, 96, 128, 160]))
def test_boxes_are_tight_around_visible_enough_ink(seed, size):
    scene = draw_scene(Draws(seed, 0, 0), split_digits()["val"], size)
    assert scene.image.shape == (3, size, size)
    assert len(scene.boxes) == len(scene.digits) == len(scene.ink) == len(scene.sources)
    for box, ink in zip(scene.boxes, scene.ink, strict=True):
        ys, xs = np.nonzero(ink)
        np.testing.assert_array_equal(box, [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        assert box[0] >= 0
        assert box[1] >= 0
        assert box[2:].max() <= size


def test_ink_differs_from_what_is_around_it():
    """A drawn digit changes the picture where its ink is: without the object the scene is another one."""
    dataset = DigitScenes(length=50)
    contrasts = []
    for index in range(50):
        scene = dataset.scene(index)
        for box, ink in zip(scene.boxes.astype(int), scene.ink, strict=True):
            region = (slice(None), slice(box[1], box[3]), slice(box[0], box[2]))
            inside = ink[region[1:]]
            colors = scene.image[region].astype(float)
            contrasts.append(abs(colors[:, inside].mean(1) - colors[:, ~inside].mean(1)).max())
    assert np.median(contrasts) > 40


def test_spread_of_sizes_counts_and_classes():
    dataset = DigitScenes(length=600)
    truth = dataset.ground_truth()
    heights = np.array([a["bbox"][3] for a in truth["annotations"]])
    assert np.percentile(heights, 5) < 20
    assert np.percentile(heights, 95) > 48
    counts = np.bincount([a["category_id"] for a in truth["annotations"]], minlength=11)[1:]
    assert counts.min() > 0.7 * counts.mean()
    summary = dataset.summary()
    assert summary["images"] == 600
    assert summary["objects"] == len(truth["annotations"])
    assert 0.005 < summary["images_without_objects"] / 600 < 0.06


def test_ground_truth_agrees_with_targets():
    dataset = DigitScenes("val", length=12, masks=True, classes=["7", "2"])
    truth = dataset.ground_truth()
    assert [c["name"] for c in truth["categories"]] == ["7", "2"]
    for index in range(12):
        image, target = dataset[index]
        own = [a for a in truth["annotations"] if a["image_id"] == target["image_id"]]
        boxes = target["boxes"].clone()
        boxes[:, 2:] -= boxes[:, :2]
        torch.testing.assert_close(boxes, torch.tensor([a["bbox"] for a in own]).reshape(-1, 4))
        assert target["labels"].tolist() == [a["category_id"] for a in own]
        assert target["masks"].shape == (len(own), 128, 128)
        assert target["masks"].dtype == torch.uint8
        assert target["masks"].sum((1, 2)).tolist() == [a["area"] for a in own]
        assert image.dtype == torch.float32
        assert 0 <= image.min() <= image.max() <= 1
        assert type(target["boxes"]) is torch.Tensor
        assert target["ignored_boxes"].shape == (0, 4)
        np.testing.assert_array_equal(np.asarray(dataset.load_image(index)), (image * 255).permute(1, 2, 0).round())


def test_workers_and_cache_change_nothing():
    plain = DigitScenes(length=8)
    cached = pickle.loads(pickle.dumps(DigitScenes(length=8, cache=True)))
    loader = DataLoader(cached, batch_size=4, num_workers=2, collate_fn=collate)
    images = [image for batch, _ in loader for image in batch]
    for index in range(8):
        assert torch.equal(plain[index][0], images[index])
        assert torch.equal(cached[index][0], cached[index][0])


def test_changing_a_sample_does_not_change_the_cache():
    dataset = DigitScenes(length=2, cache=True, transforms=lambda image, target: (image, target))
    image, target = dataset[0]
    first = image.clone()
    image.zero_()
    target["boxes"].zero_()
    assert torch.equal(dataset[0][0], first)
    assert dataset[0][1]["boxes"].abs().sum() > 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"split": "test"}, "split must be 'train' or 'val' for digit scenes, got 'test'"),
        ({"classes": ["1", "x"]}, "different numerals"),
        ({"classes": ["1", "1"]}, "different numerals"),
        ({"classes": []}, "different numerals"),
        ({"size": 32}, "size must be from 48 to 4096 pixels"),
        ({"length": 0}, "length must be from 1 to .*, got 0"),
        ({"seed": -1}, "seed must be from 0 to .*, got -1"),
    ],
)
def test_refused_options(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        DigitScenes(**options)


def test_index_out_of_range():
    dataset = DigitScenes(length=3)
    with pytest.raises(IndexError, match="3 images"):
        dataset[3]
    assert torch.equal(dataset[-1][0], dataset[2][0])
