"""What holds for every ranking loss: types, autograd, empty inputs, invariances, compiling, bad input."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings

from concordet.losses import APLoss, RankSortLoss, value_checks
from concordet.losses import functional as F
from tests.ranking import scalar
from tests.ranking.cases import CASES, DELTAS, TOLERANCE, adversarial, random_case, values_and_gradients

METHODS = ["exact", "quadratic", "bucketed"]

pytestmark = pytest.mark.usefixtures("positives_by")


def _run(name, logits, labels, side, **options):
    logits = logits.clone().requires_grad_()
    return values_and_gradients(CASES[name].outputs(logits, labels, side, **options), logits)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("labels", [[], [0], [0, 0, -1], [1], [1, 1, -1], [-1, -1]])
def test_empty_sides_give_connected_zeros(name, method, labels):
    labels = torch.tensor(labels, dtype=torch.long)
    logits = torch.linspace(1, -1, len(labels)).requires_grad_()
    side = torch.linspace(0.9, 0.1, len(labels))  # in the order of the logits: nothing to sort either
    with value_checks(0 in labels):  # where values are checked, positives beside ignored labels only are refused
        outputs = CASES[name].outputs(logits, labels, side, method=method, delta=0.0)
    for output in outputs:
        assert output.ndim == 0
        assert output.requires_grad
        assert float(output.detach()) == pytest.approx(0, abs=1e-6)
        (gradient,) = torch.autograd.grad(output, logits, retain_graph=True)
        assert torch.equal(gradient, torch.zeros_like(logits))


@pytest.mark.parametrize("method", ["exact", "quadratic"])
@pytest.mark.parametrize("delta", DELTAS)
def test_positives_without_negatives_are_still_sorted_and_localized(method, delta):
    logits, _, side = random_case(7, 0, seed=4)
    labels, leaf = torch.ones_like(side).long(), logits.clone().requires_grad_()
    sort = F.rank_sort_loss(leaf, labels, side, delta=delta, method=method)
    loop = scalar.rank_sort(logits.tolist(), labels.tolist(), side.tolist(), delta, 0.5 if delta else 1.0)
    (gradient,) = torch.autograd.grad(sum(sort), leaf)
    assert [value.item() for value in sort] == pytest.approx(loop.values)
    assert loop.values[0] == 0
    assert loop.values[1] > 0
    assert any(loop.gradients[1])
    assert gradient.tolist() == pytest.approx(loop.gradients[1])

    errors = side.clone().requires_grad_()
    parts = F.alrp_loss(leaf, labels, errors, delta=delta, method=method)
    loop = scalar.alrp(logits.tolist(), labels.tolist(), side.tolist(), delta, 1.0)
    gradients = torch.autograd.grad(sum(parts), [leaf, errors])
    assert [value.item() for value in parts] == pytest.approx(loop.values)
    assert loop.values[1] > 0
    assert not gradients[0].any()
    assert gradients[1].tolist() == pytest.approx(loop.loc_gradient)


@pytest.mark.parametrize("n_positives", [2.0, -1, -5, torch.tensor(2), "2"])
def test_a_number_of_positives_is_a_natural_one(n_positives):
    with pytest.raises(ValueError, match=r"ap_loss: n_positives must be an integer >= 0, got .*; leave it out"):
        F.ap_loss(torch.zeros(3), torch.tensor([1, 0, 1]), n_positives=n_positives)


def test_localization_errors_are_not_negative():
    with pytest.raises(ValueError, match=r"alrp_loss: loc_errors must be in \[.*\], got values from -2 to 0.5"):
        F.alrp_loss(torch.zeros(3), torch.tensor([1, 0, 1]), torch.tensor([-2.0, 0.5]))
    F.alrp_loss(torch.zeros(3), torch.tensor([1, 0, 1]), torch.tensor([-1e-6, 0.5]))  # rounding


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_types_and_precision(name, dtype):
    logits, labels, side = random_case(20, 300, seed=1, dtype=dtype)
    exact = _run(name, logits.double(), labels, side.double(), delta=0.5)
    logits.requires_grad_()
    outputs = CASES[name].outputs(logits, labels, side, delta=0.5)
    for output, value, wanted in zip(outputs, *exact, strict=True):
        assert output.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert float(output.detach()) == pytest.approx(value, rel=1e-6)
        (gradient,) = torch.autograd.grad(output, logits, retain_graph=True)
        assert gradient.dtype == dtype
        scale = float(wanted.abs().max())
        torch.testing.assert_close(gradient.double(), wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("integer", [torch.uint8, torch.uint16, torch.uint32, torch.uint64])
def test_unsigned_labels_classes_and_segments(integer):
    logits, labels, quality = torch.randn(30), torch.arange(30) % 3 == 0, torch.rand(30)
    segments, probabilities = torch.arange(30) % 2, torch.rand(30, 4)
    small, small_segments = labels.to(integer), segments.to(integer)
    for loss in (F.ap_loss, F.ndcg_loss):
        expected = loss(logits, labels.long(), segments=segments, n_segments=2)
        assert torch.equal(loss(logits, small, segments=small_segments, n_segments=2), expected)
    positives = labels.nonzero().squeeze(1)
    expected = F.alrp_loss(logits, labels.long(), quality[positives], segments=segments, n_segments=2)
    got = F.alrp_loss(logits, small, quality[positives], segments=small_segments, n_segments=2)
    assert all(map(torch.equal, got, expected))
    assert torch.equal(F.rank_sort_loss(logits, small, quality)[1], F.rank_sort_loss(logits, labels, quality)[1])
    classes = F.task_contrastive_loss(probabilities, small, quality)
    assert torch.equal(classes, F.task_contrastive_loss(probabilities, labels.long(), quality))
    with pytest.raises(ValueError, match="labels must be from 0 to 3"):
        F.task_contrastive_loss(probabilities, small * 7, quality)
    for loss in (F.focal_loss, F.quality_focal_loss, F.varifocal_loss, F.matchability_aware_loss):
        assert torch.equal(loss(logits, small), loss(logits, labels.float()))
        with pytest.raises(ValueError, match=r"targets must be in \[0, 1\], got values from 0 to 7"):
            loss(logits, small * 7)


@pytest.mark.parametrize("integer", [torch.int8, torch.int16, torch.int32, torch.int64])
def test_labels_of_any_integer_type(integer):
    logits, labels, _ = random_case(5, 20, seed=2)
    assert torch.equal(F.ap_loss(logits, labels.to(integer)), F.ap_loss(logits, labels))
    unsigned = labels.clamp_min(0)
    assert torch.equal(F.ap_loss(logits, unsigned.to(torch.uint8)), F.ap_loss(logits, unsigned))


def test_autocast_changes_nothing():
    logits, labels, side = random_case(20, 300, seed=3, dtype=torch.float32)
    for name in CASES:
        for method in METHODS:
            expected = _run(name, logits, labels, side, method=method)
            with torch.autocast("cpu", torch.bfloat16):
                got = _run(name, logits, labels, side, method=method)
            assert got[0] == expected[0]
            assert all(torch.equal(a, b) for a, b in zip(got[1], expected[1], strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_each_output_is_scaled_by_its_own_gradient(method):
    logits, labels, side = random_case(30, 200, seed=4)
    _, (ranking, sorting) = _run("rank_sort", logits, labels, side, method=method)
    logits.requires_grad_()
    outputs = F.rank_sort_loss(logits, labels, side, method=method)
    (gradient,) = torch.autograd.grad(3 * outputs.ranking - 7 * outputs.sorting, logits)
    torch.testing.assert_close(gradient, 3 * ranking - 7 * sorting, rtol=1e-12, atol=1e-12)
    assert sorting.abs().max() > 0


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("delta", DELTAS)
def test_gradients_are_balanced(name, method, delta):
    """They sum to zero; positives' and negatives' magnitudes are equal (aLRP's Theorem 2)."""
    logits, labels, side = random_case(30, 400, seed=5)
    for gradient in _run(name, logits, labels, side, method=method, delta=delta)[1]:
        scale = float(gradient.abs().sum()) + 1e-30
        assert abs(float(gradient.sum())) <= 1e-12 * scale
    first = _run(name, logits, labels, side, method=method, delta=delta)[1][0]
    positives, negatives = first[labels == 1].abs().sum(), first[labels == 0].abs().sum()
    torch.testing.assert_close(positives, negatives, rtol=1e-10, atol=1e-12)
    assert bool((first[labels == 1] <= 0).all())
    assert bool((first[labels == 0] >= 0).all())
    assert not first[labels == -1].any()


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=60, deadline=None)
@given(case=adversarial())
def test_permuting_and_shifting(name, case):
    logits, labels, side, delta = case
    logits = torch.tensor(logits, dtype=torch.float64)
    # on a grid where shifting is exact; ties keep their order only in stable parts, so they get values of their own
    logits = (logits.clamp(-100, 100) * 1024).round() / 1024 + torch.arange(len(logits)) / 2**20
    labels, side = torch.tensor(labels, dtype=torch.long), torch.tensor(side, dtype=torch.float64)
    values, gradients = _run(name, logits, labels, side, delta=delta)
    order = torch.randperm(len(logits))
    moved_values, moved = _run(name, logits[order] + 8, labels[order], side[order], delta=delta)
    assert moved_values == pytest.approx(values, rel=1e-9, abs=1e-12)
    for gradient, wanted in zip(moved, gradients, strict=True):
        torch.testing.assert_close(gradient, wanted[order], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("delta", [0.0, 0.5])
def test_a_perfect_order_is_perfect(name, method, delta):
    labels = torch.tensor([1] * 6 + [0] * 30)
    side = torch.linspace(0.95, 0.2, 36, dtype=torch.float64)
    logits = torch.cat([torch.linspace(30, 10, 6), torch.linspace(5, -5, 30)]).double()
    values, gradients = _run(name, logits, labels, side, method=method, delta=delta)
    if name != "ndcg" or delta == 0:  # a smoothed rank may be below the true one only through its own relation
        assert values == pytest.approx([0] * len(values), abs=1e-12)
    assert all(not gradient.any() for gradient in gradients)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("method", METHODS)
def test_nan_stays_nan_where_values_are_not_checked(name, method):
    for index in range(4):
        logits, labels = torch.tensor([1.0, 0.0, 2.0, -3.0]), torch.tensor([1, 0, 1, 0])
        logits[index] = float("nan")
        with value_checks(False):
            values, _ = _run(name, logits, labels, torch.rand(4), method=method)
        assert any(value != value for value in values)
        with pytest.raises(ValueError, match="logits must be finite, got 1 NaN or infinite"):
            _run(name, logits, labels, torch.rand(4), method=method)


def test_infinite_logits_and_ignored_nan_without_checks():
    labels = torch.tensor([1, 0, 0, -1])
    with value_checks(False):
        logits = torch.tensor([1.0, float("-inf"), float("inf"), float("nan")], requires_grad=True)
        loss = F.ap_loss(logits, labels)
        loss.backward()
    assert float(loss.detach()) == pytest.approx(0.5)
    assert logits.grad.tolist() == pytest.approx([-0.5, 0.0, 0.5, 0.0])


def test_bad_input_is_refused():
    logits, labels, side = torch.randn(4), torch.tensor([1, 0, -1, 0]), torch.rand(4)
    cases = [
        (lambda: F.ap_loss(logits[None], labels), r"ap_loss: logits must have 1 dimension\(s\), got shape \(1, 4\)"),
        (lambda: F.ap_loss(logits, labels[:3]), r"labels must have the shape of logits, \(4,\), got \(3,\)"),
        (lambda: F.ap_loss(logits.long(), labels), "got a tensor of torch.int64; convert"),
        (lambda: F.ap_loss(logits, labels.float()), "got a tensor of torch.float32; convert"),
        (lambda: F.ap_loss([1.0], labels), "got a list"),
        (lambda: F.ap_loss(logits, labels + 1), "got labels from 0 to 2"),
        (lambda: F.ap_loss(logits, labels - 1), "got labels from -2 to 0"),
        (lambda: F.ap_loss(logits, labels.to("meta")), "labels must be on the device of logits, cpu, got meta"),
        (lambda: F.ap_loss(logits, labels, delta=-1), "delta must be a finite number >= 0, got -1"),
        (lambda: F.ap_loss(logits, labels, delta=float("nan")), "delta must be a finite number >= 0, got nan"),
        (lambda: F.ap_loss(logits, labels, method="fast"), "method must be one of auto, exact, .*, got 'fast'"),
        (lambda: F.ap_loss(logits, labels, self_relation=0), "self_relation must be a finite number > 0, got 0"),
        (lambda: F.rank_sort_loss(logits, labels, side[:1]), r"got \(1,\); give one value per logit, 0 except at pos"),
        (lambda: F.rank_sort_loss(logits, labels, side * float("inf")), "quality must be finite"),
        (lambda: F.alrp_loss(logits, labels, side), "alrp: values per positive must be 1, .* got 4"),
        (lambda: F.alrp_loss(logits, labels, side[:0]), "alrp: values per positive must be 1, .* got 0"),
        (lambda: F.alrp_loss(logits, labels, side[:1] * float("nan")), "loc_errors must be in .* from nan to nan"),
    ]  # fmt: skip
    for call, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            call()


@pytest.mark.parametrize("name", CASES)
def test_operator_is_registered_correctly(name):
    """Fake kernel, autograd and aliasing, by PyTorch's own checks."""
    from concordet.ranking.operator import RankingOptions, _ranking

    logits, labels, side = random_case(5, 30, seed=6)
    side = side[labels == 1] if name == "alrp" else side if name == "rank_sort" else None
    settings = [1.0] if name == "interpolated_ap" else [0.0] if name == "ap" else []
    name = "ap" if settings else name
    arguments = (logits.requires_grad_(), labels, side, None, name, settings, True, *RankingOptions())
    torch.library.opcheck(
        _ranking, arguments, test_utils=("test_schema", "test_faketensor", "test_autograd_registration")
    )


def test_compiles_without_graph_breaks():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3, 1, dtype=torch.float64)
            self.ap, self.rank_sort = APLoss(), RankSortLoss()

        def forward(self, x, labels, quality):
            logits = self.linear(x).squeeze(1)
            ranking, sorting = self.rank_sort(logits, labels, quality)
            part = F.alrp_loss(logits, labels, 1 - quality[:7])
            scores = logits[:7].sigmoid()
            return (
                self.ap(logits, labels) + ranking + sorting + part.classification + part.localization
                + F.correlation_loss(scores, quality[:7], coefficient="spearman")
                + F.focal_loss(logits, labels)
            )  # fmt: skip

    torch.manual_seed(0)
    labels = torch.cat([torch.ones(7), torch.zeros(50)]).long()
    x, quality = torch.randn(57, 3, dtype=torch.float64), torch.rand(57, dtype=torch.float64)
    model = Model()
    expected = model(x, labels, quality)
    wanted = torch.autograd.grad(expected, model.linear.weight)[0]
    loss = torch.compile(model, fullgraph=True, backend="aot_eager")(x, labels, quality)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(model.linear.weight.grad, wanted)


def test_compiles_for_sizes_that_change():
    def loss(logits, labels, quality):
        ranking, sorting = F.rank_sort_loss(logits, labels, quality)
        return ranking + sorting + F.ap_loss(logits, labels) + F.focal_loss(logits, labels, reduction="mean")

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for n in (20, 33, 50):
            logits, labels, side = random_case(7, n, seed=n, dtype=torch.float32)
            expected, got = logits.clone().requires_grad_(), logits.clone().requires_grad_()
            loss(expected, labels.clamp_min(0), side).backward()
            compiled(got, labels.clamp_min(0), side).backward()
            torch.testing.assert_close(got.grad, expected.grad)


def test_losses_need_torch_only():
    code = (
        "import sys, concordet.losses, concordet.losses.functional\n"
        "foreign = {'scipy', 'torchvision', 'lightning', 'transformers', 'hotcoco', 'matplotlib', 'sklearn'}\n"
        "assert not foreign & {name.split('.')[0] for name in sys.modules}, foreign & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
