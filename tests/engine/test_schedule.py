"""Learning rates against torch's own schedulers; which parameters decay."""

import pytest
import torch
from torch import nn

from concordet.engine.config import OptimConfig
from concordet.engine.training.schedule import build_optimizer, learning_rate_factor, parameter_groups, warmup_updates

TOTAL = 40


def rates_of(make_scheduler):
    """The learning rate that torch's scheduler has at each update, from 1."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make_scheduler(optimizer)
    rates = []
    for _ in range(TOTAL):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_onecycle_equals_torch():
    factor = learning_rate_factor(OptimConfig(schedule="onecycle", warmup=12), TOTAL)
    # torch peaks at update pct_start * total_steps - 1, and reaches zero at the last of its updates; ours one later
    steps = TOTAL + 1
    theirs = rates_of(
        lambda o: torch.optim.lr_scheduler.OneCycleLR(
            o, max_lr=1.0, total_steps=steps, pct_start=13 / steps, cycle_momentum=False, final_div_factor=1e12
        )
    )
    assert [factor(u) for u in range(TOTAL)] == pytest.approx(theirs, abs=1e-9)


def test_cosine_equals_torch():
    factor = learning_rate_factor(OptimConfig(schedule="cosine", warmup=0), TOTAL)
    theirs = rates_of(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=TOTAL))
    assert [factor(u) for u in range(TOTAL)] == pytest.approx(theirs, abs=1e-12)


def test_step_equals_torch():
    factor = learning_rate_factor(OptimConfig(schedule="step", warmup=0), 36)
    theirs = rates_of(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, milestones=[24, 33]))
    assert [factor(u) for u in range(36)] == pytest.approx(theirs[:36])


def test_milestones_equal_torch():
    """Of epochs of 7 updates: after the third and the fifth of six, each time to a fifth."""
    factor = learning_rate_factor(
        OptimConfig(schedule="step", warmup=0, epochs=6, milestones=[3, 5], drop=0.2), total=6 * 7
    )
    theirs = rates_of(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, milestones=[21, 35], gamma=0.2))
    assert [factor(u) for u in range(TOTAL)] == pytest.approx(theirs)


def test_warm_up_rises_to_the_full_rate():
    config = OptimConfig(schedule="constant", warmup=4)
    factor = learning_rate_factor(config, TOTAL)
    assert [factor(u) for u in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("config", "total", "updates"),
    [
        (OptimConfig(schedule="onecycle"), 1000, 300),
        (OptimConfig(schedule="cosine"), 1000, 100),
        (OptimConfig(schedule="cosine"), 100_000, 500),
        (OptimConfig(warmup=0.25), 40, 10),
        (OptimConfig(warmup=7), 40, 7),
        (OptimConfig(warmup=500), 40, 39),
        (OptimConfig(), 1, 0),
    ],
)
def test_length_of_the_warm_up(config, total, updates):
    assert warmup_updates(config, total) == updates


def test_norms_and_biases_do_not_decay_and_the_backbone_has_its_rate():
    model = nn.Module()
    model.backbone = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    model.head = nn.Linear(2, 2)
    model.frozen = nn.Linear(2, 2).requires_grad_(False)
    groups = parameter_groups(model, OptimConfig(lr=1.0, backbone_lr_factor=0.1, weight_decay=0.5))
    found = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found[id(model.backbone[0].weight)] == (0.1, 0.5)
    assert found[id(model.backbone[0].bias)] == (0.1, 0.0)
    assert found[id(model.backbone[1].weight)] == (0.1, 0.0)
    assert found[id(model.head.weight)] == (1.0, 0.5)
    assert found[id(model.head.bias)] == (1.0, 0.0)
    assert len(found) == 6
    assert isinstance(build_optimizer(model, OptimConfig(optimizer="sgd")), torch.optim.SGD)
