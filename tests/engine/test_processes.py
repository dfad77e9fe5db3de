"""Several processes: gradients equal those of one process, failures reach all, batches are split, training survives a
killed process."""

import csv
import json
import math
import re
import signal
import socket
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from concordet.detectors import build_detector
from concordet.engine import UsageError, train
from concordet.engine.checkpoint import read_checkpoint
from concordet.engine.data import EpochSampler
from concordet.engine.training.launch import Launch
from concordet.engine.training.module import evaluate_on_all
from concordet.engine.training.schedule import learning_rate_factor
from concordet.losses import rank_over, value_checks

from ..data.forms import coco_json, save, write
from ..processes import Command, forkserver
from ..trained import tiny, words

# detector, loss, objects of each image, whether it is ranked globally
CASES = {
    "rank_sort": ("fcos", "rank_sort", (3, 1, 0, 2), True),
    "rank_sort, all objects in one process": ("fcos", "rank_sort", (0, 0, 2, 3), True),
    "focal+concordance": ("fcos", "focal+concordance(0.3)", (3, 1, 0, 2), True),
    "alrp": ("retinanet", "alrp", (3, 1, 0, 2), True),
    "bucketed_ap, no objects": ("retinanet", "bucketed_ap+spearman", (0, 0, 0, 0), True),
    "two stages": ("faster_rcnn", "rank_sort", (3, 1, 0, 2), True),
    "weights by centerness": ("atss", "default", (3, 1, 0, 2), False),
    "weights by IoU": ("fcos", "varifocal", (3, 1, 0, 2), False),
    "each for itself": ("fcos", "rank_sort", (3, 1, 0, 2), False),
}


def batch(counts):
    draws = torch.Generator().manual_seed(0)
    images = [torch.rand(3, 64, 64, generator=draws) for _ in counts]
    corners = [torch.rand(count, 2, generator=draws) * 40 for count in counts]
    boxes = [torch.cat([corner, corner + 12 + torch.rand(corner.shape, generator=draws) * 10], 1) for corner in corners]
    labels = [torch.randint(1, 4, (count,), generator=draws) for count in counts]
    return images, [{"boxes": b, "labels": y} for b, y in zip(boxes, labels, strict=True)]


