"""A run that was killed, or stopped with Ctrl-C, continues as if nothing had happened."""

import csv
import errno
import io
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from concordet.engine import UsageError, train
from concordet.engine.data import EpochSampler, build_dataset
from concordet.engine.training.checkpoints import checkpoint_callbacks, resume_point
from concordet.engine.training.module import DetectionModule

from ..processes import Command, run
from ..trained import snapshot, tiny, words

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def content(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def logged(run):
    with (run / "metrics.csv").open(newline="") as file:
        return [
            (row["step"], row["train/total"], row["val/AP"], row["lr"])
            for row in csv.DictReader(file)
            if row["train/total"] or row["val/AP"]
        ]


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def settings():
    """aLRP's self-balancing is state; jitter and worker processes draw random numbers."""
    return {"loss": "alrp", "optim_epochs": 5, "data_workers": 1, "evaluate": False}


def test_a_killed_run_ends_with_the_same_weights(tmp_path, settings):
    config = tiny(**settings)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    # all three in processes of their own: sums depend on the number of threads
    assert run("train", *words(config), "--out", str(whole))[0] == 0
    process = Command("train", *words(config), "--out", str(killed))
    process.wait_for("epoch 2/5")
    process.kill()
    reached = content(killed)["global_step"]
    assert 3 <= reached < 15
    assert run("train", "--resume", str(killed))[0] == 0
    first, second = content(whole), content(killed)
    assert first["global_step"] == second["global_step"] == 15
    assert same(first["state_dict"], second["state_dict"])
    assert same(first["ema_state_dict"], second["ema_state_dict"])
    # every update is logged once, with the same numbers
    assert logged(whole) == logged(killed)


def stop_at(monkeypatch, epoch, batch):
    """Makes the next training fail before this batch."""
    original = DetectionModule.on_train_batch_start

    def fail(self, data, batch_idx):
        if (self.current_epoch, batch_idx) == (epoch, batch):
            raise RuntimeError("stopped by the test")
        original(self, data, batch_idx)

    monkeypatch.setattr(DetectionModule, "on_train_batch_start", fail)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_stopped_within_an_epoch_ends_with_the_same_weights(tmp_path, monkeypatch, capsys, accumulate):
    """Six batches per epoch; the run stops before the last of the second."""
    images = {"length": 24 // accumulate * accumulate, "size": 64, "classes": ["3", "7"]}
    changes = {"loss": "alrp", "optim_epochs": 3, "val_every": 2, "evaluate": False, "optim_accumulate": accumulate}
    config = tiny(**changes, data_train_options=images, checkpoint_minutes=1e-9)
    torch.set_num_threads(1)
    whole = train(replace(config, checkpoint_minutes=0), tmp_path / "whole")
    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        stop_at(patch, 1, 5)
        with pytest.raises(RuntimeError, match="stopped by the test"):
            train(config, stopped)
    updates = (6 + 5) // accumulate
    assert content(stopped)["global_step"] == updates
    assert content(stopped)["concordet"]["updates_of_epoch"] == updates - 6 // accumulate
    capsys.readouterr()
    assert train(config, stopped, resume=True) == stopped
    assert f"continuing in epoch 2/3, update {updates}/{18 // accumulate}" in capsys.readouterr().err
    first, second = content(whole), content(stopped)
    assert first["global_step"] == second["global_step"] == 18 // accumulate
    assert same(first["state_dict"], second["state_dict"])
    assert same(first["ema_state_dict"], second["ema_state_dict"])
    assert logged(whole) == logged(stopped)


def test_a_run_stopped_within_an_epoch_goes_on_with_other_batches(tmp_path, monkeypatch):
    """An update of four images in one batch, then in two: the same images and the same number of updates."""
    config = tiny(val_every=0, evaluate=False, checkpoint_minutes=1e-9)
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 1, 2)
        with pytest.raises(RuntimeError, match="stopped by the test"):
            train(config, run)
    assert content(run)["concordet"]["updates_of_epoch"] == 2
    seen = []
    original = DetectionModule.training_step

    def step(self, batch, batch_idx):
        seen.append([int(target["image_id"]) for target in batch[1]])
        return original(self, batch, batch_idx)

    monkeypatch.setattr(DetectionModule, "training_step", step)
    train(replace(config, data=replace(config.data, batch_size=2)), run, resume=True)
    assert content(run)["global_step"] == 6
    sampler = EpochSampler(12, seed=0)
    sampler.set_epoch(1)
    order = [index for _, index in sampler]
    ids = [int(build_dataset(config.data, "train")[index][1]["image_id"]) for index in order[8:]]
    assert seen == [ids[:2], ids[2:]]


@pytest.mark.parametrize("changes", [{"optim_epochs": 3}, {"optim_steps": 5}], ids=["epochs", "updates"])
def test_the_end_of_training_is_evaluated_where_the_best_is_kept(tmp_path, changes):
    run = train(tiny(val_every=2, evaluate=False, **changes), tmp_path / "run")
    last, best = (torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True) for name in ("last", "best"))
    measured = [(int(step), float(ap)) for step, _, ap, _ in logged(run) if ap]
    assert measured[-1][0] == last["global_step"] - 1
    expected = max(measured, key=lambda row: row[1])
    assert best["global_step"] - 1 == expected[0]


