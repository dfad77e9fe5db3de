"""Detectors of masks: the engine asks for masks, detections carry them in original pixels, their AP is pycocotools'."""

import contextlib
import csv
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from concordet.assigned import BACKGROUND, Assigned
from concordet.cli import main
from concordet.data import load_dataset
from concordet.engine import load_detector, predict, train
from concordet.engine.config import DataConfig
from concordet.engine.data import build_dataset
from concordet.engine.detections import batch_results, mask_metrics
from concordet.engine.evaluation import DetectorOutput, measure, run_detector

from ..trained import tiny
from ..trees import TREES, voc_tree

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools'


def read(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module", params=["yolact", "mask_rcnn"])
def run(request, tmp_path_factory):
    """A run of three updates, validated once, that nobody told about masks."""
    return train(tiny(detector=request.param, optim_epochs=1, val_every=1), tmp_path_factory.mktemp("masks") / "run")


def pycocotools_ap(truth, detections):
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = truth
        known.createIndex()
        evaluation = COCOeval(known, known.loadRes([dict(row) for row in detections]), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:3]


class TestRun:
    def test_metrics_of_masks_are_reported(self, run):
        metrics, truth = read(run / "evaluation.json")["metrics"], read(run / "ground_truth.json")
        expected = pycocotools_ap(truth, read(run / "detections.json"))
        assert [metrics[f"{name}_mask"] for name in ("AP", "AP50", "AP75")] == pytest.approx(expected, abs=1e-9)
        rows = list(csv.DictReader((run / "metrics.csv").open()))
        assert any(row.get("val/AP_mask") for row in rows)

    def test_run_lengths_are_the_detectors_masks(self, run):
        model, _ = load_detector(run)
        data = build_dataset(tiny().data, "val")
        rows = read(run / "detections.json")
        for index in range(2):
            image, target = data[index]
            with torch.no_grad():
                (found,) = model([image])
            own = [row for row in rows if row["image_id"] == int(target["image_id"])]
            assert len(own) == len(found["masks"]) > 0
            for row, mask in zip(own, found["masks"], strict=True):
                assert (coco_masks.decode(row["segmentation"]) == (mask[0] > 0.5).numpy()).all()

    def test_the_command_shows_them(self, run, capsys):
        main(["evaluate", str(run), "--accelerator", "cpu"])
        assert "masks" in capsys.readouterr().out

    def test_analysis_of_the_same_files_agrees(self, run, tmp_path):
        files = [str(run / "ground_truth.json"), str(run / "detections.json")]
        assert main(["analyze", *files, "--iou-type", "segm", "--json", str(tmp_path / "figures.json")]) == 0
        figures, metrics = read(tmp_path / "figures.json"), read(run / "evaluation.json")["metrics"]
        for name in ("AP", "AP50", "AP75"):
            assert figures[name] == metrics[f"{name}_mask"] is not None

    def test_prediction(self, run, tmp_path):
        done = predict(run, [run / "samples"], out=tmp_path / "found.json", draw=tmp_path / "drawn", accelerator="cpu")
        assert all(set(row["segmentation"]) == {"size", "counts"} for row in read(tmp_path / "found.json"))
        assert Image.open(done.pictures[0]).size == (64, 64)


class Perfect(torch.nn.Module):
    """Finds every object with a mask ``shift`` pixels to the right, beside a false one in a corner if ``mistaken``."""

    def __init__(self, shift=0, mistaken=True):
        super().__init__()
        self.shift, self.mistaken = shift, mistaken

    def detections_and_assigned(self, images, targets):
        found = []
        for image, target in zip(images, targets, strict=True):
            masks = torch.as_tensor(target["masks"]).roll(self.shift, -1)[:, None].float()
            corner = torch.zeros(1, 1, *image.shape[-2:])
            corner[..., :4, :4] = 1
            boxes = torch.cat([torch.as_tensor(target["boxes"]), torch.tensor([[0.0, 0.0, 4.0, 4.0]])])
            scores = torch.linspace(0.9, 0.5, len(boxes) - 1)
            own = {
                "boxes": boxes,
                "labels": torch.cat([target["labels"], torch.tensor([1])]),
                "scores": torch.cat([scores, torch.tensor([0.95])]),
                "masks": torch.cat([masks, corner]),
            }
            found.append(own if self.mistaken else {name: value[:-1] for name, value in own.items()})
        none = torch.zeros(0, dtype=torch.int64)
        record = Assigned(
            logits=torch.zeros(1, 2),
            labels=torch.tensor([BACKGROUND]),
            positive=none,
            boxes=torch.zeros(0, 4),
            gt_boxes=torch.zeros(0, 4),
            gt_ids=none,
            image_ids=none,
            normalizer=torch.tensor(1.0),
        )
        return found, [record]


@pytest.mark.parametrize("shift", [0, 1, 3])
def test_average_precision_of_known_masks_equals_pycocotools(shift):
    data = build_dataset(tiny().data, "val", masks=True)
    found = run_detector(Perfect(shift), data, device=torch.device("cpu"))
    truth = data.ground_truth()
    figures = measure(truth, found)
    expected = pycocotools_ap(truth, found.detections)
    assert [figures[f"{name}_mask"] for name in ("AP", "AP50", "AP75")] == pytest.approx(expected, abs=1e-9)
    # boxes are the same whatever the shift; masks of thin strokes are not
    assert figures["AP_mask"] == figures["AP"] if shift == 0 else figures["AP_mask"] < 0.8 * figures["AP"]
    assert figures["AP_mask"] > (0.3 if shift < 2 else -1)


def judged_with_true_masks(data):
    found = run_detector(Perfect(mistaken=False), data, device=torch.device("cpu"))
    truth = data.ground_truth()
    sizes = {image["id"]: [image["height"], image["width"]] for image in truth["images"]}
    assert all(row["segmentation"]["size"] == sizes[row["image_id"]] for row in found.detections)
    return measure(truth, found)


@pytest.mark.parametrize("name", ["digits", "coco", "lvis", "cityscapes"])
def test_true_masks_of_every_data_set_are_perfect(name, tmp_path):
    config = tiny().data if name == "digits" else DataConfig(name=name, root=str(TREES[name](tmp_path)))
    figures = judged_with_true_masks(build_dataset(config, "val", masks=True))
    assert [figures[key] for key in ("AP_mask", "AP50_mask", "AP75_mask")] == pytest.approx([1.0] * 3)


@pytest.mark.parametrize("name", ["coco", "lvis", "cityscapes"])
def test_masks_of_smaller_images_are_judged_in_original_pixels(name, tmp_path):
    config = DataConfig(name=name, root=str(TREES[name](tmp_path)), val_options={"max_size": 32})
    data = build_dataset(config, "val", masks=True)
    assert max(data[0][0].shape) == 32 == data.ground_truth()["images"][0]["width"] // 2
    # half the resolution moves outlines by a pixel at most
    assert judged_with_true_masks(data)["AP75_mask"] == pytest.approx(1.0)


def test_masks_are_in_original_pixels():
    masks = torch.zeros(1, 1, 10, 20)
    masks[..., 2:5, 4:10] = 1.0
    found = {"boxes": torch.tensor([[4.0, 2.0, 10.0, 5.0]]), "labels": torch.tensor([1])}
    target = {"image_id": 3, "scale": torch.tensor([0.5, 0.25])}
    (row,) = batch_results([found | {"scores": torch.tensor([0.5]), "masks": masks}], [target], [7])
    expected = np.zeros((40, 40), np.uint8)
    expected[8:20, 8:20] = 1
    expected[[8, 8, 19, 19], [8, 19, 8, 19]] = 0  # 0.75 x 0.625 of bilinear corners is below a half
    assert (coco_masks.decode(row["segmentation"]) == expected).all()
    assert row["bbox"] == [8, 8, 12, 12]


def test_an_object_without_mask_is_a_reason_and_boxes_are_judged():
    data = build_dataset(tiny().data, "val", masks=True)
    found = run_detector(Perfect(0), data, device=torch.device("cpu"))
    truth = data.ground_truth()
    del truth["annotations"][2]["segmentation"]
    figures = measure(truth, found)
    assert figures["AP_mask"] is None
    assert "annotation 2" in figures["reasons"]["AP_mask"]
    assert figures["AP"] == measure(truth, DetectorOutput(found.detections, found.positives))["AP"] > 0.5
    assert mask_metrics(truth, found.detections)[1].keys() == {"AP_mask", "AP50_mask", "AP75_mask"}


def test_data_without_masks_is_refused_at_the_start(tmp_path):
    root = voc_tree(tmp_path / "voc")
    config = tiny(detector="mask_rcnn", data=DataConfig(name="voc", root=str(root)))
    with pytest.raises(ValueError, match=r"layout has no instance masks; take a detector without masks, or a data set"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="layout has no instance masks"):
        load_dataset("voc", root=root, masks=True)


def test_a_configuration_may_say_otherwise():
    config = tiny(data_val_options={"length": 2, "size": 64, "masks": False}).data
    assert "masks" not in build_dataset(config, "val", masks=True)[0][1]
    assert "masks" in build_dataset(tiny().data, "val", masks=True)[0][1]