def gradient(detector, loss, images, targets, group=None):
    """Value and gradient of a step; several processes' gradients are averaged as DDP does it."""
    torch.manual_seed(0)
    model = build_detector(detector, num_classes=3, size="nano", loss=loss, image_size=(64, 64)).train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()  # its statistics are another matter (sync_batchnorm)
    rank_over(model, group)
    trained = DistributedDataParallel(model) if dist.is_initialized() else model
    with value_checks(False):
        total = torch.stack(list(trained(images, targets).values())).sum()
    total.backward()
    return total.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def failure(rank):
    """The error that a process raises if the evaluation fails in the first one."""

    def fail(*arguments, **options):
        assert rank == 0, "only one process measures"
        raise KeyError("area")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("concordet.measures.evaluate_detections", fail)
        try:
            evaluate_on_all({"images": []}, [])
        except ValueError as error:
            return str(error)


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(minutes=2)
    )
    kept = {"failure": failure(rank)}
    for name, (detector, loss, counts, everywhere) in CASES.items():
        images, targets = batch(counts)
        own = slice(2 * rank, 2 * rank + 2)
        group = dist.group.WORLD if everywhere else None
        kept[name] = gradient(detector, loss, images[own], targets[own], group)
    torch.save(kept, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    forkserver()
    mp.start_processes(work, args=(str(folder),), nprocs=2, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_step_as_one_does(by_rank, name):
    detector, loss, counts, _ = CASES[name]
    value, expected = gradient(detector, loss, *batch(counts))
    (first, own), (second, other) = (kept[name] for kept in by_rank)
    assert torch.equal(own, other)
    difference = float((own - expected).norm() / expected.norm().clamp_min(1e-12))
    if name == "each for itself":
        assert difference > 0.1  # ranking losses do see the difference
    else:
        assert difference < 1e-5
        assert float(first + second) / 2 == pytest.approx(float(value), rel=1e-5, abs=1e-6)


def test_a_failed_evaluation_stops_every_process(by_rank):
    said = (
        "the evaluation during training failed (ValueError: ground truth must be an object with images, annotations "
        "and categories, got no annotations); --val_every 0 trains without it"
    )
    assert [kept["failure"] for kept in by_rank] == [said, said]


# --- how a run is spread --------------------------------------------------------------------------------------------


@pytest.fixture
def environment(monkeypatch):
    """Sets a launcher's variables, and no others."""

    def launched(**variables):
        for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "RANK", "LOCAL_RANK"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    return launched


@pytest.mark.parametrize(
    ("variables", "settings", "expected"),
    [
        ({}, {}, (1, 1, 1)),
        ({}, {"devices": "2"}, (2, 1, 2)),
        ({}, {"devices": "2", "nodes": 3}, (2, 3, 6)),  # Slurm, or one command on each machine
        ({"WORLD_SIZE": 8, "LOCAL_WORLD_SIZE": 8, "GROUP_WORLD_SIZE": 1}, {}, (8, 1, 8)),  # torchrun
        ({"WORLD_SIZE": 12, "LOCAL_WORLD_SIZE": 4, "GROUP_WORLD_SIZE": 3}, {}, (4, 3, 12)),
        ({"WORLD_SIZE": 12, "LOCAL_RANK": 1}, {"nodes": 3}, (4, 3, 12)),  # what Lightning starts itself
    ],
)
def test_launchers_are_understood(environment, variables, settings, expected):
    environment(**variables)
    launch = Launch.of(tiny(**settings))
    assert (launch.devices, launch.nodes, launch.processes) == expected


def test_processes_wait_as_long_as_they_are_told(environment):
    environment()
    assert Launch.of(tiny()).strategy() == "auto"
    assert Launch.of(tiny(devices="2", timeout=7)).strategy()._timeout == timedelta(seconds=7)
    with pytest.raises(UsageError, match="timeout must be at least 1, got 0"):
        tiny(timeout=0)


@pytest.mark.parametrize(
    ("processes", "batch", "accumulate"), [(1, 4, 6), (2, 4, 3), (3, 4, 2), (4, 3, 2), (8, 3, 1), (24, 1, 1)]
)
def test_updates_keep_their_images_on_other_processes(environment, processes, batch, accumulate):
    environment()
    config = tiny(devices=str(processes), data_batch_size=4)
    launch = Launch.of(config)
    config = launch.with_images_per_update(config, 24)
    assert (config.data.batch_size, config.optim.accumulate) == (batch, accumulate)
    assert launch.images_per_update(config) == 24


def test_an_uneven_share_is_refused(environment):
    environment()
    with pytest.raises(ValueError, match="number of processes must divide the 24 images of an update, got 5"):
        Launch.of(tiny(devices="5")).with_images_per_update(tiny(devices="5"), 24)


@pytest.mark.parametrize("length", [24, 30, 47, 7])
def test_an_update_has_the_same_images_however_many_processes_share_it(length):
    """12 images an update; what does not fill one is left out, unless it is all there is."""

    def updates(world):
        samplers = [EpochSampler(length, seed=3, rank=rank, world=world, update=12) for rank in range(world)]
        shares = [[index for _, index in sampler] for sampler in samplers]
        assert {len(share) for share in shares} == {len(samplers[0])}
        own = 12 // world
        return [
            sorted(index for share in shares for index in share[start : start + own])
            for start in range(0, len(shares[0]), own)
        ]

    alone = updates(1)
    assert len(alone) == max(1, length // 12)
    seen = [index for update in alone for index in update]
    assert len(set(seen)) == len(seen)  # no image twice
    for world in (2, 3, 4):
        if length >= 12:
            assert updates(world) == alone
        else:
            assert {index for update in updates(world) for index in update} == set(range(length))


# --- a killed process -----------------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(config, out, rank, port):
    """One of several processes, with the variables that torchrun sets."""
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank}
    variables["WORLD_SIZE"] = config.devices
    variables = {name: str(value) for name, value in variables.items()} | {"OMP_NUM_THREADS": "1"}
    return Command("train", *words(config), "--out", str(out), variables=variables)


def test_a_killed_process_ends_the_other_and_the_run_goes_on_with_one(tmp_path, environment):
    environment()
    torch.set_num_threads(1)
    settings = {"loss": "rank_sort", "global_ranking": True, "val_every": 0, "evaluate": False, "optim_epochs": 15}
    config = tiny(devices="2", data_batch_size=2, timeout=30, **settings)
    run, port = tmp_path / "run", free_port()
    first, second = (launch(config, run, rank, port) for rank in (0, 1))
    try:
        first.wait_for("epoch 2/15")
        killed = time.monotonic()
        second.send_signal(signal.SIGKILL)
        status, _, said = first.wait(60)
    finally:
        for process in (first, second):
            process.kill()
    assert time.monotonic() - killed < 30 + 15  # what is left is the end of a process
    assert status == 1
    sentence = re.escape(f"the last checkpoint is kept, continue with: concordet train --resume {run}")
    assert re.search(f"concordet: error: another process of this run has failed, was killed .*; {sentence}", said)
    assert "Traceback" not in said

    reached = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert 2 <= reached["epoch"] + 1 < 15
    assert train(tiny(devices="1", data_batch_size=4, **settings), run, resume=True) == run
    with (run / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["lr"]]
    # three updates of four images an epoch throughout, on one schedule
    assert [int(row["step"]) for row in rows] == list(range(45))
    assert [int(row["epoch"]) for row in rows] == [step // 3 for step in range(45)]
    factor = learning_rate_factor(config.optim, 45)  # the rate logged is the next update's
    assert [float(row["lr"]) for row in rows] == pytest.approx(
        [1e-3 * factor(step + 1) for step in range(45)], abs=1e-9
    )


# --- slow processes, and processes without data ---------------------------------------------------------------------

SOME = [pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow), 4]
LOST = "another process of this run has failed, was killed or has not answered for"


@pytest.fixture
def one_with_data(tmp_path):
    """Settings for four images, of which one has objects: at most one process has any in an update."""
    root = tmp_path / "data"
    for name in "abcd":
        save(root, name)
    content = json.loads(coco_json("abcd"))
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] == 0]
    path = write(root / "boxes.json", json.dumps(content))
    data = {"data_name": "coco", "data_train_annotations": str(path), "data_train_options": {}, "data_val_options": {}}
    run = {"loss": "rank_sort+concordance(0.3)", "global_ranking": True, "val_every": 0, "evaluate": False}
    return data | run | {"data_batch_size": 1, "optim_epochs": 1000}


