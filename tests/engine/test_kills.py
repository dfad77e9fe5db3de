"""Runs that are killed at any moment, or whose disk is full, keep a whole checkpoint and end as if nothing happened."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from concordet.engine import train
from concordet.engine.checkpoint import read_checkpoint

from ..trained import tiny, words

MEMORY = Path("/dev/shm")
CONFIG = {"optim_epochs": 6, "val_every": 0, "evaluate": False, "checkpoint_minutes": 1e-9}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The last checkpoint of a run that nothing disturbs."""
    torch.set_num_threads(1)
    run = train(tiny(**CONFIG), tmp_path_factory.mktemp("whole") / "run")
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture
def two_file_systems(tmp_path):
    """A folder for the run, and a folder for temporary files on another file system."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    if not MEMORY.is_dir() or not os.access(MEMORY, os.W_OK) or MEMORY.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("this system has no second file system at /dev/shm")
    folder = Path(tempfile.mkdtemp(dir=MEMORY))
    yield folder / "run", temporary
    shutil.rmtree(folder)


def start(run, temporary, *, resume):
    """Trains in a process of its own."""
    config = ["--resume", str(run)] if resume else [*words(tiny(**CONFIG)), "--out", str(run)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}
    command = [sys.executable, "-m", "concordet", "train", *config]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=variables)


def kill_while_writing(run, temporary, draw, *, resume):
    """Kills a run some time after it has begun to write a checkpoint; whether it was still running."""
    process = start(run, temporary, resume=resume)
    last = run / "checkpoints" / "last.ckpt"
    before = last.stat().st_mtime_ns if last.is_file() else 0
    while process.poll() is None and not (last.is_file() and last.stat().st_mtime_ns != before):
        time.sleep(0.005)
    time.sleep(draw.uniform(0, 0.4))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def check_kills(places, whole, kills):
    """Kills a run again and again at random moments of its checkpoints, resumes it, and compares its end."""
    run, temporary = places
    draw = random.Random(0)
    for number in range(kills):
        kill_while_writing(run, temporary, draw, resume=number > 0)
        read_checkpoint(run / "checkpoints" / "last.ckpt")  # whole after every kill
    train(tiny(**CONFIG), run, resume=True)
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["global_step"] == whole["global_step"]
    for part in ("state_dict", "ema_state_dict"):
        assert all(torch.equal(content[part][name], value) for name, value in whole[part].items())
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    assert not list(temporary.rglob("*.ckpt"))


def test_a_killed_run_ends_with_the_same_weights(two_file_systems, whole):
    check_kills(two_file_systems, whole, 1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_run_killed_ten_times_on_two_file_systems(two_file_systems, whole):
    check_kills(two_file_systems, whole, 10)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_run_killed_twenty_times_on_one_file_system(tmp_path, whole):
    (tmp_path / "temporary").mkdir()
    check_kills((tmp_path / "run", tmp_path / "temporary"), whole, 20)


def test_a_full_disk_keeps_the_checkpoint(tmp_path, whole):
    """No file may grow beyond half a checkpoint: as where the disk is full, the system refuses the rest."""
    run = tmp_path / "run"
    first = tiny(**CONFIG | {"checkpoint_minutes": 0})
    last, kept = stopped_after_an_epoch(first, run)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails instead
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(kept) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            train(first, run, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert last.read_bytes() == kept
    assert [path.name for path in last.parent.iterdir()] == ["last.ckpt"]
    train(first, run, resume=True)
    assert torch.load(last, weights_only=True)["global_step"] == whole["global_step"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 32 MB, where root may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_file_system_keeps_the_checkpoint(small_disk, whole):
    run = small_disk / "run"
    config = tiny(**CONFIG | {"checkpoint_minutes": 0})
    last, kept = stopped_after_an_epoch(config, run)
    free = shutil.disk_usage(small_disk).free
    (small_disk / "others").write_bytes(bytes(max(free - len(kept) // 2, 0)))
    with pytest.raises(OSError, match="No space left on device"):
        train(config, run, resume=True)
    assert last.read_bytes() == kept
    (small_disk / "others").unlink()
    train(config, run, resume=True)
    assert torch.load(last, weights_only=True)["global_step"] == whole["global_step"]


def stopped_after_an_epoch(config, run):
    """The checkpoint of a training that failed within its second epoch, and its content."""
    with pytest.MonkeyPatch.context() as patch:
        stop_after_an_epoch(patch)
        with pytest.raises(RuntimeError, match="stopped by the test"):
            train(config, run)
    last = run / "checkpoints" / "last.ckpt"
    return last, last.read_bytes()


def stop_after_an_epoch(patch):
    """Makes the next training fail within its second epoch."""
    from concordet.engine.training.module import DetectionModule

    original = DetectionModule.on_train_batch_start

    def fail(self, data, batch_idx):
        if (self.current_epoch, batch_idx) == (1, 1):
            raise RuntimeError("stopped by the test")
        original(self, data, batch_idx)

    patch.setattr(DetectionModule, "on_train_batch_start", fail)
