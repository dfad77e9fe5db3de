"""Two processes with half of a batch each give the gradient of one with all of it, averaged as DDP averages."""

import os
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from concordet.detectors import list_detectors
from tests.detectors.scenes import batch, build
from tests.processes import forkserver

# ranking losses rank a process's own batch unless they are told otherwise, see tests/engine/test_processes.py
SAMPLING = {"faster_rcnn", "cascade_rcnn", "mask_rcnn", "co_detr"}  # with their default loss, at random
LOSSES = {
    "default": [n for n in list_detectors() if n not in SAMPLING],
    "focal": list_detectors(),  # which never samples
    "focal+pse": ["fcos", "atss"],
}
CASES = [(loss, name) for loss, names in LOSSES.items() for name in names]


def gradients(loss, name, images, targets):
    """Of the parameters; batch norms keep their statistics, which differ between processes unless synchronized."""
    model = build(name, loss).double()  # in float32 some gradients are chaotic, and differ from processor to processor
    for module in model.modules():
        module.training = module is model
    terms = model([image.double() for image in images], targets)
    sum(terms.values()).backward()
    return {k: p.grad for k, p in model.named_parameters()}, sum(v.detach() for v in terms.values())


def halves(rank):
    """Five objects and none in one process, two and one in the other."""
    images, targets = batch(5, 0, 2, 1)
    return images[2 * rank : 2 * rank + 2], targets[2 * rank : 2 * rank + 2]


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(minutes=2)
    )
    found = {}
    for case in CASES:
        own, total = gradients(*case, *halves(rank))
        for value in own.values():
            dist.all_reduce(value)
            value /= 2
        dist.all_reduce(total)
        found[case] = own, total / 2
    if rank == 0:
        torch.save(found, os.path.join(folder, "found.pt"))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    forkserver()  # everything is imported once
    mp.start_processes(work, args=(str(folder),), nprocs=2, start_method="forkserver")
    return torch.load(folder / "found.pt")


@pytest.mark.parametrize(("loss", "name"), CASES)
def test_two_processes_equal_one_with_the_doubled_batch(averaged, loss, name):
    expected, total = gradients(loss, name, *batch(5, 0, 2, 1))
    got, value = averaged[loss, name]
    torch.testing.assert_close(value, total, rtol=1e-7, atol=1e-9)
    largest = max(float(g.abs().max()) for g in expected.values())
    for parameter, gradient in expected.items():
        torch.testing.assert_close(got[parameter], gradient, rtol=1e-6, atol=1e-7 * largest, msg=parameter)
