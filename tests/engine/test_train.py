"""Real trainings of a few updates: what they log, save and evaluate, and what they refuse."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from scipy.stats import spearmanr

from concordet.engine import DivergedError, UsageError, load_detector, train
from concordet.engine.data import EpochSampler

from ..trained import CLASSES, snapshot, tiny, words


def metrics_of(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def last(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def same_weights(first, second):
    return all(
        torch.equal(first[part][name], second[part][name])
        for part in ("state_dict", "ema_state_dict")
        for name in first[part]
    )


def test_a_run_folder_has_all_files(finished):
    names = {p.name for p in finished.iterdir()}
    assert names >= {
        *("config.yaml", "metrics.csv", "checkpoints", "ground_truth.json", "detections.json", "positives.npz"),
        *("evaluation.json", "samples", "timing.json", "data.json", "tensorboard"),
    }
    assert not list(finished.rglob(".*"))  # no temporary file is left
    assert yaml.safe_load((finished / "config.yaml").read_text())["optim"]["epochs"] == 2
    assert json.loads((finished / "data.json").read_text())["train"]["images"] == 12
    assert any((finished / "tensorboard").iterdir())
    assert 0 < len(list((finished / "samples").glob("*.png"))) <= 6


def test_every_term_is_logged_and_adds_up(finished):
    rows = [row for row in metrics_of(finished) if row["train/total"]]
    assert [int(row["step"]) for row in rows] == list(range(6))
    terms = [name for name in rows[0] if name.startswith("train/") and name != "train/total"]
    assert set(terms) == {"train/classification", "train/box", "train/quality"}
    for row in rows:
        assert sum(float(row[name]) for name in terms) == pytest.approx(float(row["train/total"]), rel=1e-5)
        assert float(row["seconds_per_iteration"]) > 0
    assert max(float(row["lr"]) for row in rows) == pytest.approx(1e-3)


def test_the_averaged_weights_are_what_is_evaluated(finished):
    during = [float(row["val/AP"]) for row in metrics_of(finished) if row["val/AP"]]
    assert len(during) == 2
    after = json.loads((finished / "evaluation.json").read_text())["metrics"]["AP"]
    assert during[-1] == pytest.approx(after, abs=1e-6)
    averaged, meta = load_detector(finished)
    plain, _ = load_detector(finished, averaged=False)
    state = last(finished)
    name = next(n for n, p in averaged.named_parameters() if p.requires_grad)
    assert torch.equal(averaged.state_dict()[name], state["ema_state_dict"][f"model.{name}"])
    assert torch.equal(plain.state_dict()[name], state["state_dict"][f"model.{name}"])
    assert not torch.equal(averaged.state_dict()[name], plain.state_dict()[name])
    assert meta["class_names"] == CLASSES


def test_the_same_configuration_gives_the_same_weights(finished, tmp_path):
    again = train(tiny(evaluate=False, val_every=0, data_workers=2), tmp_path / "again")
    assert same_weights(last(finished), last(again))
    other = train(tiny(evaluate=False, val_every=0, seed=1), tmp_path / "other")
    assert not same_weights(last(finished), last(other))


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16", "loss": "rank_sort+concordance(0.3)"},
        {"optim_accumulate": 3, "optim_optimizer": "sgd", "optim_schedule": "step", "detector": "atss"},
        {"optim_steps": 4, "optim_ema": 0.0, "optim_clip": 0.0, "detector": "retinanet", "loss": "alrp"},
    ],
    ids=["bf16 rank_sort", "accumulated sgd", "steps without averaging"],
)
def test_other_ways_to_train(tmp_path, changes):
    run = train(tiny(val_every=0, evaluate=False, **changes), tmp_path / "run")
    content = last(run)
    expected = changes.get("optim_steps") or 6 // changes.get("optim_accumulate", 1)
    assert content["global_step"] == expected
    assert ("ema_state_dict" in content) == ("optim_ema" not in changes)
    assert all(np.isfinite(float(row["train/total"])) for row in metrics_of(run) if row["train/total"])


@pytest.mark.slow
def test_a_compiled_backbone_learns_the_same(finished, tmp_path):
    run = train(tiny(compile=True, val_every=0, evaluate=False), tmp_path / "run")
    ours, theirs = metrics_of(run), [row for row in metrics_of(finished) if row["train/total"]]
    assert [float(row["train/total"]) for row in ours] == pytest.approx(
        [float(row["train/total"]) for row in theirs], rel=1e-3
    )
    load_detector(run)


def test_the_criterions_state_moves_on_each_epoch_and_is_saved(tmp_path):
    """aLRP's self-balancing weight is 50 in the first epoch only."""
    run = train(tiny(loss="alrp", val_every=0, evaluate=False), tmp_path / "run")
    weight = last(run)["state_dict"]["model.criterion.core.weight"]
    assert weight != 50
    assert torch.isfinite(weight)
    assert not [name for name in last(run)["ema_state_dict"] if "criterion" in name]


