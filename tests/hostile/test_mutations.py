"""Changed inputs of every kind are used or refused with one sentence that names the file; nothing else happens."""

import os
import random

import pytest

from concordet.engine.training import fit
from concordet.engine.training.schedule import build_optimizer, learning_rate_factor

from .kinds import KINDS, MORE
from .oracle import judge

FAST = [(kind, seed) for kind in KINDS for seed in range(kind.cases)]


@pytest.fixture(scope="module")
def run(finished):
    return finished


@pytest.fixture(autouse=True)
def no_training(monkeypatch):
    """Everything that ``train`` does before the first update, but for runs that are resumed."""
    whole = fit._fit

    def first_steps(config, out, launch, model, meta, datasets, point):
        if point is not None:
            whole(config, out, launch, model, meta, datasets, point)
            return
        build_optimizer(model, config.optim)
        learning_rate_factor(config.optim, 10)(0)
        assert datasets[0][0]

    monkeypatch.setattr(fit, "_fit", first_steps)
    monkeypatch.setattr(fit, "evaluate_run", lambda *args, **options: None)
    monkeypatch.setitem(os.environ, "COLUMNS", "200")


def check(kind, seed, root, run):
    judge(kind.make(root, random.Random(f"{kind.name}{seed}"), run))


def test_the_number_of_cases():
    assert len(FAST) >= 300
    assert MORE * len(FAST) >= 5000


@pytest.mark.parametrize(("kind", "seed"), FAST, ids=lambda value: getattr(value, "name", value))
def test_mutations(kind, seed, tmp_path, run):
    check(kind, seed, tmp_path, run)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_many_mutations(kind, tmp_path, run):
    failures = []
    for seed in range(kind.cases, (MORE + 1) * kind.cases):
        try:
            check(kind, seed, tmp_path / str(seed), run)
        except AssertionError as error:
            failures.append(f"{seed}: {str(error)[:500]}")
    assert not failures, "\n".join(failures)
