"""A step of two DDP processes moves weights as one process with the doubled batch does."""

import multiprocessing
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from concordet.detectors import build_detector
from concordet.losses import rank_over
from concordet.losses.checks import value_checks

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


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(minutes=2)
    )
    kept = {}
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
    multiprocessing.set_forkserver_preload([__name__])
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
