"""Criteria on small records: each term against a loop or another library, combinations, names."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import complete_box_iou_loss, generalized_box_iou, generalized_box_iou_loss, sigmoid_focal_loss

from concordet.assigned import BACKGROUND, IGNORED, Assigned, Quality, Regression
from concordet.boxes import paired_iou
from concordet.losses import BoxTerm, LossDefaults, build_criterion, functional, list_losses
from concordet.losses.criteria import StagedCriterion
from concordet.losses.criteria.box import box_losses
from concordet.losses.criteria.cores import HarmonicCore
from concordet.losses.criteria.terms import balance, sum_terms

BASES = [n for n in list_losses() if n[0] != "+"]


def record(positives=5, negatives=20, ignored=4, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    n = positives + negatives + ignored
    order = torch.randperm(n, generator=generator)
    labels = torch.full((n,), BACKGROUND)
    labels[order[:positives]] = torch.randint(0, classes, (positives,), generator=generator)
    labels[order[positives : positives + ignored]] = IGNORED
    corner = 50 * rand(positives, 2)
    gt_boxes = torch.cat([corner, corner + 5 + 20 * rand(positives, 2)], 1)
    boxes = gt_boxes + 4 * (rand(positives, 4) - 0.5)
    return Assigned(
        logits=(4 * rand(n, classes) - 2).requires_grad_(),
        labels=labels,
        positive=torch.nonzero(labels >= 0).squeeze(1),
        boxes=boxes.requires_grad_(),
        gt_boxes=gt_boxes,
        gt_ids=torch.arange(positives),
        image_ids=torch.zeros(positives, dtype=torch.int64),
        normalizer=torch.tensor(float(max(positives, 1))),
        regression=Regression((rand(positives, 4) - 0.5).requires_grad_(), rand(positives, 4) - 0.5),
        quality=Quality((rand(positives) - 0.5).requires_grad_(), rand(positives)),
    )


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


class TestClassification:
    def test_focal_is_torchvisions_without_ignored_rows(self):
        assigned = record()
        targets = torch.zeros_like(assigned.logits)
        for row in assigned.positive.tolist():
            targets[row, assigned.labels[row]] = 1
        used = assigned.labels != IGNORED
        expected = sigmoid_focal_loss(assigned.logits[used], targets[used], reduction="sum") / 5
        terms = build_criterion("focal")(assigned)
        torch.testing.assert_close(terms["classification"], expected)
        (got,) = torch.autograd.grad(terms["classification"], assigned.logits)
        (wanted,) = torch.autograd.grad(expected, assigned.logits)
        torch.testing.assert_close(got, wanted)

    @pytest.mark.parametrize("name", BASES)
    def test_ignored_rows_get_no_gradient(self, name):
        assigned = record()
        sum_terms(build_criterion(name)(assigned)).backward()
        assert (assigned.logits.grad[assigned.labels == IGNORED] == 0).all()
        assert (assigned.logits.grad[assigned.positive] != 0).any()

    def test_cross_entropy_by_hand(self):
        assigned = record(positives=2, negatives=1, ignored=1, classes=2)
        total = 0.0
        for row, label in enumerate(assigned.labels.tolist()):
            if label == IGNORED:
                continue
            for c in range(2):
                p = sigmoid(float(assigned.logits[row, c].detach()))
                total -= math.log(p if c == label else 1 - p)
        got = build_criterion("ce")(assigned)["classification"].item()
        assert got == pytest.approx(total / 2, rel=1e-5)

    def test_binary_cross_entropy_is_divided_by_the_normalizer(self):
        """The normalizer is averaged over processes; it is not the count of this batch."""
        assigned = replace(record(), normalizer=torch.tensor(7.0))
        used = assigned.labels != IGNORED
        targets = F.one_hot(assigned.labels.clamp(min=0), 3) * (assigned.labels >= 0)[:, None]
        total = F.binary_cross_entropy(assigned.logits.sigmoid()[used], targets[used].float(), reduction="sum")
        torch.testing.assert_close(build_criterion("ce")(assigned)["classification"], total / 7)

    def test_ndcg_by_hand(self):
        """One positive with one negative above it, far apart: 1 - 1 / log2(1 + 2); boxes are balanced."""
        assigned = record(positives=1, negatives=2, ignored=0, classes=2)
        with torch.no_grad():
            assigned.logits.fill_(-10)
            row = int(assigned.positive)
            assigned.logits[row, assigned.labels[row]] = 0
            assigned.logits[row, 1 - assigned.labels[row]] = 10
        criterion = build_criterion("ndcg")
        terms = criterion(assigned)
        assert terms["ranking"].item() == pytest.approx(1 - 1 / math.log2(3))
        assert terms["box"].item() == pytest.approx(terms["ranking"].item(), rel=1e-5)
        assert criterion.needs.ranks_only
        assert criterion.needs.balances_boxes

    def test_matchability_aware_by_hand(self):
        """A positive of no overlap still counts in full; boxes keep the default term."""
        assigned = record(positives=3, negatives=2, ignored=1, classes=2)
        moved = assigned.boxes.detach().clone()
        moved[0] += 1000
        assigned = replace(assigned, boxes=moved)
        ious = paired_iou(assigned.boxes, assigned.gt_boxes).tolist()
        assert ious[0] == 0
        total = 0.0
        for row, label in enumerate(assigned.labels.tolist()):
            for c in range(2) if label != IGNORED else ():
                p = sigmoid(float(assigned.logits[row, c].detach()))
                if c == label:
                    q = ious[assigned.positive.tolist().index(row)] ** 1.5
                    total -= q * math.log(p) + (1 - q) * math.log(1 - p)
                else:
                    total -= p**1.5 * math.log(1 - p)
        terms = build_criterion("matchability_aware")(assigned)
        assert terms["classification"].item() == pytest.approx(total / 3, rel=1e-4)
        torch.testing.assert_close(terms["box"], build_criterion("focal")(assigned)["box"])

    @pytest.mark.parametrize("name", ["quality_focal", "varifocal"])
    def test_iou_targets_reach_the_loss(self, name):
        assigned = record(positives=3, negatives=2, ignored=0, classes=2)
        ious = paired_iou(assigned.boxes.detach(), assigned.gt_boxes).tolist()
        total = 0.0
        for row, label in enumerate(assigned.labels.tolist()):
            for c in range(2):
                p = sigmoid(float(assigned.logits[row, c].detach()))
                q = ious[assigned.positive.tolist().index(row)] if c == label else 0.0
                entropy = -(q * math.log(p) + (1 - q) * math.log(1 - p))
                if name == "quality_focal":
                    total += abs(q - p) ** 2 * entropy
                else:
                    total += (q if q > 0 else 0.75 * p**2) * entropy
        assert build_criterion(name)(assigned)["classification"].item() == pytest.approx(total / 3, rel=1e-4)

    def test_ranking_losses_rank_all_classes_together(self):
        """One positive above every negative logit of every class but one: AP loss by hand at well separated logits."""
        assigned = record(positives=1, negatives=2, ignored=0, classes=2)
        with torch.no_grad():
            assigned.logits.fill_(-10)
            row = int(assigned.positive)
            assigned.logits[row, assigned.labels[row]] = 0
            assigned.logits[row, 1 - assigned.labels[row]] = 10  # the other class of the same row is a negative
        assert build_criterion("ap")(assigned)["ranking"].item() == pytest.approx(0.5)
        assert build_criterion("rank_sort")(assigned)["ranking"].item() == pytest.approx(1 / 1.5)


class TestBoxTerms:
    def test_ious_of_pairs_are_the_diagonal_of_torchvisions(self):
        assigned = record(positives=20)
        giou = 1 - generalized_box_iou(assigned.boxes, assigned.gt_boxes).diagonal()
        torch.testing.assert_close(box_losses("giou", assigned), giou, rtol=1e-4, atol=1e-5)
        ciou = complete_box_iou_loss(assigned.boxes, assigned.gt_boxes)
        torch.testing.assert_close(box_losses("ciou", assigned), ciou)

    @pytest.mark.parametrize("kind", ["l1", "smooth_l1"])
    def test_encoded_terms_by_loop(self, kind):
        assigned = record()
        expected = []
        for row, target in zip(assigned.regression.deltas.tolist(), assigned.regression.targets.tolist(), strict=True):
            total = 0.0
            for a, b in zip(row, target, strict=True):
                d = abs(a - b)
                total += d if kind == "l1" else (d * d * 4.5 if d < 1 / 9 else d - 1 / 18)
            expected.append(total)
        torch.testing.assert_close(box_losses(kind, assigned).detach(), torch.tensor(expected))

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.floats(-50, 50), min_size=8, max_size=8))
    def test_paired_iou_equals_a_loop(self, numbers):
        a, b = np.array(numbers[:4]), np.array(numbers[4:])
        a[2:], b[2:] = a[:2] + np.abs(a[2:]), b[:2] + np.abs(b[2:])
        overlap = np.prod(np.maximum(0, np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])))
        union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - overlap
        expected = overlap / union if union > 0 else 0.0
        assert float(paired_iou(torch.tensor(a), torch.tensor(b))) == pytest.approx(expected, abs=1e-9)

    @pytest.mark.parametrize("weighting", ["none", "score", "quality", "iou"])
    def test_weights(self, weighting):
        assigned = record()
        losses = box_losses("giou", assigned).tolist()
        weights = {
            "none": [1.0] * 5,
            "score": [max(sigmoid(v) for v in assigned.logits[i].tolist()) for i in assigned.positive.tolist()],
            "quality": assigned.quality.targets.tolist(),
            "iou": paired_iou(assigned.boxes, assigned.gt_boxes).tolist(),
        }[weighting]
        expected = 2 * sum(w * v for w, v in zip(weights, losses, strict=True)) / sum(weights)
        criterion = build_criterion("focal", LossDefaults("focal", BoxTerm("giou", 2.0, weighting)))
        assert criterion(assigned)["box"].item() == pytest.approx(expected, rel=1e-5)

    def test_tiny_weights_give_a_mean_too(self):
        """At the start of training all scores may be near 0."""
        assigned = record()
        logits = assigned.logits.detach().double() - 30
        tiny = replace(assigned, logits=logits)
        weights = logits[assigned.positive].amax(1).exp()  # sigmoid(x) = e^x (1 - 1e-12)
        expected = (weights * box_losses("giou", tiny)).sum() / weights.sum()
        box = build_criterion("focal", LossDefaults("focal", BoxTerm("giou", 1.0, "score")))(tiny)["box"]
        assert box.item() == pytest.approx(expected.item(), rel=1e-6)

    @pytest.mark.parametrize("name", ["ap", "bucketed_ap"])
    @pytest.mark.parametrize(("defaults", "weight"), [({}, 2.0), ({"ap_box_weight": 1.0}, 1.0)])
    def test_ap_weighs_boxes_by_score(self, name, defaults, weight):
        """sum(w GIoU loss) / sum(w) with w the largest score of each positive, times 2 (ATSS) or 1 (PAA)."""
        assigned = record()
        scores = [max(sigmoid(v) for v in assigned.logits[i].tolist()) for i in assigned.positive.tolist()]
        giou = (1 - generalized_box_iou(assigned.boxes, assigned.gt_boxes).diagonal()).tolist()
        expected = weight * sum(w * v for w, v in zip(scores, giou, strict=True)) / sum(scores)
        box = build_criterion(name, LossDefaults(**defaults))(assigned)["box"]
        assert box.item() == pytest.approx(expected, rel=1e-4)
        (gradient,) = torch.autograd.grad(box, assigned.logits, allow_unused=True)
        assert gradient is None or (gradient == 0).all()

    def test_varifocal_loss_weighs_boxes_by_iou_and_quality_focal_loss_by_score(self):
        assigned = record()
        scores = [max(sigmoid(v) for v in assigned.logits[i].tolist()) for i in assigned.positive.tolist()]
        ious = paired_iou(assigned.boxes, assigned.gt_boxes).tolist()
        giou = (1 - generalized_box_iou(assigned.boxes, assigned.gt_boxes).diagonal()).tolist()
        for name, factor, weights in (("varifocal", 1.5, ious), ("quality_focal", 2.0, scores)):
            expected = factor * sum(w * v for w, v in zip(weights, giou, strict=True)) / sum(weights)
            assert build_criterion(name)(assigned)["box"].item() == pytest.approx(expected, rel=1e-4)

    def test_self_balancing(self):
        assigned = record()
        terms = build_criterion("rank_sort")(assigned)
        ranking = (terms["ranking"] + terms["sorting"]).item()
        assert terms["box"].item() == pytest.approx(ranking, rel=1e-5)
        (gradient,) = torch.autograd.grad(terms["box"], assigned.logits, allow_unused=True, retain_graph=True)
        assert gradient is None or (gradient == 0).all()
        (gradient,) = torch.autograd.grad(terms["box"], assigned.boxes)
        assert gradient.abs().sum() > 0

    def test_balance_of_nothing_is_one(self):
        assert balance(torch.tensor(3.0), torch.tensor(0.0)) == 1


class TestCouplings:
    def test_concordance(self):
        assigned = record(positives=8)
        p = assigned.positive_logits.sigmoid().detach().numpy()
        q = paired_iou(assigned.boxes, assigned.gt_boxes).detach().numpy()
        expected = 1 - 2 * np.cov(p, q, bias=True)[0, 1] / (p.var() + q.var() + (p.mean() - q.mean()) ** 2)
        plain = build_criterion("focal")(assigned)
        terms = build_criterion("focal+concordance(0.3)")(assigned)
        assert terms["concordance"].item() == pytest.approx(0.3 * expected, rel=1e-4)
        torch.testing.assert_close({k: terms[k] for k in plain}, plain)

    def test_pse(self):
        assigned = record()
        p = assigned.positive_logits.sigmoid().detach().numpy()
        q = paired_iou(assigned.boxes, assigned.gt_boxes).detach().numpy()
        terms = build_criterion("focal+pse(2)")(assigned)
        assert terms["pse"].item() == pytest.approx(2 * ((p - q) ** 2).mean(), rel=1e-4)

    @pytest.mark.parametrize("coupling", ["concordance", "spearman", "pearson", "pse", "pce"])
    def test_the_box_gets_no_gradient(self, coupling):
        assigned = record(positives=300)  # dense enough that soft ranks are not hard everywhere
        term = build_criterion(f"focal+{coupling}")(assigned)[coupling]
        logits, boxes = torch.autograd.grad(term, (assigned.logits, assigned.boxes), allow_unused=True)
        assert logits.abs().sum() > 0
        assert boxes is None or (boxes == 0).all()


class TestHarmonic:
    def test_by_hand(self):
        """Eqs. 8-13 in scalars."""
        assigned = record(positives=3, negatives=2, ignored=1, classes=2)
        ious = paired_iou(assigned.boxes, assigned.gt_boxes).tolist()
        smooth = box_losses("smooth_l1", assigned).tolist()
        harmonized, contrast, negatives = 0.0, 0.0, 0.0
        for row, label in enumerate(assigned.labels.tolist()):
            p = [sigmoid(v) for v in assigned.logits[row].tolist()]
            if label != IGNORED:
                negatives -= sum(math.log(1 - p[c]) for c in range(2) if c != label)
            if label >= 0:
                k = assigned.positive.tolist().index(row)
                entropy, location = -math.log(p[label]), smooth[k] + 1.5 * (1 + ious[k]) ** 0.8 * (1 - ious[k])
                harmonized += (1 + math.exp(-location)) * entropy + (1 + math.exp(-entropy)) * location
                doubt = -sum(v * math.log(v) for v in p)
                contrast += max(0, abs(p[label] - ious[k]) - 0.2) / (1 + math.exp(doubt))
        terms = build_criterion("harmonic")(assigned)
        expected = {"classification": negatives / 3, "harmonic": harmonized / 3, "contrast": contrast / 3}
        assert {k: v.item() for k, v in terms.items()} == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("beta", [0.02, 1.0])
    def test_smooth_l1_is_the_detectors(self, beta):
        assigned = record()
        core = build_criterion("harmonic(alpha=0)", LossDefaults(box=BoxTerm("smooth_l1", beta=beta))).core
        errors = (assigned.regression.deltas - assigned.regression.targets).abs().tolist()
        expected = [sum(e * e / 2 / beta if e < beta else e - beta / 2 for e in row) for row in errors]
        assert core.losses(assigned)[1].tolist() == pytest.approx(expected, rel=1e-5)

    def test_boxes_learn(self):
        assigned = record()
        term = build_criterion("harmonic")(assigned)["harmonic"]
        assert all((g != 0).any() for g in torch.autograd.grad(term, (assigned.boxes, assigned.logits)))


class TestSoftmax:
    DEFAULTS = LossDefaults("ce", BoxTerm("smooth_l1"), softmax=True)

    def softmax_record(self):
        assigned = record(classes=4)
        return replace(assigned, softmax=True, labels=torch.where(assigned.labels == 3, 2, assigned.labels))

    def test_cross_entropy_by_hand(self):
        assigned = self.softmax_record()
        total = 0.0
        for row, label in zip(assigned.logits.tolist(), assigned.labels.tolist(), strict=True):
            if label != IGNORED:
                total += math.log(sum(map(math.exp, row))) - row[3 if label == BACKGROUND else label]
        assert build_criterion("default", self.DEFAULTS)(assigned)["classification"].item() == pytest.approx(total / 5)

    @pytest.mark.parametrize(("scale", "positives"), [(0.1, 5), (1e-5, 0)])
    def test_a_weight_of_background_makes_it_a_weighted_mean(self, scale, positives):
        assigned = self.softmax_record() if positives else replace(record(0, classes=4), softmax=True)
        labels = torch.where(assigned.labels == BACKGROUND, 3, assigned.labels)
        weights = torch.tensor([1.0, 1.0, 1.0, scale])
        expected = F.cross_entropy(assigned.logits, labels, weights, ignore_index=IGNORED)
        got = build_criterion("ce", replace(self.DEFAULTS, no_object_weight=scale))(assigned)["classification"]
        torch.testing.assert_close(got, expected)

    def test_scores_and_harmonic_use_the_softmax(self):
        assigned = self.softmax_record()
        expected = [
            math.exp(row[label]) / sum(map(math.exp, row))
            for row, label in zip(assigned.logits.tolist(), assigned.labels.tolist(), strict=True)
            if label >= 0
        ]
        assert assigned.scores().tolist() == pytest.approx(expected)
        entropies, localization = HarmonicCore().losses(assigned)
        assert entropies.tolist() == pytest.approx([-math.log(p) for p in expected], rel=1e-5)
        terms = build_criterion("harmonic", self.DEFAULTS)(assigned)
        joint = sum(
            (1 + math.exp(-b)) * a + (1 + math.exp(-a)) * b
            for a, b in zip(entropies.tolist(), localization.tolist(), strict=True)
        )
        assert terms["harmonic"].item() == pytest.approx(joint / 5, rel=1e-5)

    def test_only_cross_entropy_and_harmonic_keep_it(self):
        kept = {name for name in BASES if build_criterion(name, self.DEFAULTS).needs.softmax}
        assert kept == {"default", "ce", "harmonic"}


def test_stages_have_their_own_criteria_and_weights():
    stages = {"rpn": build_criterion("rank_sort"), "roi": build_criterion("alrp")}
    criterion = StagedCriterion(stages, {"rpn": 0.2})
    records = [replace(record(seed=1), stage="rpn"), replace(record(seed=2), stage="roi")]
    terms = criterion(records)
    assert set(terms) == {"rpn_ranking", "rpn_sorting", "rpn_box", "roi_classification", "roi_box"}
    single = build_criterion("rank_sort")(records[0])
    assert terms["rpn_sorting"].item() == pytest.approx(0.2 * single["sorting"].item())
    assert criterion.needs.ranks_only
    criterion.on_epoch_end()
    assert criterion.stages["roi"].core.weight != 50


class TestALRP:
    def test_self_balancing_is_the_previous_epochs(self):
        criterion = build_criterion("alrp")
        first = [criterion(record(seed=i)) for i in range(3)]
        classification = sum(t["classification"].item() for t in first)
        localization = sum(t["box"].item() / 50 for t in first)  # 50 in the first epoch
        criterion.on_epoch_end()
        weight = (classification + localization) / localization
        again = criterion(record(seed=0))
        assert again["box"].item() == pytest.approx(first[0]["box"].item() / 50 * weight, rel=1e-5)

    def test_state_is_checkpointed_and_untouched_by_evaluation(self):
        criterion = build_criterion("alrp")
        criterion(record())
        criterion.eval()(record())
        other = build_criterion("alrp")
        other.load_state_dict(criterion.state_dict())
        for c in (criterion, other):
            c.on_epoch_end()
        assert other.core.weight == criterion.core.weight != 50

    def test_an_epoch_without_objects_keeps_the_weight(self):
        criterion = build_criterion("alrp")
        criterion(record(positives=0))
        criterion.on_epoch_end()
        assert criterion.core.weight == 50


class TestQuality:
    def test_centerness(self):
        assigned = record()
        criterion = build_criterion("default", LossDefaults("focal", BoxTerm(), quality="centerness"))
        expected = 0.0
        for x, q in zip(assigned.quality.logits.tolist(), assigned.quality.targets.tolist(), strict=True):
            expected -= q * math.log(sigmoid(x)) + (1 - q) * math.log(1 - sigmoid(x))
        assert criterion(assigned)["quality"].item() == pytest.approx(expected / 5, rel=1e-5)

    def test_auxiliary_head_is_needed_only_where_it_is_trained(self):
        defaults = LossDefaults("focal", BoxTerm(), quality="centerness")
        assert build_criterion("default", defaults).needs.quality_head == "centerness"
        assert build_criterion("focal", defaults).needs.quality_head is None
        assert build_criterion("focal+iou_head", defaults).needs.quality_head == "iou"


class TestSettings:
    """Settings in brackets: the numbers that the papers' tables vary."""

    def test_harmonic(self):
        assigned = record()
        terms = build_criterion("harmonic(alpha=0.5, gamma=0, contrast=0)")(assigned)
        localization = 0.5 * (1 - paired_iou(assigned.boxes, assigned.gt_boxes)) + box_losses("smooth_l1", assigned)
        own = assigned.logits[assigned.positive, assigned.labels[assigned.positive]]
        entropies = torch.log1p(torch.exp(-own))
        expected = (1 + torch.exp(-localization)) * entropies + (1 + torch.exp(-entropies)) * localization
        torch.testing.assert_close(terms["harmonic"], expected.sum() / assigned.normalizer)
        assert terms["contrast"] == 0

    def test_slope(self):
        assigned = record()
        ious = paired_iou(assigned.boxes.detach(), assigned.gt_boxes)
        expected = 2 * (assigned.scores() - 0.8 * ious).square().sum() / assigned.normalizer
        torch.testing.assert_close(build_criterion("focal+pse(2,slope=0.8)")(assigned)["pse"], expected)
        torch.testing.assert_close(build_criterion("focal+pse(slope=0.8)")(assigned)["pse"], expected / 2)

    def test_strength_one_makes_spearman_pearson(self):
        assigned = record()
        spearman = build_criterion("focal+spearman(0.3,strength=1)")(assigned)["spearman"]
        torch.testing.assert_close(spearman, build_criterion("focal+pearson(0.3)")(assigned)["pearson"])

    def test_focal_with_giou(self):
        """The box loss is torchvision's, whatever the detector's own."""
        assigned = record()
        terms = build_criterion("focal(giou=2)", defaults=LossDefaults("focal", BoxTerm("l1")))(assigned)
        giou = generalized_box_iou_loss(assigned.boxes, assigned.gt_boxes, reduction="sum")
        torch.testing.assert_close(terms["box"], 2 * giou / assigned.normalizer)
        torch.testing.assert_close(terms["classification"], build_criterion("focal")(assigned)["classification"])

    def test_alrp_without_balance_and_with_iou(self):
        assigned = record()
        default = build_criterion("alrp")(assigned)
        plain = build_criterion("alrp(balanced=0)")
        torch.testing.assert_close(plain(assigned)["box"], default["box"] / 50)
        plain.on_epoch_end()
        assert plain.core.weight == 1
        errors = (1 - paired_iou(assigned.boxes, assigned.gt_boxes)) / 0.5
        parts = functional.alrp_loss(assigned.logits.flatten(), assigned.ranking_labels(), errors)
        terms = build_criterion("alrp(balanced=0,giou=0)")(assigned)
        torch.testing.assert_close(terms["box"], parts.localization)
        torch.testing.assert_close(terms["classification"], parts.classification)


