"""No criterion makes the host wait for a device, so that training steps stay asynchronous on a GPU."""

import pytest

from concordet.losses import build_criterion, list_losses
from concordet.losses.functional import checks
from tests.losses.test_criteria import record
from tests.ranking.interpreted import NoWaiting

NAMES = [name for name in list_losses() if name[0] != "+"]
COUPLINGS = [f"focal{name}" for name in list_losses() if name[0] == "+" and name not in ("+centerness", "+iou_head")]


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith("bucketed")] + COUPLINGS)
def test_no_criterion_waits(name, monkeypatch):
    monkeypatch.setattr(checks, "on_host", lambda tensor: False)
    criterion = build_criterion(name).train()
    assigned = record()
    with NoWaiting():  # ranking itself is looked into by tests/ranking/interpreted.py
        sum(criterion(assigned).values()).backward()
    assert assigned.logits.grad.isfinite().all()
