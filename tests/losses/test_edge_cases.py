"""Inputs at the edge: labels of another coding, saturated scores, clamps, second derivatives."""

import math

import numpy as np
import pytest
import torch

from concordet.assigned import BACKGROUND
from concordet.losses import build_criterion, value_checks
from concordet.losses import functional as F
from concordet.ranking import Definition, Result, Term, operator
from concordet.ranking.bucketed import bucket
from tests.losses.test_criteria import record

RANKING = {
    "ap": F.ap_loss,
    "alrp": lambda s, y, **o: F.alrp_loss(s, y, torch.full((int((y == 1).sum()),), 0.5), **o).classification,
    "rank_sort": lambda s, y, **o: F.rank_sort_loss(s, y, torch.full(s.shape, 0.5), **o).ranking,
    "ndcg": F.ndcg_loss,
}


class TestLabels:
    @pytest.mark.parametrize("loss", [*RANKING.values(), F.distributional_ranking_loss], ids=[*RANKING, "dr"])
    def test_background_of_assigned_is_refused(self, loss):
        labels = torch.tensor([1, BACKGROUND, BACKGROUND])
        with pytest.raises(ValueError, match=r"labels must contain negatives \(0\), got only 1 and -1.*BACKGROUND"):
            loss(torch.tensor([0.0, 1.0, 2.0]), labels)
        with value_checks(False):
            loss(torch.tensor([0.0, 1.0, 2.0]), labels)
        for fine in ([1, 1, 1], [-1, -1, -1], [0, -1, -1], [1, 0, -1]):
            loss(torch.tensor([0.0, 1.0, 2.0]), torch.tensor(fine))

    @pytest.mark.parametrize("loss", [*RANKING.values(), F.distributional_ranking_loss], ids=[*RANKING, "dr"])
    def test_bool_labels(self, loss):
        logits, labels = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([True, False, True])
        torch.testing.assert_close(loss(logits, labels), loss(logits, labels.long()))

    @pytest.mark.parametrize("name", ["ap", "alrp", "rank_sort", "ndcg", "distributional_ranking"])
    def test_a_criterion_may_have_no_negatives(self, name):
        """One class, and every prediction without an object is ignored."""
        assigned = record(positives=3, negatives=0, ignored=4, classes=1)
        terms = build_criterion(name)(assigned)
        assert all(value.isfinite() for value in terms.values())

    def test_qualities_of_positives_only(self):
        with pytest.raises(ValueError, match=r"\(3,\), got \(1,\); give one value per logit, 0 except at positives"):
            F.rank_sort_loss(torch.zeros(3), torch.tensor([1, 0, 0]), torch.tensor([0.5]))

    @pytest.mark.parametrize("quality", [-0.1, 1.5])
    def test_quality_outside_0_and_1(self, quality):
        labels = torch.tensor([1, 0])
        with pytest.raises(ValueError, match=r"quality must be in \[0, 1\], got values"):
            F.rank_sort_loss(torch.zeros(2), labels, torch.tensor([quality, 0.0]))
        with value_checks(False):
            F.rank_sort_loss(torch.zeros(2), labels, torch.tensor([quality, 0.0]))
        F.rank_sort_loss(torch.zeros(2), labels, torch.tensor([0.5, quality]))  # not read

    @pytest.mark.parametrize("loss", [F.correlation_loss, F.association_loss])
    def test_couplings_take_probabilities_and_ious(self, loss):
        inside, outside = torch.tensor([0.2, 0.7]), torch.tensor([-1.5, 2.0])
        with pytest.raises(ValueError, match=r"scores must be in \[0, 1\], got values from -1.5 to 2"):
            loss(outside, inside)
        with pytest.raises(ValueError, match=r"quality must be in \[0, 1\], got values from -1.5 to 2"):
            loss(inside, outside)
        with value_checks(False):
            loss(inside, outside)

    def test_probabilities_without_classes(self):
        with pytest.raises(ValueError, match=r"probabilities must have at least one class, got shape \(2, 0\)"):
            F.task_contrastive_loss(torch.zeros(2, 0), torch.zeros(2, dtype=torch.long), torch.zeros(2))


