"""The studies of the losses run and show what the papers say."""

from __future__ import annotations

import pytest

from concordet.benchmark.results import read_rows
from concordet.benchmark.synthetic import Options
from studies import losses


def test_only_ranking_losses_balance_gradients(tmp_path):
    """aLRP Loss, Figure 4: the ratio is 1 for ranking losses and varies for focal loss and cross entropy."""
    rows = losses.balance(Options(out=tmp_path / "balance.csv"))
    ratios = {}
    for row in rows:
        ratios.setdefault(row["loss"], []).append(row["ratio"])
    for loss in ("AP", "aLRP", "RS, ranking term"):
        assert ratios[loss] == pytest.approx([1.0] * len(ratios[loss]), rel=1e-5)
    assert ratios["RS, both terms"][0] > 0.9  # sorting moves gradient from positives to positives
    assert ratios["RS, both terms"][-1] < 0.1
    for loss in ("focal", "cross entropy"):
        assert max(ratios[loss]) / min(ratios[loss]) > 2
    assert (tmp_path / "balance.svg").stat().st_size > 1000


def test_operations_do_not_depend_on_the_number_of_positives(tmp_path):
    options = Options(logits=(20_000,), shares=(0.001, 0.05), threads=1, out=tmp_path / "synthetic.csv")
    rows = {(row["case"], row["share"]): row["operations"] for row in losses.synthetic(options)}
    assert rows["exact", 0.05] < 6 * rows["exact", 0.001]
    assert rows["loop", 0.05] > 20 * rows["loop", 0.001]


def test_the_command_writes_rows_and_plots(tmp_path):
    losses.main(["surfaces", "--out", str(tmp_path / "surfaces.csv")])
    rows = read_rows(tmp_path / "surfaces.csv")
    assert [row["loss"] for row in rows] == list(losses.SURFACES)
    assert all(row["torch"] for row in rows)
    assert (tmp_path / "surface_focal.png").stat().st_size > 1000
