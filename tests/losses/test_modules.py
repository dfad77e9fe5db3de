"""Every module equals its function: with the defaults, and with all settings changed."""

import inspect

import pytest
import torch

from concordet import losses
from concordet.losses import functional as F
from concordet.losses.modules.base import FunctionModule

LOGITS = torch.tensor([0.3, -0.8, 1.2, 0.1, -0.4, 0.6, -1.5])
LABELS = torch.tensor([1, 0, 0, 1, 1, 0, -1])
QUALITY = torch.tensor([0.4, 0.0, 0.0, 0.9, 0.6, 0.0, 0.0])
SCORES, IOUS = torch.tensor([0.2, 0.7, 0.5, 0.9]), torch.tensor([0.3, 0.6, 0.9, 0.2])
PROBABILITIES = torch.tensor([[0.9, 0.1], [0.3, 0.6]])
RANKING = {"delta": 0.2, "self_relation": 0.7, "method": "bucketed"}

CASES = {
    "APLoss": (F.ap_loss, (LOGITS, LABELS), {**RANKING, "interpolated": True}),
    "BucketedAPLoss": (F.ap_loss, (LOGITS, LABELS), {"delta": 0.2, "self_relation": 0.7}),
    "ALRPLoss": (F.alrp_loss, (LOGITS, LABELS, 1 - IOUS[:3]), RANKING),
    "RankSortLoss": (F.rank_sort_loss, (LOGITS, LABELS, QUALITY), RANKING),
    "BucketedRankSortLoss": (F.rank_sort_loss, (LOGITS, LABELS, QUALITY), {"delta": 0.2, "self_relation": 0.7}),
    "NDCGLoss": (F.ndcg_loss, (LOGITS, LABELS), RANKING),
    "DistributionalRankingLoss": (
        F.distributional_ranking_loss,
        (LOGITS, LABELS),
        {
            "margin": 0.3,
            "smoothness": 3.0,
            "positive_temperature": 0.5,
            "negative_temperature": 0.2,
            "weight": 2.0,
        },
    ),
    "CorrelationLoss": (F.correlation_loss, (SCORES, IOUS), {"coefficient": "spearman", "strength": 1.0}),
    "AssociationLoss": (
        F.association_loss,
        (SCORES, IOUS),
        {"form": "cross_entropy", "weight": 2.0, "slope": 0.8, "reduction": "sum"},
    ),
    "HarmonicLoss": (F.harmonic_loss, (SCORES, IOUS), {"reduction": "sum"}),
    "HarmonicIoULoss": (F.harmonic_iou_loss, (IOUS,), {"gamma": 0.5, "reduction": "sum"}),
    "TaskContrastiveLoss": (
        F.task_contrastive_loss,
        (PROBABILITIES, torch.tensor([0, 1]), IOUS[:2]),
        {"margin": 0.1, "reduction": "sum"},
    ),
    "FocalLoss": (F.focal_loss, (LOGITS, LABELS.clamp(min=0)), {"alpha": 0.4, "gamma": 1.0, "reduction": "mean"}),
    "QualityFocalLoss": (F.quality_focal_loss, (LOGITS, QUALITY), {"beta": 1.0, "reduction": "mean"}),
    "VarifocalLoss": (F.varifocal_loss, (LOGITS, QUALITY), {"alpha": 0.5, "gamma": 1.0, "reduction": "mean"}),
    "MatchabilityAwareLoss": (F.matchability_aware_loss, (LOGITS, QUALITY), {"gamma": 2.0, "reduction": "mean"}),
}
"""Module: its function, inputs, and another value for every setting but the group."""

FIXED = {"BucketedAPLoss": {"method": "bucketed"}, "BucketedRankSortLoss": {"method": "bucketed"}}
"""Settings of the function that a module fixes."""

CALL_ARGUMENTS = {"n_positives", "positive", "segments", "n_segments"}
"""Keyword arguments that belong to a batch, not to a module."""


def keywords(function):
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def same(first, second):
    first, second = (torch.stack(list(x)) if isinstance(x, tuple) else x for x in (first, second))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_every_module_is_in_the_table():
    modules = {n for n in losses.__all__ if isinstance(getattr(losses, n), type)}
    assert set(CASES) == {n for n in modules if issubclass(getattr(losses, n), FunctionModule)}


def test_every_function_has_a_module():
    used = {function.__name__ for function, _, _ in CASES.values()}
    assert used == {name for name in F.__all__ if name.endswith("_loss")}


@pytest.mark.parametrize("name", CASES)
def test_settings_and_defaults_are_those_of_the_function(name):
    function, _, changed = CASES[name]
    own, theirs = keywords(getattr(losses, name)), keywords(function)
    for setting, default in own.items():
        assert theirs[setting] == default, setting
    left_out = set(theirs) - set(own) - CALL_ARGUMENTS - set(FIXED.get(name, {}))
    assert left_out <= ({"interpolated"} if name == "BucketedAPLoss" else set())
    assert set(changed) == set(own) - {"group"}  # every setting is changed below
    assert all(changed[setting] != own[setting] for setting in changed)


@pytest.mark.parametrize("name", CASES)
def test_values_are_those_of_the_function(name):
    function, inputs, changed = CASES[name]
    module, fixed = getattr(losses, name), FIXED.get(name, {})
    same(module()(*inputs), function(*inputs, **fixed))
    same(module(**changed)(*inputs), function(*inputs, **changed, **fixed))


@pytest.mark.parametrize("name", CASES)
def test_each_setting_changes_the_value(name):
    """No setting is dropped, by the module or by the function; ``strength`` is one of Spearman's."""
    _, inputs, changed = CASES[name]
    module = getattr(losses, name)
    base = {"coefficient": "spearman"} if name == "CorrelationLoss" else {}
    if "interpolated" in changed:
        inputs, base = (torch.tensor([1.0, 0.9, 0.8, 0.7]), torch.tensor([0, 1, 1, 1])), {"delta": 0.3}
    if name == "AssociationLoss":
        base = {"reduction": "sum"}
    for setting, value in changed.items():
        if base.get(setting) == value:
            continue
        first, second = module(**base)(*inputs), module(**{**base, setting: value})(*inputs)
        total = [sum(x) if isinstance(x, tuple) else x for x in (first, second)]
        assert total[0] != total[1], setting


@pytest.mark.parametrize("name", ["APLoss", "ALRPLoss", "RankSortLoss", "NDCGLoss"])
def test_ranking_modules_take_the_number_of_positives(name):
    _, inputs, _ = CASES[name]
    module = getattr(losses, name)()
    same(module(*inputs, n_positives=3), module(*inputs))
    with pytest.raises(ValueError, match="n_positives"):
        module(*inputs, n_positives=2)


@pytest.mark.parametrize("name", ["APLoss", "ALRPLoss", "RankSortLoss", "NDCGLoss"])
def test_ranking_modules_take_segments(name):
    function, inputs, _ = CASES[name]
    segments = torch.arange(len(inputs[0])) % 2
    same(
        getattr(losses, name)()(*inputs, segments=segments, n_segments=3),
        function(*inputs, segments=segments, n_segments=3),
    )


def test_settings_are_shown():
    assert repr(losses.VarifocalLoss(gamma=1.5)) == "VarifocalLoss(alpha=0.75, gamma=1.5, reduction='sum')"
