from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from concordet.measures import class_correlation, image_correlation, pooled_correlation
from tests.measures.reference import lin

pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=60)


def spearman(x, y):
    if len(set(x)) < 2 or len(set(y)) < 2:
        return None
    return stats.spearmanr(x, y).statistic


@settings(deadline=None, max_examples=150)
@given(pairs)
def test_grouped_spearman_is_scipys_with_ties_and_small_groups(rows):
    x, y, groups = (np.array(column, float) for column in zip(*rows, strict=True))
    report = class_correlation(x / 7, y / 7, groups.astype(int))
    for group in set(groups.astype(int).tolist()):
        chosen = groups == group
        expected = spearman(x[chosen], y[chosen])
        assert report.counts[group] == chosen.sum()
        if expected is None:
            assert report.per_group[group] is None
        else:
            assert report.per_group[group] == pytest.approx(expected, abs=1e-12)
    defined = [v for v in report.per_group.values() if v is not None]
    assert report.n_defined == len(defined)
    if defined:
        assert report.value == pytest.approx(np.mean(defined), abs=1e-12)
        assert report.reason is None
    else:
        assert report.value is None
        assert "two or more detections" in report.reason


def test_many_values_in_any_order():
    rng = np.random.default_rng(3)
    scores, ious, images = rng.random(3000), rng.random(3000), rng.integers(0, 9, 3000)
    report = image_correlation(scores, ious, images)
    expected = [stats.spearmanr(scores[images == i], ious[images == i]).statistic for i in range(9)]
    assert report.value == pytest.approx(np.mean(expected), abs=1e-12)
    shuffled = rng.permutation(3000)
    again = image_correlation(scores[shuffled], ious[shuffled], images[shuffled])
    assert again.value == pytest.approx(report.value, abs=1e-12)


def test_perfect_agreement_is_one_and_reversal_minus_one():
    ious = np.linspace(0.5, 1, 11)
    assert class_correlation(ious**3, ious, np.zeros(11)).value == 1.0
    assert class_correlation(-ious, ious, np.zeros(11)).value == -1.0


def test_only_groups_with_a_correlation_are_averaged_and_names_may_be_text():
    report = class_correlation([0.1, 0.2, 0.3, 0.4, 0.5], [0.6, 0.7, 0.9, 0.8, 0.8], ["b", "b", "a", "c", "c"])
    assert report.per_group == {"a": None, "b": 1.0, "c": None}
    assert (report.value, report.n_groups, report.n_defined) == (1.0, 3, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_torch_tensors_are_taken(dtype):
    scores = torch.tensor([0.25, 0.5, 0.75], dtype=dtype, requires_grad=True)
    report = image_correlation(scores, torch.tensor([0.5, 0.75, 1.0], dtype=dtype), torch.tensor([4, 4, 4]))
    assert report.per_group == {4: 1.0}


@pytest.mark.parametrize("seed", range(4))
def test_pooled_coefficients_are_scipys_and_lins(seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 12, 80) / 12 if seed % 2 else rng.random(80)
    y = np.clip(x + rng.normal(0, 0.2, 80), 0, 1)
    for name, expected in (
        ("pearson", stats.pearsonr(x, y).statistic),
        ("spearman", stats.spearmanr(x, y).statistic),
        ("kendall", stats.kendalltau(x, y).statistic),
        ("concordance", lin(x, y)),
    ):
        value, reason = pooled_correlation(x, y, name)
        assert value == pytest.approx(expected, abs=1e-12)
        assert reason is None


@pytest.mark.parametrize("name", ["pearson", "spearman", "kendall"])
def test_constant_side_has_no_correlation(name):
    assert pooled_correlation([0.5, 0.5], [0.6, 0.7], name) == (None, "all scores are equal")
    assert pooled_correlation([0.5, 0.6], [0.7, 0.7], name) == (None, "all IoUs are equal")


def test_concordance_with_constant_sides():
    assert pooled_correlation([0.5, 0.5], [0.6, 0.7], "concordance")[0] == 0.0
    assert pooled_correlation([0.5, 0.5], [0.6, 0.6], "concordance")[0] == 0.0
    assert pooled_correlation([0.5, 0.5], [0.5, 0.5], "concordance") == (None, "all scores and all IoUs are equal")


def test_empty_input_is_undefined_with_a_reason():
    for report in (class_correlation([], [], []), image_correlation([], [], [])):
        assert report.value is None
        assert "0 detections" in report.reason
    assert pooled_correlation([], [], "pearson")[0] is None


def test_errors_name_the_place():
    with pytest.raises(ValueError, match=r"scores\[1\] must be a finite number, got nan"):
        class_correlation([0.1, float("nan")], [0.1, 0.2], [1, 1])
    with pytest.raises(ValueError, match="must have equal lengths, got 2 and 1"):
        class_correlation([0.1, 0.2], [0.1], [1, 1])
    with pytest.raises(ValueError, match="one label for each of 2 scores"):
        image_correlation([0.1, 0.2], [0.1, 0.2], [1])
    with pytest.raises(ValueError, match="one-dimensional array of numbers"):
        image_correlation([["a"]], [0.1], [1])
    with pytest.raises(
        ValueError, match="coefficient must be one of pearson, spearman, kendall, concordance, got 'cosine'"
    ):
        pooled_correlation([0.1, 0.2], [0.1, 0.2], "cosine")
