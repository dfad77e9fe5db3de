"""Statistics of studies, against SciPy and against data sets whose answer is known."""

import math

import numpy as np
import pytest
from scipy import stats

from concordet.measures.bootstrap import MEASURES
from concordet.study import statistics
from concordet.study.statistics import StandardError, holm, seeds_needed, sentence


def simulated(rng, n_seeds, *, seed_spread, image_spread, own_spread, draws=200, n_images=100):
    """``[n_seeds, 1 + draws]`` differences of a metric that is a mean over images, whose true value is 0.

    Image effects have a part that is the same for all seeds, and one of each seed's own.
    """
    weights = rng.multinomial(n_images, np.full(n_images, 1 / n_images), size=draws)
    weights = np.vstack([np.ones(n_images), weights]) / n_images
    images = image_spread * rng.normal(size=n_images) + own_spread * rng.normal(size=(n_seeds, n_images))
    return seed_spread * rng.normal(size=(n_seeds, 1)) + images @ weights.T


SPREADS = [(0.01, 0.0, 0.0), (0.01, 0.1, 0.0), (0.001, 0.1, 0.0), (0.002, 0.02, 0.1), (0.0, 0.05, 0.1)]


class TestStandardError:
    @pytest.mark.parametrize("spreads", SPREADS)
    def test_its_square_is_the_variance_of_the_mean(self, spreads):
        """Over many studies: seeds / n + images / their number + a seed's own image effects / both."""
        rng = np.random.default_rng(0)
        seed, image, own = spreads
        found = []
        for _ in range(300):
            study = simulated(rng, 5, seed_spread=seed, image_spread=image, own_spread=own)
            error = StandardError.of(study)
            found.append(error.over_seeds + error.over_images)
        expected = seed**2 / 5 + image**2 / 100 + own**2 / 500
        # variances are at least 0, which makes small ones a little larger on average
        assert 0.9 * expected < np.mean(found) < 1.3 * expected

    def test_one_seed_counts_images_only(self):
        study = simulated(np.random.default_rng(1), 1, seed_spread=0.5, image_spread=0.2, own_spread=0.0)
        error = StandardError.of(study)
        assert error.over_seeds == 0
        assert error.over_images == pytest.approx(study[0, 1:].var(ddof=1))

    def test_without_spread_of_images_it_is_that_of_the_seeds(self):
        seeds = np.array([0.01, 0.03, 0.02, 0.05])
        error = StandardError.of(np.repeat(seeds[:, None], 20, axis=1))
        assert error.over_seeds == pytest.approx(stats.sem(seeds) ** 2)
        assert error.over_images == pytest.approx(0, abs=1e-30)


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("spreads", SPREADS)
def test_intervals_contain_the_truth(n, spreads):
    """In at least 95 of 100 studies, and p is below 0.05 exactly where 0 is outside."""
    rng = np.random.default_rng(7)
    inside = []
    for _ in range(600):
        study = simulated(rng, n, seed_spread=spreads[0], image_spread=spreads[1], own_spread=spreads[2])
        value, error = study[:, 0].mean(), StandardError.of(study)
        inside.append(abs(value) <= error.half_width(0.05))
        assert (error.p_value(value) >= 0.05) == inside[-1]
        assert error.half_width(error.p_value(value)) == pytest.approx(abs(value))
    assert np.mean(inside) >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 600)


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


def test_seeds_do_not_replace_images():
    """At the limit, a difference between many seeds is seen in four of five sets of images."""
    rng = np.random.default_rng(5)
    error = StandardError(0.0, 0.002**2, 1000)
    means = error.limit_of_images() + 0.002 * rng.normal(size=20_000)
    assert np.mean(means > error.half_width(0.05)) == pytest.approx(0.8, abs=0.01)


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
