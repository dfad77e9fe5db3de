"""The examples run unchanged, on small data and models and without a download."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from torchvision.models import detection
from torchvision.transforms.functional import to_pil_image
from transformers import DeformableDetrForObjectDetection, DetrImageProcessor

from concordet.data import load_dataset
from concordet.detectors import install
from concordet.engine.config import load_config
from concordet.engine.demo import DEMO
from tests.detectors.adapters.tiny_models import set_predictor, torchvision_model

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four digit scenes in COCO's layout, one image without objects."""
    root = tmp_path_factory.mktemp("coco")
    scenes = load_dataset("digits", length=4, size=64)
    (root / "annotations").mkdir()
    (root / "train2017").mkdir()
    truth = scenes.ground_truth()
    empty = truth["images"][0]["id"]
    truth["annotations"] = [
        {**a, "category_id": a["category_id"] % 3} for a in truth["annotations"] if a["image_id"] != empty
    ]
    truth["categories"] = [{"id": i, "name": name} for i, name in enumerate(("zero", "one", "two"))]
    for i, image in enumerate(truth["images"]):
        image["file_name"] = f"{i}.png"
        to_pil_image(scenes[i][0]).save(root / "train2017" / image["file_name"])
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(truth))
    return root


def run(name, monkeypatch, tmp_path, *arguments):
    """Runs ``python examples/NAME ARGUMENTS`` in an empty folder and returns its global names."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    monkeypatch.chdir(tmp_path)
    return runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_torchvision(folder, tmp_path, monkeypatch, capsys):
    start = torchvision_model("FasterRCNN").state_dict()
    monkeypatch.setattr(detection, "fasterrcnn_resnet50_fpn", lambda weights: torchvision_model("FasterRCNN"))
    run("finetune_torchvision.py", monkeypatch, tmp_path, "coco", folder, "train2017")
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 12
    assert "'loss_roi_ranking'" in printed[-1]
    saved = torch.load(tmp_path / "finetuned.pt")
    plain = torchvision_model("FasterRCNN")
    plain.load_state_dict(saved)
    assert any(not torch.equal(saved[key], value) for key, value in start.items())


def test_transformers(folder, tmp_path, monkeypatch):
    set_predictor("DeformableDetr").save_pretrained(tmp_path / "start")
    DetrImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "start")
    names = run("finetune_transformers.py", monkeypatch, tmp_path, tmp_path / "start", "coco", folder, "train2017")
    assert names["model"].config.id2label == {0: "zero", 1: "one", 2: "two"}
    saved = DeformableDetrForObjectDetection.from_pretrained(tmp_path / "finetuned")
    start = set_predictor("DeformableDetr").state_dict()
    assert any(not torch.equal(value, start[key]) for key, value in saved.state_dict().items())
    assert install(saved, "rank_sort") is saved


def test_annotations_are_what_processors_take(folder):
    names = runpy.run_path(str(EXAMPLES / "finetune_transformers.py"))
    data = load_dataset("coco", root=folder, split="train2017")
    image, target = data[1]
    processor = DetrImageProcessor(size={"height": 32, "width": 128})
    batch = processor([image], [names["annotations"](target)], do_rescale=False, return_tensors="pt")
    (labels,) = batch["labels"]
    assert labels["class_labels"].tolist() == (target["labels"] - 1).tolist()
    corners = target["boxes"] / 64
    expected = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)
    torch.testing.assert_close(labels["boxes"], expected, rtol=1e-4, atol=1e-4)


def test_the_configuration_of_digit_scenes_is_the_demonstrations():
    assert load_config(EXAMPLES / "digits.yaml") == DEMO.config