class TestGradients:
    @pytest.mark.parametrize("exponent", [0.1, 0.5, 0.9])
    @pytest.mark.parametrize("logit", [-200.0, -90.0, 0.0, 30.0, 200.0])
    @pytest.mark.parametrize("target", [0.0, 1.0])
    def test_small_exponents_have_finite_gradients_where_scores_saturate(self, exponent, logit, target):
        for loss in (
            lambda s, t: F.focal_loss(s, t, gamma=exponent),
            lambda s, t: F.quality_focal_loss(s, t, beta=exponent),
            lambda s, t: F.varifocal_loss(s, t, gamma=exponent),
        ):
            single = torch.tensor([logit], requires_grad=True)
            double = torch.tensor([logit], dtype=torch.float64, requires_grad=True)
            values = [loss(x, torch.tensor([target], dtype=x.dtype)) for x in (single, double)]
            gradients = [torch.autograd.grad(v, x)[0] for v, x in zip(values, (single, double), strict=True)]
            assert gradients[0].isfinite().all()
            torch.testing.assert_close(values[0].double(), values[1], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(gradients[0].double(), gradients[1], rtol=1e-3, atol=1e-3)

    def test_quality_focal_at_its_minimum(self):
        logits = torch.zeros(1, requires_grad=True)  # the score is the target
        loss = F.quality_focal_loss(logits, torch.tensor([0.5]), beta=0.5)
        assert loss == 0
        assert torch.autograd.grad(loss, logits)[0] == 0

    @pytest.mark.parametrize("name", RANKING)
    def test_second_derivatives_are_refused(self, name):
        logits = torch.tensor([0.0, 0.3, -0.2], requires_grad=True)
        loss = RANKING[name](logits, torch.tensor([1, 0, 1])) + logits.square().sum()
        (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
        with pytest.raises(RuntimeError, match="must be differentiated once, got a second derivative"):
            gradient.square().sum().backward()

    @pytest.mark.parametrize("name", [*RANKING, "focal"])
    @pytest.mark.filterwarnings("ignore:There is a performance drop")
    def test_transforms_of_torch_func(self, name):
        """As one call per row. PyTorch's custom operators, which ranking losses are, have no torch.func.grad."""
        rows = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
        labels = torch.tensor([1, 0, 0, 0, 1])

        def loss(logits):
            return F.focal_loss(logits, labels) if name == "focal" else RANKING[name](logits, labels)

        torch.testing.assert_close(torch.func.vmap(loss)(rows), torch.stack([loss(row) for row in rows]))
        if name == "focal":
            leaf = rows.clone().requires_grad_()
            sum(loss(row) for row in leaf).backward()
            torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(rows), leaf.grad)

    def test_negatives_of_matchability_aware_loss_have_a_constant_weight(self):
        """d/ds -w log(1 - p) = w p with w = p^gamma."""
        logits = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64, requires_grad=True)
        F.matchability_aware_loss(logits, torch.zeros(3, dtype=torch.float64), gamma=1.5).backward()
        p = 1 / (1 + np.exp(-logits.detach().numpy()))
        np.testing.assert_allclose(logits.grad.numpy(), p**2.5, rtol=1e-12)

    def test_distributional_ranking_by_hand(self):
        """dE/dp_j = q_j (1 + (p_j - E) / lambda) for negatives, and - for positives: weights have a gradient too."""
        logits = torch.tensor([0.4, -0.3, 1.1, 0.2, -2.0], dtype=torch.float64, requires_grad=True)
        labels = np.array([1, 0, 0, 1, -1])
        F.distributional_ranking_loss(logits, torch.tensor(labels)).backward()
        p = 1 / (1 + np.exp(-logits.detach().numpy()))
        expectation, gradient = {}, {}
        for kind, sharpness in ((1, -1.0), (0, math.log(3.5) / 0.1)):
            own = p[labels == kind]
            q = np.exp(sharpness * own) / np.exp(sharpness * own).sum()
            expectation[kind] = (q * own).sum()
            gradient[kind] = q * (1 + sharpness * (own - expectation[kind]))
        outer = 4 / (1 + math.exp(-6 * (expectation[0] - expectation[1] + 0.5)))
        expected = np.zeros(5)
        expected[labels == 0], expected[labels == 1] = outer * gradient[0], -outer * gradient[1]
        np.testing.assert_allclose(logits.grad.numpy(), expected * p * (1 - p), rtol=1e-10)

    @pytest.mark.parametrize("temperature", [1e-3, 1e-12, 1e-38, 1e-300])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_distributional_ranking_at_low_temperatures_is_a_hinge_of_the_hardest(self, temperature, dtype):
        logits = torch.tensor([2.0, -1.0, 0.5, 0.5, 0.5, -3.0], dtype=dtype, requires_grad=True)
        labels = torch.tensor([1, 1, 0, 0, 0, 0])
        options = {"positive_temperature": temperature, "negative_temperature": temperature}
        loss = F.distributional_ranking_loss(logits, labels, **options)
        (gradient,) = torch.autograd.grad(loss, logits)
        hardest = torch.tensor([-1.0, 0.5], dtype=dtype, requires_grad=True)
        above, below = hardest.sigmoid()
        expected = 4 / 6 * torch.nn.functional.softplus(6 * (below - above + 0.5))
        (wanted,) = torch.autograd.grad(expected, hardest)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(gradient[1], wanted[0])
        torch.testing.assert_close(gradient[2:5], (wanted[1] / 3).expand(3))
        assert (gradient[[0, 5]].abs() < 1e-30).all()


