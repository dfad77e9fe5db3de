"""The benchmark of the losses runs, and its loop over positives is the published algorithm."""

from __future__ import annotations

import pytest
import torch

from concordet.benchmark import loss_studies, losses
from concordet.losses import functional as F


def test_the_loop_over_positives_is_ap_loss():
    data = losses.Data.make(2000, 0.02)
    (expected,) = torch.autograd.grad(F.ap_loss(data.logits, data.labels), data.logits)
    torch.testing.assert_close(losses.loop_over_positives(data), expected, rtol=1e-4, atol=1e-7)


def test_a_cell_is_measured():
    rows = losses.measure(1000, 0.01, budget=0.0, threads=1, loop=True)
    assert [row["what"] for row in rows] == [*losses.WHATS, "AP loop"]
    assert all(row["median_ms"] > 0 for row in rows)
    assert rows[0]["times_focal"] == 1


def test_gradients_are_balanced_by_ranking_losses_alone(tmp_path):
    """aLRP's Figure 4: the ratio is 1 for ranking losses and moves for focal loss and cross entropy."""
    rows = loss_studies.balance(losses.Options(out=tmp_path / "balance.csv"))
    ratios = {}
    for row in rows:
        ratios.setdefault(row["loss"], []).append(row["ratio"])
    for loss in ("AP", "aLRP", "RS"):
        assert ratios[loss] == pytest.approx([1.0] * len(ratios[loss]), rel=1e-5)
    for loss in ("focal", "cross entropy"):
        assert max(ratios[loss]) / min(ratios[loss]) > 2
    assert (tmp_path / "balance.svg").stat().st_size > 1000


def test_operations_do_not_depend_on_the_number_of_positives(tmp_path):
    options = losses.Options(logits=(20_000,), shares=(0.001, 0.05), threads=1, out=tmp_path / "synthetic.csv")
    rows = {(row["what"], row["share"]): row["operations"] for row in loss_studies.synthetic(options)}
    assert rows["exact", 0.05] < 6 * rows["exact", 0.001]
    assert rows["loop", 0.05] > 20 * rows["loop", 0.001]
