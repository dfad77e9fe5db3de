from __future__ import annotations

import math

import pytest

from concordet.measures.metrics import BY_KEY, METRICS, MISSING, pick


def test_metrics_of_a_comparison_of_runs():
    assert [m.key for m in METRICS] == [
        "AP", "AP50", "AP75", "AP90", "beta_img", "beta_cls", "oLRP", "AIC", "AIC_mean", "LaECE0", "LaACE0", "D_ECE",
        "seconds_per_iteration",
    ]  # fmt: skip
    lower = {m.key for m in METRICS if m.better == "lower"}
    assert lower == {"oLRP", "AIC", "AIC_mean", "LaECE0", "LaACE0", "D_ECE", "seconds_per_iteration"}
    assert {m.arrow for m in METRICS if m.better == "lower"} == {"↓"}
    assert all(m.explanation.endswith(".") for m in METRICS)


@pytest.mark.parametrize("value", [None, math.nan, "0.5", True])
def test_what_is_no_number_is_missing(value):
    assert pick(METRICS, {"AP": value})["AP"] is None
    assert BY_KEY["AP"].verdict(0.5, pick(METRICS, {"AP": value})["AP"]) == "unknown"
    assert BY_KEY["AP"].text(pick(METRICS, {"AP": value})["AP"]) == MISSING


@pytest.mark.parametrize(
    ("key", "before", "after", "verdict", "difference"),
    [
        ("AP", 0.400, 0.412, "better", "+1.2"),
        ("AP", 0.412, 0.400, "worse", "−1.2"),
        ("AP", 0.4001, 0.4004, "same", "±0"),
        ("AP", 0.4004, 0.4006, "better", "+0.1"),  # printed 40.0 and 40.1: the difference agrees with the print
        ("oLRP", 0.66, 0.61, "better", "−5.0"),
        ("AIC_mean", 0.1, 0.2, "worse", "+0.100"),
        ("AP", None, 0.4, "unknown", MISSING),
    ],
)
def test_verdicts_and_differences_follow_the_printed_figures(key, before, after, verdict, difference):
    assert BY_KEY[key].verdict(before, after) == verdict
    assert BY_KEY[key].difference(before, after) == difference


def test_the_best_are_marked_only_where_values_differ():
    ap, error = BY_KEY["AP"], BY_KEY["oLRP"]
    assert ap.best([0.4, 0.5, None]) == {1}
    assert ap.best([0.5001, 0.4, 0.5002]) == {0, 2}
    assert ap.best([0.5, 0.5]) == set()
    assert ap.best([0.5]) == set()
    assert error.best([0.7, 0.6]) == {1}


def test_minus_is_a_minus_and_zero_has_no_sign():
    beta = BY_KEY["beta_cls"]
    assert beta.text(-0.024) == "−0.024"
    assert beta.text(-0.0001) == "0.000"
