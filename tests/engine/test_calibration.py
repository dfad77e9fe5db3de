"""Runs carry a calibrator: evaluation judges it on images it did not see, prediction uses it, checkpoints keep it."""

import json
import shutil

import numpy as np
import pytest
import torch

from concordet.calibration import Calibrator, evaluate_calibration
from concordet.cli import main
from concordet.engine import evaluate_run, load_detector
from concordet.engine.calibration import calibrated_results, match_run
from concordet.engine.prediction import predict
from concordet.engine.predictor import load
from concordet.measures import evaluate_detections

ORDER_ONLY = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AP90", "AR100", "beta_cls", "oLRP", "oLRP_fp", "oLRP_fn")


def read(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def test_results_have_both_scores_and_metrics_are_cross_fitted(finished):
    results, truth, report = (read(finished, n) for n in ("detections", "ground_truth", "evaluation"))
    raw = [{**row, "score": row["raw_score"]} for row in results]
    assert Calibrator.load(finished / "calibrator.json").apply(raw) == results
    expected = evaluate_calibration(truth, raw, n_resamples=0)[1]["after"]
    for name in ("LaECE0", "LaACE0", "D_ECE", "AIC_mean"):
        assert report["metrics"][name] == expected[name], name
    assert report["scores"].startswith("calibrated, errors cross-fitted")


def test_what_rests_on_order_is_as_before(finished):
    results, truth, report = (read(finished, n) for n in ("detections", "ground_truth", "evaluation"))
    before = evaluate_detections(truth, [{**row, "score": row["raw_score"]} for row in results])
    for name in ORDER_ONLY:
        assert report["metrics"][name] == before[name], name


def test_raw_scores_are_the_detectors_own(finished, tmp_path):
    evaluate_run(finished, out=tmp_path / "raw", raw_scores=True, accelerator="cpu")
    raw, calibrated = (read(folder, "detections") for folder in (tmp_path / "raw", finished))
    assert [row["score"] for row in raw] == [row["raw_score"] for row in calibrated]
    assert not (tmp_path / "raw" / "calibrator.json").exists()
    assert read(tmp_path / "raw", "evaluation")["scores"] == "not calibrated"


def test_a_copied_checkpoint_predicts_calibrated_scores(finished, tmp_path):
    """Away from its run folder: scores and thresholds are those of the calibrator that it carries."""
    copied = tmp_path / "alone.ckpt"
    shutil.copyfile(finished / "checkpoints" / "last.ckpt", copied)
    carried = Calibrator.from_dict(load_detector(copied)[1]["calibrator"])
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    (got,), (raw,) = load(copied, accelerator="cpu")([image]), load(copied, accelerator="cpu", raw_scores=True)([image])
    assert len(got["scores"]) == len(raw["scores"]) > 0
    assert (got["scores"].diff() <= 0).all()
    ids = {1: 3, 2: 7} if set(carried.classes) == {3, 7} else dict(enumerate(carried.classes, 1))
    expected = carried.calibrate(raw["scores"].double().numpy(), np.array([ids[i] for i in raw["labels"].tolist()]))
    np.testing.assert_allclose(np.sort(got["scores"].numpy()), np.sort(expected), atol=1e-6)
    thresholds = [0.3 if t is None else t for t in carried.thresholds().values()]
    assert load(copied, accelerator="cpu").thresholds.tolist() == pytest.approx(thresholds)


def test_prediction_says_which_scores_it_writes(finished, tmp_path):
    picture = finished / "samples" / sorted(p.name for p in (finished / "samples").iterdir())[0]
    calibrated, raw = (
        predict(finished, [picture], accelerator="cpu", raw_scores=raw_scores) for raw_scores in (False, True)
    )
    assert calibrated.calibrated
    assert not raw.calibrated
    assert [r["score"] for r in calibrated.results] != [r["score"] for r in raw.results]
    boxes = [{tuple(r["bbox"]) for r in done.results} for done in (calibrated, raw)]
    assert boxes[0] == boxes[1]


def test_other_data_takes_the_carried_calibrator(finished, tmp_path):
    from dataclasses import replace

    from concordet.engine.config import load_config

    data = load_config(finished / "config.yaml").data
    other = replace(data, val_options={**data.val_options, "length": 4})
    report = evaluate_run(finished, data=other, out=tmp_path / "other", accelerator="cpu")
    assert report["scores"].startswith("calibrated on ")
    assert report["calibration"] is None
    carried = Calibrator.from_dict(load_detector(finished)[1]["calibrator"])
    results = read(tmp_path / "other", "detections")
    assert carried.apply([{**row, "score": row["raw_score"]} for row in results]) == results


def test_a_run_without_evaluations_between_epochs_carries_one_too(tmp_path):
    from concordet.engine import train

    from ..trained import tiny

    run = train(tiny(val_every=0, optim_epochs=1), tmp_path / "run")
    carried = load_detector(run)[1]["calibrator"]
    assert Calibrator.from_dict(carried) == Calibrator.load(run / "calibrator.json")
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    assert before[run / "evaluation.json"] >= before[run / "checkpoints" / "last.ckpt"]


def test_calibrating_a_run_again_starts_from_its_raw_scores(finished, tmp_path, capsys):
    """Calibrating again, with any method, starts from raw scores and replaces the checkpoint's calibrator."""
    run = shutil.copytree(finished, tmp_path / "run")
    assert main(["calibrate", str(run), "--resamples", "0"]) == 0
    assert "checkpoint with this calibrator" in capsys.readouterr().out
    again, before = Calibrator.load(run / "calibrator.json"), Calibrator.load(finished / "calibrator.json")
    assert again.to_dict()["classes"] == before.to_dict()["classes"]
    assert main(["calibrate", str(run), "--resamples", "0", "--method", "platt"]) == 0
    other = Calibrator.load(run / "calibrator.json")
    assert other.to_dict()["method"] == "platt"
    assert Calibrator.from_dict(load_detector(run)[1]["calibrator"]) == other
    words = ["--results", str(tmp_path / "new.json")]
    for first in (
        [str(run), "--resamples", "0"],
        ["--apply", str(run / "calibrator.json"), str(run / "detections.json")],
    ):
        assert main(["calibrate", *first, *words, "--method", "platt", "--force"]) == 0
        results = json.loads((run / "detections.json").read_text())
        raw = [{**row, "score": row["raw_score"]} for row in results]
        assert json.loads((tmp_path / "new.json").read_text()) == json.loads(json.dumps(other.apply(raw)))


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    """A run whose calibrator is fitted on training images that are held out for it."""
    from concordet.engine import train
    from concordet.engine.config import CalibrationConfig

    from ..trained import tiny

    config = tiny(calibration=CalibrationConfig(fraction=0.25, seed=3))
    return train(config, tmp_path_factory.mktemp("held_out") / "run")


def test_training_images_can_be_held_out_for_the_fit(held_out):
    from concordet.data.splits import HoldOut
    from concordet.engine.config import load_config

    data = read(held_out, "data")
    names = [f"{index}.png" for index in range(12)]
    chosen = [names[index] for index in HoldOut("val", 0.25, 3).indices(names)]
    assert data["held_out_for_calibration"] == {"fraction": 0.25, "seed": 3, "images": chosen}
    assert (data["train"]["images"], data["calibration"]["images"], data["val"]["images"]) == (9, 3, 6)
    assert load_config(held_out / "config.yaml").calibration.fraction == 0.25
    for name in ("last", "best"):
        carried = Calibrator.from_dict(load_detector(held_out / "checkpoints" / f"{name}.ckpt")[1]["calibrator"])
        assert carried.fit["n_images"] == 3
    assert Calibrator.load(held_out / "calibrator.json").to_dict() == load_detector(held_out)[1]["calibrator"]


def test_the_evaluation_applies_the_calibrator_of_held_out_images(held_out):
    results, report = read(held_out, "detections"), read(held_out, "evaluation")
    carried = Calibrator.load(held_out / "calibrator.json")
    assert carried.apply([{**row, "score": row["raw_score"]} for row in results]) == results
    assert report["scores"] == "calibrated on 3 images held out from training"
    assert report["calibration"] is None
    expected = evaluate_detections(read(held_out, "ground_truth"), results)
    for name in ("AP", "LaECE0", "LaACE0", "D_ECE", "AIC_mean", "oLRP"):
        assert report["metrics"][name] == expected[name], name


def test_held_out_images_are_never_trained_on(held_out):
    from concordet.data import DigitScenes
    from concordet.engine.config import load_config
    from concordet.engine.data import build_dataset, hold_out_for_calibration

    config = load_config(held_out / "config.yaml")
    train_set, calibration = hold_out_for_calibration(build_dataset(config.data, "train", augment=True), config)
    ids = [{split[index][1]["image_id"] for index in range(len(split))} for split in (train_set, calibration)]
    assert ids[0] | ids[1] == set(range(12))
    assert not ids[0] & ids[1]
    whole = DigitScenes("train", 12, size=64, classes=["3", "7"]).ground_truth()["annotations"]
    for split, chosen in zip((train_set, calibration), ids, strict=True):
        truth = split.ground_truth()
        assert truth["annotations"] == [row for row in whole if row["image_id"] in chosen]
        assert split.summary()["objects"] == len(truth["annotations"])


def test_fractions_out_of_range():
    from concordet.engine.config import CalibrationConfig, TrainConfig

    with pytest.raises(ValueError, match=r"calibration.fraction must be at least 0 and below 1, got 1.5; 0.1 holds"):
        TrainConfig(calibration=CalibrationConfig(fraction=1.5))


@pytest.mark.parametrize("what", ["evaluation", "validation"])
def test_detections_are_matched_once(finished, tmp_path, monkeypatch, what):
    """One pass over all IoU thresholds for AP, and one for the matches that everything else reads."""
    from concordet.engine.training.module import evaluate_on_all
    from concordet.measures import coco, matching

    passes = []

    def counted(own, position):
        def call(*args, **options):
            passes.append(len(args[position] if len(args) > position else options["thresholds"]))
            return own(*args, **options)

        return call

    monkeypatch.setattr(coco, "evaluator", counted(coco.evaluator, 9))
    monkeypatch.setattr(matching, "match_pairs", counted(matching.match_pairs, 3))
    if what == "evaluation":
        evaluate_run(finished, out=tmp_path / "again", accelerator="cpu")
    else:
        results = [{**row, "score": row["raw_score"]} for row in read(finished, "detections")]
        evaluate_on_all(read(finished, "ground_truth"), results)
    assert passes == [10, 2]


def test_errors_on_one_image_are_not_called_cross_fitted(finished):
    results, truth = read(finished, "detections"), read(finished, "ground_truth")
    ident = truth["images"][0]["id"]
    truth = {
        **truth,
        "images": truth["images"][:1],
        "annotations": [a for a in truth["annotations"] if a["image_id"] == ident],
    }
    raw = [{**row, "score": row["raw_score"]} for row in results if row["image_id"] == ident]
    carried = Calibrator.load(finished / "calibrator.json")
    found = calibrated_results(match_run(truth, raw), raw, own_data=True, carried=carried)
    assert found.report is None
    assert found.scores == "calibrated on 6 images"
