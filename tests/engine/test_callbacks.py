"""Averaged weights against a loop, time measured apart from waiting, metrics.csv across an interruption."""

import csv
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from concordet.engine.training.callbacks import WARMUP_ITERATIONS, AveragedWeights, IterationTimer
from concordet.engine.training.logger import CsvLog


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
        self.model.criterion = nn.Module()
        self.model.criterion.register_buffer("weight", torch.tensor(50.0))
        self.device = torch.device("cpu")


def test_the_average_equals_a_loop():
    module, ema = Small(), AveragedWeights(0.9)
    trainer = SimpleNamespace(global_step=0)
    ema.on_fit_start(trainer, module)
    ema.on_train_start(trainer, module)
    weight = module.model[0].weight
    expected = weight.detach().clone()
    for update in range(1, 120):
        with torch.no_grad():
            weight.add_(torch.randn(1, 2))
        trainer.global_step = update
        ema.on_train_batch_end(trainer, module, None, None, 0)
        decay = min(0.9, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * weight.detach()
        ema.on_train_batch_end(trainer, module, None, None, 0)  # accumulation: no update was made
    assert torch.allclose(ema.average["model.0.weight"], expected, atol=1e-5)
    assert set(ema.average) == {f"model.{n}" for n in ("0.weight", "0.bias", "1.weight", "1.bias")} | {
        "model.1.running_mean",
        "model.1.running_var",
    }


def test_only_evaluation_uses_the_average():
    module, ema = Small(), AveragedWeights(0.5)
    ema.on_fit_start(SimpleNamespace(), module)
    live = torch.full((1, 2), 7.0)
    with torch.no_grad():
        module.model[0].weight.copy_(live)
    average = ema.average["model.0.weight"].clone()
    ema.on_validation_epoch_start(None, module)
    assert torch.equal(module.model[0].weight, average)
    ema.on_validation_epoch_end(None, module)
    assert torch.equal(module.model[0].weight, live)
    assert torch.equal(ema.average["model.0.weight"], average)


def test_the_median_leaves_out_the_first_iterations_and_waiting(monkeypatch):
    timer, now = IterationTimer(), [0.0]
    monkeypatch.setattr("concordet.engine.training.callbacks.time.perf_counter", lambda: now[0])
    logged = {}
    module = SimpleNamespace(device=torch.device("cpu"), log=logged.__setitem__)
    trainer = SimpleNamespace(optimizers=[SimpleNamespace(param_groups=[{"lr": 0.25}])])
    assert timer.report()["seconds_per_iteration"] is None
    for iteration in range(WARMUP_ITERATIONS + 3):
        now[0] += 0.5  # waiting
        timer.on_train_batch_start(trainer, module, None, iteration)
        now[0] += 100 if iteration < WARMUP_ITERATIONS else iteration - WARMUP_ITERATIONS + 1
        timer.on_train_batch_end(trainer, module, None, None, iteration)
    report = timer.report()
    assert report["seconds_per_iteration"] == 2
    assert report["seconds_waiting_for_data"] == 0.5
    assert (report["iterations"], report["iterations_left_out"]) == (3, WARMUP_ITERATIONS)
    assert logged == {"seconds_per_iteration": 3, "lr": 0.25}
    other = IterationTimer()
    other.load_state_dict(timer.state_dict())
    assert other.report() == report


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_columns_are_added_as_they_appear(tmp_path):
    log = CsvLog(tmp_path / "metrics.csv")
    log.log_metrics({"epoch": 0, "train/total": 2.0}, 0)
    log.save()
    log.log_metrics({"epoch": 0, "train/total": 1.0}, 1)
    log.log_metrics({"val/AP": 0.5}, 1)
    log.finalize("success")
    assert [(r["step"], r["train/total"], r["val/AP"]) for r in rows(tmp_path / "metrics.csv")] == [
        ("0", "2.0", ""),
        ("1", "1.0", "0.5"),
    ]


def test_a_resumed_log_drops_what_will_be_made_again(tmp_path):
    path = tmp_path / "metrics.csv"
    log = CsvLog(path)
    for step in range(6):
        log.log_metrics({"train/total": float(step)}, step)
    log.save()
    with path.open("a") as file:
        file.write("6,")  # a kill in the middle of a row
    log = CsvLog(path, keep=4)
    log.log_metrics({"train/total": 40.0}, 4)
    log.save()
    assert [(r["step"], r["train/total"]) for r in rows(path)] == [
        *((str(s), str(float(s))) for s in range(4)),
        ("4", "40.0"),
    ]


@pytest.mark.parametrize("content", ["", "nonsense"])
def test_a_log_that_was_cut_to_nothing_starts_again(tmp_path, content):
    path = tmp_path / "metrics.csv"
    path.write_text(content)
    log = CsvLog(path, keep=4)
    log.log_metrics({"train/total": 1.0}, 4)
    log.save()
    assert rows(path)[-1]["step"] == "4"