@pytest.mark.parametrize("name", [*BASES, "rank_sort+concordance(0.3)", "focal+spearman(0.1)+pse"])
def test_no_positives_is_zero_and_connected(name):
    assigned = record(positives=0)
    terms = build_criterion(name)(assigned)
    sum_terms(terms).backward()
    assert assigned.logits.grad.isfinite().all()
    for term in set(terms) - {"classification"}:
        assert terms[term] == 0, term


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("focl", "loss must be one of default, focal, .*, got 'focl' in 'focl'; did you mean focal"),
        ("concordance", "got 'concordance'; add 'concordance' to one, as in 'focal\\+concordance'"),
        ("focal+ap", "loss must have one base loss, got two in 'focal.ap'"),
        (
            "focal+concord",
            "coupling must be one of concordance, .*, iou_head, got 'concord' in .*; did you mean concordance",
        ),
        ("focal+pse+pse", "'pse' must be named once"),
        ("focal(2)", "base loss 'focal' must have no weight, got 'focal.2.'"),
        ("focal+pse(-1)", "at least 0, got '-1'"),
        ("focal+pse(nan)", "at least 0, got 'nan'"),
        ("focal+pse(x)", "at least 0, got 'x'"),
        ("focal+pse(slope=-1)", "slope of 'pse\\(slope=-1\\)' in loss .* at least 0, got '-1'"),
        ("focal+pse(1,width=2)", "setting of 'pse' must be one of: slope, got 'width'"),
        ("varifocal(alpha=1)", "setting of 'varifocal' must be one of: none, got 'alpha'"),
        ("focal+centerness+iou_head", "one auxiliary head, got two"),
        ("focal+", "got '' in"),
        ("", "got '' in"),
    ],
)
def test_names_that_make_no_sense(name, message):
    with pytest.raises(ValueError, match=message):
        build_criterion(name)


@pytest.mark.parametrize("kind", ["giou", "diou", "ciou"])
def test_box_losses_are_torchvisions(kind):
    """Overlapping, inside one another, apart, alike and touching."""
    from torchvision import ops

    theirs = {
        "giou": ops.generalized_box_iou_loss,
        "diou": ops.distance_box_iou_loss,
        "ciou": ops.complete_box_iou_loss,
    }
    draws = torch.Generator().manual_seed(0)
    corner = torch.rand(200, 2, generator=draws) * 30
    boxes = torch.cat([corner, corner + 1 + 20 * torch.rand(200, 2, generator=draws)], 1)
    targets = boxes.roll(1, 0).clone()
    targets[:20] = boxes[:20] + torch.tensor([1.0, 1.0, -0.5, -0.4])
    assigned = replace(record(200), boxes=boxes.requires_grad_(), gt_boxes=targets)
    got, expected = box_losses(kind, assigned), theirs[kind](boxes, targets, reduction="none")
    torch.testing.assert_close(got, expected)
    weights = torch.rand(200, generator=draws)
    for mine, other in zip(
        torch.autograd.grad((weights * got).sum(), boxes),
        torch.autograd.grad((weights * expected).sum(), boxes),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)