@pytest.fixture
def group(environment, tmp_path):
    """Starts the processes of a run; those that a failed test leaves are killed."""
    environment()
    started = []

    def start(config):
        port = free_port()
        started.extend(launch(config, tmp_path / "run", rank, port) for rank in range(int(config.devices)))
        return started

    yield start
    for process in started:
        process.kill()


def check_lost(processes, run):
    """Every process ends, with the sentence that says how to continue."""
    for process in processes:
        status, _, said = process.wait(100)
        assert status == 1, said
        assert re.search(
            rf"concordet: error: {LOST} .*continue with: concordet train --resume {re.escape(str(run))}", said
        )
        assert "Traceback" not in said
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["epoch"] >= 1


@pytest.mark.parametrize("size", SOME)
def test_one_process_with_data_one_slow_one_killed(size, one_with_data, group, tmp_path):
    processes = group(tiny(devices=str(size), timeout=60, **one_with_data))
    first, *_, last = processes
    first.wait_for("epoch 2/")
    processes[1].send_signal(signal.SIGSTOP)
    time.sleep(1)
    processes[1].send_signal(signal.SIGCONT)
    first.wait_for("update ")  # the others have waited
    first.wait_for("update ")
    last.send_signal(signal.SIGKILL)
    check_lost(processes[:-1], tmp_path / "run")
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        losses = [
            float(row[key]) for row in csv.DictReader(file) for key in row if key.startswith("train/") and row[key]
        ]
    assert losses
    assert all(math.isfinite(value) for value in losses)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_process_that_does_not_answer(size, one_with_data, group, tmp_path):
    """The others give up after the timeout, and it gives up when it goes on."""
    processes = group(tiny(devices=str(size), timeout=5, **one_with_data))
    *others, last = processes
    others[0].wait_for("epoch 2/")
    last.send_signal(signal.SIGSTOP)
    check_lost(others, tmp_path / "run")
    last.send_signal(signal.SIGCONT)
    check_lost([last], tmp_path / "run")
