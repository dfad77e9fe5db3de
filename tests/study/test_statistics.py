"""Statistics of studies, against SciPy and against data sets whose answer is known."""

import math

import numpy as np
import pytest
from scipy import stats

from concordet.measures.bootstrap import MEASURES
from concordet.study import statistics
from concordet.study.statistics import hierarchical, holm, seeds_needed, sentence


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
    statistics._correct([{"differences": {name: row}}], 0.05)
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
