"""`concordet.load` gives a function of images that equals the detector behind it."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import concordet
from concordet.errors import UsageError


@pytest.fixture(scope="module")
def predictor(finished):
    return concordet.load(finished, accelerator="cpu")


@pytest.fixture(scope="module")
def sample(finished):
    return sorted((finished / "samples").iterdir())[0]


def test_every_form_of_image_gives_the_same(predictor, sample):
    image = Image.open(sample).convert("RGB")
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    forms = [sample, str(sample), image, array, tensor, tensor / 255, array.astype(np.float32) / 255]
    first, *others = predictor(forms)
    assert first["boxes"].shape == (len(first["scores"]), 4)
    for other in others:
        assert torch.equal(first["labels"], other["labels"])
        torch.testing.assert_close(first["boxes"], other["boxes"])
    (alone,) = predictor(image)
    assert torch.equal(alone["scores"], first["scores"])


def test_detections_are_those_of_the_evaluation(predictor, finished):
    rows = json.loads((finished / "detections.json").read_text())
    for path in (finished / "samples").iterdir():
        (detection,) = predictor(path)
        expected = sorted(row["score"] for row in rows if row["image_id"] == int(path.stem))
        # steep pieces of the calibrator enlarge the rounding of other batch sizes
        assert sorted(detection["scores"].tolist()) == pytest.approx(expected, abs=1e-4)


def test_thresholds_are_numbers_of_any_type(predictor, finished):
    image = next((finished / "samples").iterdir())
    expected = predictor(image, threshold=0.05)[0]["scores"]
    for same in (np.float32(0.05), torch.tensor(0.05), {name: np.float64(0.05) for name in predictor.class_names}):
        torch.testing.assert_close(predictor(image, threshold=same)[0]["scores"], expected)
    for wrong in ("0.05", [0.05], 2, -0.1, float("nan"), {predictor.class_names[0]: 7}):
        with pytest.raises(UsageError, match="threshold must be a score from 0 to 1, got"):
            predictor(image, threshold=wrong)


def test_folders_and_thresholds(predictor, finished):
    count = len(list((finished / "samples").iterdir()))
    everything = predictor(finished / "samples")
    assert len(everything) == count
    above = predictor(finished / "samples", threshold=0.05)
    for all_of_them, some in zip(everything, above, strict=True):
        assert len(some["scores"]) == int((all_of_them["scores"] >= 0.05).sum())


def test_a_copied_checkpoint_draws_boxes(finished, sample, tmp_path):
    shutil.copy(finished / "checkpoints" / "last.ckpt", tmp_path / "copy.ckpt")
    predictor = concordet.load(tmp_path / "copy.ckpt", accelerator="cpu")
    assert predictor.class_names == ["3", "7"]
    drawn = predictor.draw(sample)
    assert drawn.size == (64, 64)
    plain = predictor.draw(sample, threshold=1.0)
    assert np.array_equal(np.asarray(plain), np.asarray(Image.open(sample).convert("RGB")))
    shown = predictor.visible(predictor(sample)[0])
    assert np.array_equal(np.asarray(drawn), np.asarray(plain)) == (len(shown["scores"]) == 0)
    lowest = predictor.thresholds[shown["labels"] - 1]
    assert bool((shown["scores"] >= lowest).all())


def test_images_of_other_shapes(predictor, tmp_path):
    with pytest.raises(ValueError, match=r"must be arrays \[h, w, 3\] or tensors \[3, h, w\], got shape \(4, 8, 8\)"):
        predictor(torch.zeros(4, 8, 8))
    with pytest.raises(ValueError, match="which matches none"):
        predictor(tmp_path / "none.png")
