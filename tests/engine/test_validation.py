"""Evaluation between epochs sees what evaluation at the end sees."""

import json
import shutil

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from concordet.data import load_dataset
from concordet.engine.data import eval_loader
from concordet.engine.predictor import known_thresholds, load
from concordet.engine.training.module import DetectionModule

from ..trained import tiny


class Oracle(nn.Module):
    """Finds the one object, in the pixels of the image that it is given."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        found = {"labels": torch.tensor([1]), "scores": torch.tensor([0.9])}
        return [found | {"boxes": torch.tensor([[8.0, 8.0, 38.0, 38.0]]) * image.shape[-1] / 64} for image in images]


@pytest.fixture
def dataset(tmp_path):
    content = {"images": [], "annotations": [], "categories": [{"id": 5, "name": "thing"}]}
    for i in range(3):
        Image.fromarray(np.full((64, 64, 3), 40 * i, dtype=np.uint8)).save(tmp_path / f"{i}.png")
        content["images"].append({"id": i, "file_name": f"{i}.png", "width": 64, "height": 64})
        content["annotations"].append(
            {"id": i + 1, "image_id": i, "category_id": 5, "bbox": [8, 8, 30, 30], "area": 900, "iscrowd": 0}
        )
    (tmp_path / "all.json").write_text(json.dumps(content))
    return load_dataset("coco", annotations=tmp_path / "all.json", images=tmp_path, max_size=32)


def test_resized_images_are_judged_in_original_pixels(dataset):
    """max_size halves the images here, the annotations stay as they are."""
    assert dataset[0][0].shape[-1] == 32
    meta = {"category_ids": dataset.category_ids}
    module = DetectionModule(Oracle(), tiny(), meta, dataset.ground_truth())
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    (figures,) = trainer.validate(module, eval_loader(dataset, batch_size=2, workers=0), verbose=False)
    assert figures["val/AP"] == pytest.approx(1)


def test_thresholds_travel_in_the_checkpoint(finished, tmp_path):
    report = json.loads((finished / "evaluation.json").read_text())
    expected = [0.3 if c["lrp_threshold"] is None else c["lrp_threshold"] for c in report["per_class"]]
    copy = tmp_path / "copy.ckpt"
    shutil.copy(finished / "checkpoints" / "last.ckpt", copy)
    for path in (finished, copy):
        predictor = load(path, accelerator="cpu")
        assert predictor.advised
        assert predictor.thresholds.tolist() == pytest.approx(expected)


def test_a_run_that_was_evaluated_at_its_end_has_thresholds(finished, tmp_path):
    """Without evaluations during training, they are those of evaluation.json; without that, 0.3."""
    report = json.loads((finished / "evaluation.json").read_text())
    meta = {"category_ids": [c["id"] for c in report["per_class"]]}
    expected = [0.3 if c["lrp_threshold"] is None else c["lrp_threshold"] for c in report["per_class"]]
    run = tmp_path / "run"  # without a calibrator, which changes scores
    run.mkdir()
    shutil.copy(finished / "evaluation.json", run)
    assert known_thresholds(meta, run) == pytest.approx(expected)
    assert known_thresholds(meta, tmp_path) is None
    assert known_thresholds(meta, None) is None
