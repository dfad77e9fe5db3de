"""The benchmark of the losses runs, and its loop over positives is the published algorithm."""

from __future__ import annotations

import torch

from concordet.benchmark import losses
from concordet.losses import functional as F


def test_the_loop_over_positives_is_ap_loss():
    data = losses.Data.make(2000, 0.02)
    (expected,) = torch.autograd.grad(F.ap_loss(data.logits, data.labels), data.logits)
    torch.testing.assert_close(losses.loop_over_positives(data), expected, rtol=1e-4, atol=1e-7)


def test_a_cell_is_measured():
    rows = losses.measure(1000, 0.01, budget=0.0, threads=1, loop=True)
    assert [row["case"] for row in rows] == [*losses.CASES, *losses.COMPILED, "AP loop"]
    assert all(row["median_ms"] > 0 for row in rows)
    assert (rows[0]["ratio"], rows[0]["ratio_q25"], rows[0]["ratio_q75"]) == (1, 1, 1)
