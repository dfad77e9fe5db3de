"""Detections reach files in original pixels and the data's own ids; figures are pycocotools'; nothing is mixed up."""

import contextlib
import io
import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from concordet.engine import evaluate_run, load_detector, predict, train
from concordet.engine.config import DataConfig, load_config
from concordet.engine.data import build_dataset
from concordet.engine.detections import coco_results
from concordet.engine.evaluation import run_detector
from concordet.engine.prediction import find_images, image_ids
from concordet.engine.training.launch import Launch

from ..detections import assert_same_detections
from ..trained import snapshot, tiny


def read(path):
    return json.loads(path.read_text())


def test_average_precision_equals_pycocotools(finished):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(finished / "ground_truth.json"))
        evaluation = COCOeval(truth, truth.loadRes(str(finished / "detections.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics = read(finished / "evaluation.json")["metrics"]
    assert [metrics[name] for name in ("AP", "AP50", "AP75")] == pytest.approx(evaluation.stats[:3], abs=1e-9)


def test_the_report_names_what_it_is_about(finished):
    report = read(finished / "evaluation.json")
    assert (report["detector"], report["loss"], report["class_names"]) == ("fcos", "default", ["3", "7"])
    assert report["environment"]["torch"] == torch.__version__
    assert report["environment"]["device"] == "cpu"
    assert len(report["per_class"]) == 2
    assert report["evaluated"]["checkpoint"] == "last.ckpt"


def test_evaluating_again_gives_the_same_files(finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    evaluate_run(copy, accelerator="cpu")
    assert read(copy / "evaluation.json") == read(finished / "evaluation.json")
    assert read(copy / "detections.json") == read(finished / "detections.json")


def test_an_evaluation_of_something_else_goes_elsewhere(finished, tmp_path):
    before = snapshot(finished)
    data = load_config(finished / "config.yaml").data
    other = DataConfig(**{**vars(data), "val_options": {**data.val_options, "seed": 5}})
    with pytest.raises(ValueError, match="must not hold an evaluation of another checkpoint or of other data"):
        evaluate_run(finished, data=other)
    with pytest.raises(ValueError, match="must not hold an evaluation of another checkpoint"):
        evaluate_run(finished, checkpoint="best")
    (tmp_path / "detections.json").write_text("mine")
    with pytest.raises(ValueError, match="already exists; name another folder with --out"):
        evaluate_run(finished, data=other, out=tmp_path)
    assert (tmp_path / "detections.json").read_text() == "mine"
    elsewhere = tmp_path / "elsewhere"
    report = evaluate_run(finished, checkpoint="best", data=other, out=elsewhere)
    assert read(elsewhere / "evaluation.json")["metrics"]["AP"] == report["metrics"]["AP"]
    assert snapshot(finished) == before


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        (["1", "2", "3"], r"must have the 2 classes that .*last\.ckpt was trained on \(3, 7\), got 3 \(1, 2, 3\)"),
        (["7", "3"], r"was trained on \(3, 7\), got 7, 3"),
    ],
)
def test_data_of_other_classes_is_refused(finished, tmp_path, classes, sentence):
    data = DataConfig(name="digits", val_options={"length": 4, "size": 64, "classes": classes})
    with pytest.raises(ValueError, match=sentence):
        evaluate_run(finished, data=data, out=tmp_path)


class Resized(torch.utils.data.Dataset):
    """Digit scenes given at half their width and a quarter of their height, as ``max_size`` may do, with COCO's ids."""

    def __init__(self, dataset):
        self.dataset, self.category_ids = dataset, [90, 17]

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        image, target = self.dataset[index]
        scale = torch.tensor([0.5, 0.25])
        image = torch.nn.functional.interpolate(image[None], scale_factor=(0.25, 0.5))[0]
        return image, target | {"boxes": target["boxes"] * scale.repeat(2), "scale": scale, "image_id": 1000 + index}


def test_detections_are_in_original_pixels_and_the_datas_ids(finished):
    model, _ = load_detector(finished)
    given = Resized(build_dataset(load_config(finished / "config.yaml").data, "val"))
    found = run_detector(model, given, device=torch.device("cpu"), batch_size=1)
    with torch.no_grad():
        expected = [model([given[index][0]])[0] for index in range(len(given))]
    assert {row["category_id"] for row in found.detections} <= {90, 17}
    assert len(found.detections) == sum(len(d["scores"]) for d in expected)
    factor = np.array([2, 4, 2, 4])
    for index, detection in enumerate(expected):
        rows = [row for row in found.detections if row["image_id"] == 1000 + index]
        boxes = detection["boxes"].numpy() * factor
        boxes[:, 2:] -= boxes[:, :2]
        assert np.allclose([row["bbox"] for row in rows], boxes, atol=2e-3)
        assert [row["score"] for row in rows] == detection["scores"].tolist()
        assert [row["category_id"] for row in rows] == [[90, 17][label - 1] for label in detection["labels"]]
    assert set(found.positives["image_ids"]) <= {1000 + index for index in range(6)}


def test_no_detections_give_no_rows():
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}
    assert coco_results([empty], [3], [1]) == []


# --- prediction -----------------------------------------------------------------------------------------------------


def detections_of(rows, image_id, score):
    """COCO results of one image as tensors."""
    rows = [row for row in rows if row["image_id"] == image_id]
    return {
        "boxes": torch.tensor([row["bbox"] for row in rows]),
        "labels": torch.tensor([row["category_id"] for row in rows]),
        "scores": torch.tensor([row[score] for row in rows]),
    }


def test_prediction_equals_evaluation(finished, tmp_path):
    """The samples are the evaluated images: predicting them gives the evaluation's detections."""
    out, drawn = tmp_path / "results.json", tmp_path / "drawn"
    truth = finished / "ground_truth.json"
    done = predict(finished, [finished / "samples"], out=out, draw=drawn, annotations=truth, accelerator="cpu")
    results = read(out)
    samples = sorted((finished / "samples").iterdir())
    assert done.images == len(samples)
    ids = {int(path.stem) for path in samples}
    expected = read(finished / "detections.json")
    own = predict(finished, [finished / "samples"], annotations=truth, accelerator="cpu", raw_scores=True).results
    for ident in ids:
        got, wanted = detections_of(own, ident, "score"), detections_of(expected, ident, "raw_score")
        assert_same_detections(got, wanted, atol=1e-5, scale=2000)  # boxes to 0.02 pixels
        calibrated = detections_of(results, ident, "score"), detections_of(expected, ident, "score")
        assert_same_detections(*calibrated, atol=1e-3, scale=20)  # a calibration map may be steep
    assert sorted(p.name for p in drawn.iterdir()) == [p.name for p in samples]
    with Image.open(drawn / samples[0].name) as picture:
        assert picture.size == (64, 64)
    assert {row["file_name"] for row in results} <= {p.name for p in samples}


def test_pictures_of_two_runs_never_mix(finished, tmp_path):
    sample = next((finished / "samples").iterdir())
    folder = tmp_path / "drawn"
    folder.mkdir()
    (folder / sample.name).write_text("mine")
    done = predict(finished, [sample], draw=folder)
    assert (folder / sample.name).read_text() == "mine"
    assert done.pictures == [tmp_path / "drawn-2" / f"{sample.stem}.png"]
    assert done.results[0]["image_id"] == 1


def test_the_threshold_cuts_results_and_pictures(finished):
    samples = [finished / "samples"]
    everything = predict(finished, samples).results
    scores = sorted(row["score"] for row in everything)
    middle = scores[len(scores) // 2]
    assert [row["score"] for row in predict(finished, samples, threshold=middle).results] == [
        row["score"] for row in everything if row["score"] >= middle
    ]


def photographs(folder):
    Image.new("L", (50, 40), 99).save(folder / "gray.png")
    Image.new("CMYK", (50, 40)).save(folder / "print.jpg")
    good = folder / "cut.jpg"
    Image.effect_noise((200, 200), 90).convert("RGB").save(good)
    good.write_bytes(good.read_bytes()[:3000])


def test_an_unreadable_image_is_skipped_or_stops_the_run(finished, tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    photographs(folder)
    with pytest.raises(ValueError, match=r"cut\.jpg: the image cannot be decoded"):
        predict(finished, [folder], out=tmp_path / "out.json", skip_unreadable=False)
    with pytest.raises(ValueError, match="no image can be read"):
        predict(finished, [folder / "cut.jpg"], out=tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()
    done = predict(finished, [folder], out=tmp_path / "out.json")
    assert done.images == 2
    assert list(done.unreadable) == [str(folder / "cut.jpg")]


def test_names_without_images_are_refused(finished, tmp_path):
    with pytest.raises(ValueError, match=r"must be files, folders or patterns, got .*none"):
        find_images([tmp_path / "none"])
    with pytest.raises(ValueError, match="must hold images"):
        find_images([tmp_path])
    (tmp_path / "a.png").touch()
    (tmp_path / "b.jpg").touch()
    assert find_images([tmp_path, f"{tmp_path}/*.png"]) == [tmp_path / "a.png", tmp_path / "b.jpg"]
    with pytest.raises(ValueError, match=r"must list every image, got none named a\.png"):
        image_ids([tmp_path / "a.png"], finished / "ground_truth.json")
    with pytest.raises(ValueError, match="must list images"):
        image_ids([tmp_path / "a.png"], finished / "detections.json")


def test_another_run_keeps_its_evaluation(finished, tmp_path):
    """Two runs on the same data differ in nothing that an evaluation names."""
    other = tmp_path / "other"
    shutil.copytree(finished, other)
    before = snapshot(other)
    with pytest.raises(ValueError, match="out must not be another run"):
        evaluate_run(finished, out=other)
    assert snapshot(other) == before


def test_an_evaluation_of_an_earlier_checkpoint_is_made_again(tmp_path):
    """A run that was evaluated before it was resumed is evaluated again at its end."""
    run = train(tiny(evaluate=False), tmp_path / "run")
    evaluate_run(run)
    early = (run / "evaluation.json").stat().st_mtime_ns
    later = (run / "checkpoints" / "last.ckpt").stat().st_mtime + 10
    os.utime(run / "checkpoints" / "last.ckpt", (later, later))
    train(tiny(evaluate=True), run, resume=True)
    assert (run / "evaluation.json").stat().st_mtime_ns > early


@pytest.mark.parametrize(
    ("names", "main"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "8", "LOCAL_RANK": "0"}, False),
        ({"LOCAL_RANK": "1"}, False),
        ({"SLURM_PROCID": "3"}, False),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"RANK": "0", "SLURM_PROCID": "1"}, True),
    ],
)
def test_one_process_writes_under_every_launcher(names, main, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    assert Launch.of(tiny()).is_main is main
