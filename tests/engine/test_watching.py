"""The quantities that the papers plot during training are in a run's log."""

import csv
import gc
import math
import weakref

import pytest

from concordet.engine.config import DataConfig, OptimConfig, TrainConfig
from concordet.engine.training.fit import train
from concordet.engine.training.observers import WatchLosses


def watched(loss, out, detector="fcos"):
    config = TrainConfig(
        detector=detector,
        size="nano",
        loss=loss,
        image_size=(64, 64),
        data=DataConfig(
            name="digits",
            train_options={"length": 16, "size": 64, "cache": True},
            batch_size=4,
            workers=0,
            augment="none",
        ),
        optim=OptimConfig(epochs=3, lr=1e-3),
        val_every=0,
        evaluate=False,
        log_every=1,
    )
    with (train(config, out) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{k: float(v) for k, v in row.items() if v} for row in rows]


@pytest.mark.parametrize("loss", ["ap", "alrp"])
def test_ranking_losses_balance_gradients_throughout(loss, tmp_path):
    rows = watched(loss, tmp_path / "run")
    assert len(rows) == 12
    assert [row["watch/gradient_ratio"] for row in rows] == pytest.approx([1] * 12, abs=1e-4)


def test_focal_loss_does_not(tmp_path):
    rows = watched("focal", tmp_path / "run")
    assert max(abs(math.log(row["watch/gradient_ratio"])) for row in rows) > 0.5


def test_nothing_of_a_step_stays_in_memory(tmp_path, monkeypatch):
    seen, see = [], WatchLosses._see

    def note(self, trainer, staged, criterion, args, terms):
        seen.append(weakref.ref(args[0].logits))
        return see(self, trainer, staged, criterion, args, terms)

    monkeypatch.setattr(WatchLosses, "_see", note)
    watched("focal", tmp_path / "run")
    gc.collect()
    assert len(seen) == 12
    assert all(logits() is None for logits in seen)


def test_self_balancing_and_harmonic_factors_are_logged(tmp_path):
    rows = watched("alrp", tmp_path / "alrp")
    assert rows[0]["watch/self_balance"] == 50
    assert rows[-1]["watch/self_balance"] < 50
    before = [(row["train/classification"], row["train/box"] / row["watch/self_balance"]) for row in rows[4:8]]
    weight = sum(a + b for a, b in before) / sum(b for _, b in before)  # the previous epoch's means
    assert [row["watch/self_balance"] for row in rows[8:]] == pytest.approx([weight] * 4, rel=1e-4)
    rows = watched("harmonic", tmp_path / "harmonic")
    assert all(1 <= row["watch/classification_factor"] <= 2 for row in rows)
    assert all(1 <= row["watch/localization_factor"] <= 2 for row in rows)
    assert all(0 <= row["watch/inconsistency"] <= 1 for row in rows)


def test_every_stage_is_watched(tmp_path):
    rows = watched("rank_sort", tmp_path / "run", "faster_rcnn")
    for stage in ("rpn", "roi"):
        # what sorting moves stays among the positives
        assert all(row[f"watch/{stage}_gradient_ratio"] <= 1.0001 for row in rows)
        balanced = [row[f"train/{stage}_ranking"] + row[f"train/{stage}_sorting"] for row in rows]
        weight = rows[0][f"train/{stage}_box"] / balanced[0]  # the stage's
        assert [row[f"train/{stage}_box"] for row in rows] == pytest.approx([weight * value for value in balanced])
        assert all(row[f"watch/{stage}_self_balance"] > 0 for row in rows)
    rows = watched("ap", tmp_path / "ap", "faster_rcnn")
    assert [row["watch/roi_gradient_ratio"] for row in rows] == pytest.approx([1] * 12, abs=1e-4)
