"""Statistics of studies, against SciPy and against data sets whose answer is known."""

import math

import numpy as np
import pytest
from scipy import stats

from concordet.measures.bootstrap import MEASURES
from concordet.study import statistics
from concordet.study.statistics import StandardError, hierarchical, holm, seeds_needed, sentence


def simulated(rng, n_seeds, *, mean, seed_spread, image_spread, draws=400, n_images=200):
    """``[n_seeds, 1 + draws]`` differences of a metric that is a mean over images, as the bootstrap sees them."""
    images = image_spread * rng.normal(size=n_images)  # what images do to all seeds alike
    seeds = mean + seed_spread * rng.normal(size=n_seeds)
    columns = [images.mean()] + [images[rng.integers(0, n_images, n_images)].mean() for _ in range(draws)]
    return seeds[:, None] + np.array(columns)


class TestHierarchical:
    def test_the_spread_counts_seeds_and_images(self):
        """Over many studies the draws' variance is that of the mean: seeds / n + images / their number."""
        rng = np.random.default_rng(0)
        found = []
        for _ in range(300):
            differences = simulated(rng, 5, mean=0.0, seed_spread=0.02, image_spread=0.2)
            found.append(hierarchical(differences, 1)[1].var())
        expected = 0.02**2 / 5 + 0.2**2 / 200
        assert np.mean(found) == pytest.approx(expected, rel=0.1)

    def test_one_seed_counts_images_only(self):
        rng = np.random.default_rng(1)
        differences = simulated(rng, 1, mean=0.1, seed_spread=0.0, image_spread=0.2)
        value, drawn = hierarchical(differences, 1)
        assert value == differences[0, 0]
        assert (drawn == differences[0, 1:]).all()

    def test_without_spread_of_images_it_is_that_of_the_seeds(self):
        seeds = np.array([0.01, 0.03, 0.02, 0.05])
        value, drawn = hierarchical(np.repeat(seeds[:, None], 20_001, axis=1), 0)
        assert value == pytest.approx(seeds.mean())
        assert drawn.std() == pytest.approx(stats.sem(seeds), rel=0.02)


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize(("seed_spread", "image_spread"), [(0.01, 0.0), (0.01, 0.1), (0.001, 0.1)])
def test_intervals_contain_the_truth(n, seed_spread, image_spread):
    """In at least 95 of 100 studies, and p is below 0.05 exactly where 0 is outside."""
    rng = np.random.default_rng(7)
    inside = []
    for _ in range(300):
        found = simulated(rng, n, mean=0.0, seed_spread=seed_spread, image_spread=image_spread, draws=200)
        value, drawn = hierarchical(found, 1)
        error = StandardError.of(found[:, 0], drawn)
        inside.append(abs(value) <= error.half_width(0.05))
        assert (error.p_value(value) >= 0.05) == inside[-1]
        assert error.half_width(error.p_value(value)) == pytest.approx(abs(value))
    assert np.mean(inside) >= 0.95 - 2 * math.sqrt(0.95 * 0.05 / 300)


@pytest.mark.parametrize("n", [2, 4, 10])
def test_without_variance_over_images_it_is_the_paired_t_test(n):
    differences = np.random.default_rng(n).normal(0.01, 0.01, n)
    test = stats.ttest_1samp(differences, 0)
    error = StandardError(differences.var(ddof=1) / n, 0.0, n)
    assert error.p_value(differences.mean()) == pytest.approx(test.pvalue)
    low, high = test.confidence_interval(0.95)
    assert 2 * error.half_width(0.05) == pytest.approx(high - low)
    assert StandardError(0.0, 0.04, n).p_value(0.3) == pytest.approx(2 * stats.norm.sf(1.5))


def test_holm_equals_a_loop_over_the_definition():
    """Hypotheses are rejected from the smallest p on while p <= level / (number left)."""
    rng = np.random.default_rng(3)
    for _ in range(50):
        p_values = rng.random(rng.integers(1, 8)) ** 3
        corrected = holm(p_values.tolist())
        for level in (0.01, 0.05, 0.2):
            rejected, left = set(), len(p_values)
            for index in np.argsort(p_values):
                if p_values[index] > level / left:
                    break
                rejected.add(int(index))
                left -= 1
            assert {i for i, p in enumerate(corrected) if p <= level} == rejected


@pytest.mark.parametrize("value", [-0.02, 0.02])
@pytest.mark.parametrize("name", MEASURES)
def test_verdicts_know_which_direction_is_better(name, value):
    lower_is_better = {"oLRP", "LaECE0", "LaACE0", "D_ECE"}
    row = {"value": value, "low": value - 1e-3, "high": value + 1e-3, "p": 1e-6}
    statistics._correct([{"differences": {name: row}, "n_pairs": 2}], 0.05)
    assert row["verdict"] == ("better" if (value < 0) == (name in lower_is_better) else "worse")


@pytest.mark.parametrize("spread", [0.003, 0.01])
def test_so_many_seeds_have_the_power(spread):
    """Simulated t-tests with that number of seeds see the difference in four of five studies."""
    rng = np.random.default_rng(4)
    n = seeds_needed(spread)

    def power(count):
        values = 0.005 + spread * rng.normal(size=(4000, count))
        return np.mean(stats.ttest_1samp(values, 0, axis=1).pvalue < 0.05)

    assert power(n) >= 0.78
    assert power(max(n - 2, 2)) < 0.8 or n <= 3
    assert math.isfinite(n)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["better", "may be chance"], "a is better, 2.0 points of AP above default (1.0 to 3.0) over 4 seeds"),
        (
            ["better", "better"],
            "2 losses are better, a has the highest AP, 2.0 points of AP above default (1.0 to 3.0) over 4 seeds",
        ),
        (["may be chance", "worse"], "no loss can be seen to be better than default over 4 seeds"),
        (["worse", "worse"], "all other losses are worse than default over 4 seeds"),
    ],
)
def test_the_sentence_says_what_the_verdicts_say(verdicts, expected):
    entries = [
        {
            "loss": name,
            "n_pairs": 4,
            "differences": {"AP": {"value": value, "low": value - 0.01, "high": value + 0.01, "verdict": verdict}},
        }
        for name, value, verdict in zip("ab", (0.02, 0.01), verdicts, strict=True)
    ]
    group = {"detector": "atss", "variant": "", "losses": [{"loss": "default"}, *entries]}
    assert expected in sentence({"reference": "default", "groups": [group]})


def entry(loss, n_pairs, value, p):
    row = {"value": value, "low": value - 0.01, "high": value + 0.01, "p": p}
    return {"loss": loss, "n_pairs": n_pairs, "differences": {"AP": row}}


def test_one_seed_has_no_verdict_and_no_part_in_the_correction():
    entries = [entry("a", 5, 0.02, 0.03), entry("b", 1, 0.05, 1e-9), entry("c", 1, 0.01, 1e-9)]
    statistics._correct(entries, 0.05)
    assert [e["differences"]["AP"]["verdict"] for e in entries] == ["better", "one seed", "one seed"]
    group = {"detector": "atss", "variant": "", "losses": [{"loss": "default"}, *entries]}
    states = {"finished": 8, "failed": 3, "unfinished": 1, "new": 0}
    assert sentence({"reference": "default", "groups": [group], "states": states}) == (
        "atss: a is better, 2.0 points of AP above default (1.0 to 3.0) over 5 seeds; "
        "4 of 12 runs are not finished or have failed."
    )
    group["losses"] = [{"loss": "default"}, *entries[1:]]
    assert sentence({"reference": "default", "groups": [group]}) == "atss: one seed cannot tell which loss is better."