def test_clipping_bounds_the_update(tmp_path):
    """Plain SGD moves weights by at most lr * clip an update, decay aside."""
    start = train(tiny(optim_steps=1, optim_lr=1e-9, val_every=0, evaluate=False), tmp_path / "start")
    settings = {"optim_optimizer": "sgd", "optim_momentum": 0.0, "optim_weight_decay": 0.0, "optim_lr": 10.0}
    run = train(
        tiny(optim_steps=1, optim_warmup=0, optim_clip=1e-3, val_every=0, evaluate=False, **settings), tmp_path / "run"
    )
    model, _ = load_detector(run, averaged=False)
    before, after = last(start)["state_dict"], last(run)["state_dict"]
    names = [f"model.{name}" for name, _ in model.named_parameters()]
    moved = torch.cat([(after[name] - before[name]).flatten() for name in names])
    assert float(moved.norm()) == pytest.approx(10.0 * 1e-3, rel=1e-2)


def test_an_existing_folder_is_left_as_it_is(finished):
    before = snapshot(finished)
    with pytest.raises(ValueError, match=r"already exists; name another --out, or .*--resume"):
        train(tiny(), finished)
    assert snapshot(finished) == before


def test_training_starts_from_another_runs_weights(finished, tmp_path):
    config = tiny(weights=str(finished), loss="rank_sort", optim_steps=1, optim_lr=1e-12, val_every=0, evaluate=False)
    run = train(config, tmp_path / "run")
    model, _ = load_detector(finished)
    name = next(n for n, _ in model.named_parameters())
    assert torch.allclose(last(run)["state_dict"][f"model.{name}"], model.state_dict()[name], atol=1e-9)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"detector": "atss"}, "detector must be fcos, which .* is a checkpoint of, got atss"),
        (
            {"data_train_options": {"length": 4, "size": 64, "classes": ["1"]}, "val_every": 0, "evaluate": False},
            r"must have the 2 classes that .* was trained on \(3, 7\), got 1 \(1\)",
        ),
    ],
)
def test_weights_of_something_else_are_refused(finished, tmp_path, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        train(tiny(weights=str(finished), **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"detector": "fcs"}, r"detector must be one of .*, got fcs; did you mean fcos\?"),
        ({"loss": "focal+cordance"}, "cordance"),
        ({"devices": "two"}, "devices must be auto or a number of processes from 1, got two"),
    ],
)
def test_names_that_do_not_exist(tmp_path, changes, sentence):
    with pytest.raises(UsageError, match=sentence):
        train(tiny(**changes), tmp_path / "run")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"accelerator": "gpu"}, "accelerator must be auto or cpu where torch finds no GPU"),
        ({"sync_batchnorm": True}, "sync_batchnorm must be false on a CPU"),
    ],
)
def test_devices_that_do_not_exist(tmp_path, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        train(tiny(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_parts_with_different_classes_are_refused(tmp_path):
    options = {"length": 4, "size": 64, "classes": ["1", "2"]}
    with pytest.raises(
        ValueError, match="classes of the training and the evaluation data must be the same, got 3, 7 and 1, 2"
    ):
        train(tiny(data_val_options=options), tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_and_keeps_what_was_saved(tmp_path):
    run = tmp_path / "run"
    # the rate reaches 1e12 in the second epoch
    config = tiny(optim_lr=1e12, optim_schedule="constant", optim_warmup=4, optim_clip=0.0, val_every=0, optim_epochs=9)
    with pytest.raises(
        DivergedError, match=r"(the loss term \w+ is|the weights are no longer) .* at update \d+ .*smaller optim\.lr"
    ):
        train(config, run)
    saved = run / "checkpoints" / "last.ckpt"
    if saved.exists():
        assert all(torch.isfinite(v).all() for v in last(run)["state_dict"].values() if v.is_floating_point())
    assert metrics_of(run)


def test_earlier_checkpoints_survive_a_divergence(finished, tmp_path, monkeypatch):
    """The second epoch's weights are spoilt; the first epoch's checkpoint stays."""
    from concordet.engine.training.module import DetectionModule

    original = DetectionModule.on_train_batch_start

    def spoil(self, batch, batch_idx):
        original(self, batch, batch_idx)
        if self.current_epoch == 1 and batch_idx == 2:
            with torch.no_grad():
                next(self.model.parameters()).fill_(float("nan"))

    monkeypatch.setattr(DetectionModule, "on_train_batch_start", spoil)
    with pytest.raises(DivergedError, match=r"the loss term \w+ is nan at update 5 \(epoch 1\)"):
        train(tiny(), tmp_path / "run")
    assert last(tmp_path / "run")["global_step"] == 3
    assert not (tmp_path / "run" / "evaluation.json").exists()


# --- images without objects -----------------------------------------------------------------------------------------


def coco_folder(root, counts):
    """COCO files and images with so many objects each."""
    (root / "images").mkdir(parents=True)
    draws = np.random.default_rng(0)
    images, annotations = [], []
    for i, count in enumerate(counts):
        Image.fromarray(draws.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(root / "images" / f"{i}.png")
        images.append({"id": 100 + i, "file_name": f"{i}.png", "width": 64, "height": 48})
        for k in range(count):
            box = [4 + 20 * k, 8, 16, 24]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 100 + i,
                    "category_id": 30,
                    "bbox": box,
                    "area": 384,
                    "iscrowd": 0,
                }
            )
    content = {"images": images, "annotations": annotations, "categories": [{"id": 30, "name": "thing"}]}
    (root / "all.json").write_text(json.dumps(content))
    return {
        "data_name": "coco",
        "data_train_annotations": str(root / "all.json"),
        "data_train_images": str(root / "images"),
        "data_val_annotations": str(root / "all.json"),
        "data_val_images": str(root / "images"),
        "data_train_options": {},
        "data_val_options": {},
    }


@pytest.mark.parametrize("loss", ["default", "rank_sort+concordance(0.3)", "ap+pse"])
def test_images_without_objects_train_on(tmp_path, loss):
    """Empty batches, mixed ones, and full ones."""
    data = coco_folder(tmp_path / "data", [0, 2, 0, 0, 1, 0])
    run = train(tiny(loss=loss, data_batch_size=2, optim_epochs=2, **data), tmp_path / "run")
    assert last(run)["global_step"] == 6
    found = json.loads((run / "detections.json").read_text())
    assert {row["category_id"] for row in found} <= {30}
    assert {row["image_id"] for row in found} <= set(range(100, 106))
    samples = {path.stem: path for path in (run / "samples").iterdir()}
    assert set(samples) == {"101", "104"}  # those with objects, named by image id
    with Image.open(samples["104"]) as sample, Image.open(tmp_path / "data" / "images" / "4.png") as image:
        assert np.array_equal(np.asarray(sample), np.asarray(image))


def test_a_batch_without_objects_on_one_of_two_processes(tmp_path):
    """Two gloo processes: updates with objects on both, on one and on none of them."""
    counts = [2, 1, 0, 1, 0, 0]
    data = coco_folder(tmp_path / "data", counts)
    config = tiny(loss="rank_sort", data_batch_size=1, devices="2", optim_epochs=2, **data)
    orders = []
    for epoch in range(2):
        sampler = EpochSampler(6, seed=0)
        sampler.set_epoch(epoch)
        orders += [counts[index] > 0 for _, index in sampler]
    steps = list(zip(orders[::2], orders[1::2], strict=True))
    assert {sum(step) for step in steps} == {0, 1, 2}
    run = tmp_path / "run"
    command = [sys.executable, "-m", "concordet", "train", *words(config), "--out", str(run)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr
    assert last(run)["global_step"] == 6
    report = json.loads((run / "evaluation.json").read_text())
    assert report["metrics"]["n_images"] == 6
    during = [float(row["val/AP"]) for row in metrics_of(run) if row["val/AP"]]
    assert during[-1] == pytest.approx(report["metrics"]["AP"], abs=1e-6)  # gathered from both processes


def test_beta_img_equals_scipy(finished):
    with np.load(finished / "positives.npz") as positives:
        scores, ious, images = (positives[name] for name in ("scores", "ious", "image_ids"))
        labels = positives["labels"]
    assert set(np.unique(labels)) <= {1, 2}
    values = []
    for image in np.unique(images):
        chosen = images == image
        if len(np.unique(scores[chosen])) > 1 and len(np.unique(ious[chosen])) > 1:
            values.append(spearmanr(scores[chosen], ious[chosen]).statistic)
    report = json.loads((finished / "evaluation.json").read_text())
    assert report["metrics"]["beta_img"] == pytest.approx(np.mean(values), abs=1e-6)