class TestConstants:
    """Constants of the published codes, seen where they matter."""

    def test_correlation_clamps_qualities_at_a_millionth(self):
        scores, quality = torch.tensor([0.1, 0.3, 0.7]), torch.tensor([0.0, 5e-7, 4e-6])
        expected = 1 - np.corrcoef(scores.numpy(), np.maximum(quality.numpy(), 1e-6))[0, 1]
        got = F.correlation_loss(scores, quality, coefficient="pearson")
        assert got.item() == pytest.approx(expected, rel=1e-4)

    def test_correlation_of_tiny_spreads_is_defined(self):
        scores, quality = torch.tensor([0.0, 1e-15, 5e-15], requires_grad=True), torch.tensor([0.2, 0.9, 0.5])
        expected = 1 - np.corrcoef(scores.detach().numpy().astype(float), quality.numpy())[0, 1]
        loss = F.correlation_loss(scores, quality, coefficient="pearson")
        assert loss.item() == pytest.approx(expected, rel=1e-4)
        assert (torch.autograd.grad(loss, scores)[0] != 0).any()

    def test_rank_sort_sorts_where_little_is_above(self):
        """A worse positive that counts 5e-4 above the better one still makes an error, and pays for it."""
        h = 5e-4
        logits = torch.tensor([0.5 - h, 0.0, -9.0], dtype=torch.float64, requires_grad=True)
        quality = torch.tensor([0.9, 0.2, 0.0], dtype=torch.float64)
        labels = torch.tensor([1, 1, 0])
        ranking, sorting = F.rank_sort_loss(logits, labels, quality, delta=0.5)
        better = (0.5 * 0.1 + h * 0.8) / (0.5 + h) - 0.1  # of the better positive; its target is its own 1 - q
        # the worse one has only better ones above it: its target is its error
        assert sorting.item() == pytest.approx(better / 2, rel=1e-9)
        (gradient,) = torch.autograd.grad(sorting, logits)
        np.testing.assert_allclose(gradient.numpy(), [-better / 2, better / 2, 0], rtol=1e-9)
        assert ranking == 0

    def test_alrp_moves_no_positive_without_a_negative_above(self):
        """Its error, the localization errors above it, is positive all the same."""
        logits = torch.tensor([5.0, 0.0, -0.5, -9.0], dtype=torch.float64, requires_grad=True)
        labels, errors = torch.tensor([1, 1, 1, 0]), torch.tensor([0.9, 0.4, 0.7], dtype=torch.float64)
        parts = F.alrp_loss(logits, labels, errors)
        (gradient,) = torch.autograd.grad(parts.classification, logits)
        assert parts.classification == 0
        assert (gradient == 0).all()

    @pytest.mark.parametrize("method", ["exact", "quadratic", "bucketed"])
    def test_qualities_of_negatives_do_not_matter(self, method):
        logits = torch.tensor([0.3, 0.1, 0.2, -0.4, 0.0], dtype=torch.float64, requires_grad=True)
        labels = torch.tensor([1, 1, 0, 0, -1])
        results = []
        for others in ([0.0, 0.0, 0.0], [1.0, 0.3, 0.6], [float("nan")] * 3):
            quality = torch.tensor([0.4, 0.8, *others], dtype=torch.float64)
            parts = F.rank_sort_loss(logits, labels, quality, method=method)
            results.append(torch.cat([torch.stack(parts), *torch.autograd.grad(sum(parts), logits)]))
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2])
        assert results[0].isfinite().all()

    def test_the_mean_of_equal_logits_is_that_logit(self):
        """Rounded below it, the bucket would no longer tie with a positive of the same logit."""
        draws = torch.rand(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).tolist()
        below = [v for v in draws if sum([v] * 7) / 7 < v]
        above = [v for v in draws if sum([v] * 7) / 7 > v]
        assert below, "no value is rounded"
        assert above, "no value is rounded"
        for value in below[:20] + above[:20]:
            negatives = torch.full((7,), value, dtype=torch.float64)
            prototypes, *_ = bucket(torch.tensor([value + 1.0, value - 1.0], dtype=torch.float64), negatives)
            assert prototypes.tolist() == [value]
            logits = torch.cat([torch.tensor([value], dtype=torch.float64), negatives])
            loss = F.ap_loss(logits, torch.tensor([1] + [0] * 7), delta=0.0, method="bucketed")
            assert loss.item() == pytest.approx(7 / 8)

    def test_autocast_has_no_effect_inside_the_operator(self, monkeypatch):
        """Not even on a definition that multiplies float32 matrices, which autocast would do in bfloat16."""
        seen = []

        def product(counts, aux, *, self_relation):
            column = counts.positives.float()[:, None]
            seen.append((column @ column.T).dtype)
            value = column.square().sum(1).double()
            return Result(terms=(Term(value=value, error=value, pmf_denominator=counts.above()[0]),))

        definition = Definition(name="product", compute=product)
        monkeypatch.setitem(operator.DEFINITIONS, "product", definition)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            operator.ranking_loss(definition, torch.tensor([0.3, 0.1]), torch.tensor([1, 0]))
        assert seen == [torch.float32]

    @pytest.mark.parametrize(("above", "moves"), [(5e-6, False), (2e-5, True)])
    def test_alrp_moves_a_positive_from_a_hundred_thousandth_on(self, above, moves):
        """Algorithm A.1, line 28: with N_FP at most 1e-5 nothing moves, though the localization errors above count."""
        negative = -1 + 2 * above  # H = (x + 1) / 2 of it for the second positive
        logits = torch.tensor([5.0, 0.0, negative], dtype=torch.float64, requires_grad=True)
        labels, errors = torch.tensor([1, 1, 0]), torch.tensor([0.9, 0.4], dtype=torch.float64)
        (gradient,) = torch.autograd.grad(F.alrp_loss(logits, labels, errors).classification, logits)
        moved = (above + 0.9) / (2 + above) / 2 if moves else 0.0
        np.testing.assert_allclose(gradient.numpy(), [0, -moved, moved], rtol=1e-6)