def test_ctrl_c_keeps_the_checkpoint_and_says_how_to_continue(tmp_path, settings):
    run = tmp_path / "run"
    process = Command("train", *words(tiny(**settings | {"optim_epochs": 500})), "--out", str(run))
    process.wait_for("epoch 2/500")
    process.send_signal(signal.SIGINT)
    status, _, said = process.wait(60)
    assert status == 130
    sentence = "concordet: error: stopped; the last checkpoint is kept, continue with: concordet train --resume"
    assert f"{sentence} {run}" in said
    assert "Traceback" not in said
    assert content(run)["global_step"] >= 3


def test_other_settings_would_be_another_run(finished):
    before = snapshot(finished)
    with pytest.raises(UsageError, match=r"optim\.lr must be 0\.001, with which the run in .* was started, got 0\.1"):
        train(tiny(optim_lr=0.1), finished, resume=True)
    with pytest.raises(UsageError, match=r"loss must be default, with which the run in .* was started, got focal"):
        train(tiny(loss="focal"), finished, resume=True)
    assert snapshot(finished) == before


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path):
    with pytest.raises(ValueError, match=r"run must be a folder with config\.yaml"):
        train(tiny(), tmp_path / "nothing", resume=True)


def test_a_run_without_a_finished_epoch_starts_again(tmp_path):
    from concordet.engine import save_config

    run = tmp_path / "run"
    run.mkdir()
    config = tiny(val_every=0, evaluate=False)
    save_config(run / "config.yaml", config)
    train(config, run, resume=True)
    assert content(run)["global_step"] == 6


def test_a_broken_last_checkpoint_leaves_the_best(tmp_path, finished, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    saved = run / "checkpoints" / "last.ckpt"
    saved.write_bytes(saved.read_bytes()[:5000])
    expected = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] + 1
    train(tiny(evaluate=False), run, resume=True)
    said = capsys.readouterr().err
    assert "checkpoint must be a whole file that `concordet train` wrote, got" in said
    assert "last.ckpt; name another one" in said
    assert f"continuing from {run / 'checkpoints' / 'best.ckpt'} instead" in said
    assert (f"continuing in epoch {expected + 1}/2" in said) == (expected < 2)


def test_the_best_score_is_known_after_the_folder_moved(tmp_path, finished):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    point = resume_point(run)
    state = torch.load(point.path, weights_only=True)["callbacks"]
    (best,) = [callback for callback in checkpoint_callbacks(run, best=True) if callback.monitor]
    best.load_state_dict(state[best.state_key])
    assert best.best_model_path == str(run / "checkpoints" / "best.ckpt")
    assert best.best_k_models == {best.best_model_path: best.best_model_score}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO], ids=errno.errorcode.get)
def test_a_failed_write_keeps_the_previous_checkpoint(tmp_path, monkeypatch, number):
    """The disk takes half of the second checkpoint."""
    original, opened = Path.open, []

    class Failing(io.BufferedWriter):
        written = 0

        def write(self, data):
            self.written += len(data)
            if self.written > 100_000:
                raise OSError(number, os.strerror(number))
            return super().write(data)

    def open_path(self, mode="r", *args, **options):
        if self.suffix == ".ckpt" and mode == "wb":
            opened.append(self)
            if len(opened) == 2:
                return Failing(io.FileIO(self, "wb"))
        return original(self, mode, *args, **options)

    monkeypatch.setattr(Path, "open", open_path)
    run = tmp_path / "run"
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        train(tiny(val_every=0, evaluate=False), run)
    assert caught.value.filename == str(run / "checkpoints" / "last.ckpt")
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    assert content(run)["epoch"] == 0
    monkeypatch.undo()
    train(tiny(val_every=0, evaluate=False), run, resume=True)
    assert content(run)["epoch"] == 1


def test_a_run_has_one_process_that_writes(tmp_path, finished):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    code = f"from concordet.locks import locked\nwith locked({str(run)!r}, ''): print('in', flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], text=True, env=ENVIRONMENT, **pipes) as other:
        other.stdout.readline()
        with pytest.raises(ValueError, match=rf"must not be in use, got one that process {other.pid} writes to"):
            train(tiny(), run, resume=True)
        other.communicate("\n")


def test_a_run_without_a_whole_checkpoint_is_refused(tmp_path):
    from concordet.engine import save_config

    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.ckpt").write_bytes(b"PK\x03\x04 half of it")
    save_config(run / "config.yaml", tiny())
    with pytest.raises(ValueError, match=r"whole file that `concordet train` wrote, got .*last\.ckpt"):
        train(tiny(), run, resume=True)
