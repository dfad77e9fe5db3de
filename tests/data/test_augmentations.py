"""Augmentations: boxes, labels, masks and ignored regions stay together."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors

from concordet.data import DigitScenes, collate, eval_transforms, train_transforms
from concordet.data.targets import make_target

SSD = {"photometric": True, "zoom_out": 0.5, "iou_crop": True}
RECIPES = [{}, {"flip": "both"}, {"flip": "none", "scale_jitter": (0.5, 2.0)}, SSD, SSD | {"scale_jitter": (0.7, 1.3)}]


def sample(objects=3, ignored=2, masks=True, seed=0, size=(60, 80)):
    """Rectangles whose mask fills the box, each painted in its own color; ignored regions have none."""
    random = torch.Generator().manual_seed(seed)
    height, width = size
    image = torch.zeros(3, *size, dtype=torch.uint8)
    boxes, fills = [], []
    for _ in range(objects + ignored):
        x, y = (
            int(torch.randint(width - 22, (1,), generator=random)),
            int(torch.randint(height - 22, (1,), generator=random)),
        )
        w, h = torch.randint(8, 22, (2,), generator=random).tolist()
        boxes.append([x, y, x + w, y + h])
        fill = torch.zeros(size, dtype=torch.uint8)
        fill[y : y + h, x : x + w] = 1
        fills.append(fill)
    every = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    target = make_target(
        every[:objects],
        torch.arange(1, objects + 1),
        every[objects:],
        image_id=5,
        size=size,
        masks=torch.stack(fills[:objects])
        if masks and objects
        else (torch.zeros(0, *size, dtype=torch.uint8) if masks else None),
    )
    for index, fill in enumerate(fills):
        image[:, fill.bool()] = 40 + 40 * index
    return tv_tensors.Image(image), target


@pytest.mark.parametrize("options", RECIPES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), objects=st.integers(0, 3), ignored=st.integers(0, 2))
def test_everything_stays_together(options, seed, objects, ignored):
    image, target = sample(objects, ignored, seed=seed)
    torch.manual_seed(seed)
    image, target = train_transforms(**options)(image, target)
    height, width = image.shape[1:]
    count = len(target["boxes"])
    assert type(image) is torch.Tensor
    assert image.dtype == torch.float32
    assert 0 <= image.min() <= image.max() <= 1
    assert target["labels"].shape == (count,)
    assert target["masks"].shape == (count, height, width)
    assert target["masks"].dtype == torch.uint8
    assert target["ignored_boxes"].shape[1:] == (4,)
    assert len(target["ignored_boxes"]) <= ignored
    assert target["image_id"] == 5
    assert set(target["labels"].tolist()) <= set(range(1, objects + 1))
    for boxes in (target["boxes"], target["ignored_boxes"]):
        assert type(boxes) is torch.Tensor
        assert (boxes[:, 2:] - boxes[:, :2] >= 1).all()
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([width, height, width, height])).all()
    for box, mask in zip(target["boxes"], target["masks"], strict=True):
        ys, xs = torch.nonzero(mask, as_tuple=True)
        if len(xs):
            tight = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            assert (tight - box).abs().max() <= 2


def test_flips_move_objects_and_ignored_regions_alike():
    image, target = sample(1, 1, masks=True, seed=3)
    flips = {"left-right": 0, "top-bottom": 0}
    transforms = train_transforms(flip="both")
    for seed in range(40):
        torch.manual_seed(seed)
        _, flipped = transforms(image, target)
        boxes = torch.cat([target["boxes"], target["ignored_boxes"]]).as_subclass(torch.Tensor)
        moved = torch.cat([flipped["boxes"], flipped["ignored_boxes"]])
        across, down = moved[0, 0] != boxes[0, 0], moved[0, 1] != boxes[0, 1]
        expected = boxes.clone()
        if across:
            expected[:, [0, 2]] = 80 - boxes[:, [2, 0]]
        if down:
            expected[:, [1, 3]] = 60 - boxes[:, [3, 1]]
        torch.testing.assert_close(moved, expected)
        flips["left-right"] += int(across)
        flips["top-bottom"] += int(down)
    assert all(8 < count < 32 for count in flips.values())


def test_no_flip_leaves_digits_readable():
    dataset = DigitScenes(length=2, transforms=train_transforms(flip=DigitScenes.default_flip))
    plain = DigitScenes(length=2)
    assert torch.equal(dataset[0][0], plain[0][0])
    assert torch.equal(dataset[0][1]["boxes"], plain[0][1]["boxes"])


def test_scale_jitter_scales_what_it_shows():
    image, target = sample(1, 0, masks=False, seed=1)
    before = (target["boxes"][:, 2:] - target["boxes"][:, :2]).as_subclass(torch.Tensor)
    torch.manual_seed(0)
    small, shrunk = train_transforms(flip="none", scale_jitter=(0.5, 0.5))(image, target)
    assert small.shape == (3, 60, 80)
    torch.testing.assert_close(shrunk["boxes"][:, 2:] - shrunk["boxes"][:, :2], before / 2)
    box = shrunk["boxes"][0].round().int().tolist()
    inside = small[:, box[1] + 1 : box[3] - 1, box[0] + 1 : box[2] - 1]
    torch.testing.assert_close(inside, torch.full_like(inside, 40 / 255), atol=0.02, rtol=0)


def test_sources_are_left_as_they_are():
    image, target = sample(2, 1)
    before = image.clone(), target["boxes"].clone(), target["masks"].clone()
    for options in RECIPES:
        train_transforms(**options)(image, target)
    assert set(target) == {"boxes", "labels", "image_id", "ignored_boxes", "scale", "masks"}
    for now, then in zip((image, target["boxes"], target["masks"]), before, strict=True):
        assert torch.equal(now, then)


def test_same_seed_same_augmentation():
    image, target = sample()
    transforms = pickle.loads(pickle.dumps(train_transforms(**SSD)))
    results = []
    for _ in range(2):
        torch.manual_seed(11)
        results.append(transforms(image, target))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1]["boxes"], results[1][1]["boxes"])


def test_evaluation_changes_nothing_but_the_range():
    image, target = sample()
    plain, result = eval_transforms()(image, target)
    torch.testing.assert_close(plain, image.as_subclass(torch.Tensor) / 255)
    assert torch.equal(result["boxes"], target["boxes"].as_subclass(torch.Tensor))
    images, targets = collate([(plain, result), (plain, result)])
    assert len(images) == len(targets) == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"flip": "vertical"}, "flip must be 'none', 'horizontal' or 'both', got 'vertical'"),
        ({"zoom_out": 2}, "zoom_out must be a probability"),
        ({"scale_jitter": (1.2, 0.8)}, "scale_jitter must be two factors"),
        ({"min_size": 0}, "min_size must be at least 1"),
    ],
)
def test_refused_options(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        train_transforms(**options)
