"""Losses and couplings of users: registered by name, and used like any other."""

import copy
from dataclasses import replace

import pytest
import torch
from torchvision.models.detection import fcos_resnet50_fpn

from concordet.detectors import build_detector, install
from concordet.losses import (
    BoxTerm,
    Core,
    Term,
    build_criterion,
    functional,
    list_losses,
    register_coupling,
    register_loss,
)
from concordet.losses.criteria import LossDefaults, MaskTerm, StagedCriterion, add_l1
from concordet.losses.criteria.box import box_losses
from tests.losses.test_criteria import record


def my_loss(assigned, ious, *, beta=2.0):
    targets = assigned.class_targets(ious)
    return assigned.normalized_sum(functional.quality_focal_loss(assigned.logits, targets, beta=beta, reduction="none"))


class WithState(Core):
    """A core with a setting, a parameter, a buffer and something to observe."""

    def __init__(self, defaults, *, scale=1.0):
        super().__init__()
        self.box = defaults.box
        self.weight = torch.nn.Parameter(torch.tensor(float(scale)))
        self.register_buffer("epochs", torch.zeros(()))

    def forward(self, assigned, ious):
        scores = assigned.scores().sum() * self.weight
        return {"mine": Term(scores), "box": Term(box_losses(self.box.kind, assigned).sum(), "box")}

    def observe(self, assigned, ious):
        return {"epochs": self.epochs}

    def on_epoch_end(self):
        self.epochs += 1


def scene(seed=0):
    torch.manual_seed(seed)
    images = [torch.rand(3, 96, 96) for _ in range(2)]
    targets = [
        {"boxes": torch.tensor([[8.0, 8.0, 60.0, 50.0], [30.0, 20.0, 80.0, 90.0]]), "labels": torch.tensor([1, 2])}
        for _ in images
    ]
    return images, targets


def test_a_function_is_a_classification_loss_beside_the_default_box_term():
    register_loss("my_loss", my_loss)
    assert "my_loss" in list_losses()
    defaults = LossDefaults(box=BoxTerm("smooth_l1", 3.0), mask=MaskTerm(weight=2.0))
    criterion = build_criterion("my_loss", defaults)
    assigned = record()
    expected = build_criterion("quality_focal")(assigned)["classification"]
    terms = criterion(assigned)
    assert list(terms) == ["classification", "box"]
    torch.testing.assert_close(terms["classification"], expected)
    torch.testing.assert_close(terms["box"], build_criterion("default", defaults)(assigned)["box"])
    assert criterion.mask == defaults.mask
    assert not criterion.needs.ranks_only


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("focal+pse(slope=0)", "association_loss: slope must be a finite number > 0, got 0.0"),
        ("focal+pce(slope=0)", "association_loss: slope must be a finite number > 0, got 0.0"),
        ("focal+spearman(strength=0)", "correlation_loss: strength must be a finite number > 0, got 0.0"),
        ("harmonic(gamma=2)", r"harmonic_iou_loss: gamma must be in \[0, 1\], got 2.0"),
    ],
)
def test_settings_are_checked_when_a_criterion_is_built(loss, message):
    with pytest.raises(ValueError, match=message):
        build_criterion(loss)


def test_defaults_are_checked():
    with pytest.raises(ValueError, match=r"classification of LossDefaults must be .*, got focl; did you mean focal"):
        build_criterion("default", LossDefaults(classification="focl"))
    with pytest.raises(ValueError, match=r"quality of LossDefaults .* got centernes; did you mean centerness"):
        LossDefaults(quality="centernes")


def test_messages_about_couplings_name_couplings():
    with pytest.raises(ValueError, match=r"coupling 'gap' must be a function of \(assigned, ious\), got 3"):
        register_coupling("gap", 3)
    with pytest.raises(ValueError, match=r"coupling 'gap' must be a function of \(assigned, ious\), got one with"):
        register_coupling("gap", lambda assigned: 0)
    with pytest.raises(ValueError, match="setting 'by' of coupling 'gap' must have a number as default, got 'x'"):
        register_coupling("gap", lambda assigned, ious, *, by="x": 0)
    with pytest.raises(ValueError, match="name of a coupling must be lowercase letters, digits and underscores, got"):
        register_coupling("Gap", lambda assigned, ious: 0)
    with pytest.raises(ValueError, match="name of a coupling must be new, got 'focal'"):
        register_coupling("focal", lambda assigned, ious: 0)


@pytest.mark.parametrize("name", ["box", "concordance", "quality", "l1"])
def test_a_term_of_a_name_that_is_taken_is_refused(name):
    """It would replace the other one, or be replaced by it, without a word."""
    register_loss("my_terms", lambda assigned, ious: {"classification": ious.sum(), name: 2 * ious.sum()})
    criterion = build_criterion("my_terms+concordance+iou_head")
    add_l1(criterion)
    assigned = record()
    with pytest.raises(ValueError, match=f"term '{name}' must come from one part of the loss, got it from two; rename"):
        criterion(assigned)


def test_terms_of_stages_do_not_replace_each_other():
    stages = {name: build_criterion("focal") for name in ("head", "rpn")}
    records = [replace(record(), stage=stage) for stage in ("head", "rpn", "head")]
    assert len(StagedCriterion(stages)(records[:2])) == 4
    with pytest.raises(ValueError, match="term 'head_classification' must come from one part"):
        StagedCriterion(stages)(records)


def test_settings_and_couplings_by_name():
    register_loss("my_loss", my_loss)
    assigned = record()
    terms = build_criterion("my_loss(beta=0.5)+concordance(0.3)")(assigned)
    assert list(terms) == ["classification", "box", "concordance"]
    wanted = my_loss(assigned, _ious(assigned), beta=0.5)
    torch.testing.assert_close(terms["classification"], wanted)
    with pytest.raises(ValueError, match="setting of 'my_loss' must be one of: beta, got 'gamma'"):
        build_criterion("my_loss(gamma=1)")


def _ious(assigned):
    from torchvision.ops import box_iou

    return box_iou(assigned.boxes, assigned.gt_boxes).diagonal().detach()


def test_named_values_with_roles_and_a_balanced_box():
    @register_loss("two_terms", balances_boxes=True, ranks_only=True)
    def two_terms(assigned, ious):
        return {"first": assigned.scores().sum(), "second": Term(2 * assigned.scores().sum(), "extra")}

    assigned = record()
    terms = build_criterion("two_terms")(assigned)
    torch.testing.assert_close(terms["box"], terms["first"])  # terms of another role are not balanced against
    torch.testing.assert_close(terms["second"], 2 * terms["first"])
    assert build_criterion("two_terms").needs.ranks_only


def test_a_core_has_all_terms_state_and_observations():
    register_loss("with_state", WithState)
    criterion = build_criterion("with_state(scale=2)+my_gap", LossDefaults(box=BoxTerm("l1")))
    assert criterion.core.weight == 2
    assert set(criterion.state_dict()) == {"core.weight", "core.epochs"}
    criterion.on_epoch_end()
    assert criterion.core.observe(record(), None) == {"epochs": 1}
    twin = copy.deepcopy(criterion)
    twin.on_epoch_end()
    assert criterion.core.epochs == 1
    assert set(criterion(record())) == {"mine", "box", "my_gap"}


@pytest.fixture(autouse=True)
def _my_gap():
    @register_coupling("my_gap", weight=0.25)
    def my_gap(assigned, ious, *, power=1.0):
        return (assigned.scores() - ious).abs().pow(power).sum() / assigned.normalizer


def test_couplings_have_weights_and_settings():
    assigned = record()
    gap = (assigned.scores() - _ious(assigned)).abs()
    terms = build_criterion("ap+my_gap")(assigned)
    torch.testing.assert_close(terms["my_gap"], 0.25 * gap.sum() / 5)
    terms = build_criterion("ap+my_gap(2,power=3)")(assigned)
    torch.testing.assert_close(terms["my_gap"], 2 * gap.pow(3).sum() / 5)


@pytest.mark.parametrize("detector", ["fcos", "ssd", "faster_rcnn", "sparse_rcnn"])
def test_a_step_of_a_detector(detector):
    register_loss("my_loss", my_loss)
    model = build_detector(detector, num_classes=3, size="nano", loss="my_loss(beta=1)+my_gap")
    losses = model(*scene())
    assert any(name.endswith("my_gap") for name in losses)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sum(losses.values()).backward()
    optimizer.step()
    assert any((p != q).any() for p, q in zip(model.parameters(), before, strict=True))


def test_a_step_of_an_installed_loss():
    register_loss("my_loss", my_loss)
    model = fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4, min_size=64, max_size=64)
    losses = install(model, "my_loss+my_gap")(*scene())
    assert sorted(losses) == ["loss_box", "loss_classification", "loss_my_gap"]
    sum(losses.values()).backward()


class TestRefusals:
    @pytest.mark.parametrize("name", ["focal", "default", "concordance", "iou_head"])
    def test_names_that_are_taken(self, name):
        for register in (register_loss, register_coupling):
            with pytest.raises(ValueError, match=f"must be new, got '{name}'"):
                register(name, my_loss)

    @pytest.mark.parametrize("name", ["My", "a+b", "2nd", "", "a b"])
    def test_malformed_names(self, name):
        with pytest.raises(ValueError, match="must be lowercase letters, digits and underscores, got"):
            register_loss(name, my_loss)

    def test_the_same_definition_again_replaces_the_first(self):
        register_loss("again", my_loss)
        register_loss("again", my_loss)
        with pytest.raises(ValueError, match="must be new, got 'again'"):
            register_loss("again", WithState)

    @pytest.mark.parametrize("loss", [3, lambda assigned: 0.0, torch.nn.Linear])
    def test_not_a_loss(self, loss):
        with pytest.raises(ValueError, match=r"must be a function of \(assigned, ious\) or a subclass of Core, got"):
            register_loss("odd", loss)
        assert "odd" not in list_losses()

    def test_settings_without_numbers(self):
        def unset(assigned, ious, *, gamma):
            return assigned.logits.sum()

        with pytest.raises(ValueError, match="setting 'gamma' of loss 'odd' must have a number as default"):
            register_loss("odd", unset)

    def test_a_box_term_beside_a_core(self):
        with pytest.raises(ValueError, match="belong to functions, and a Core decides; leave them out"):
            register_loss("odd", WithState, box=BoxTerm("l1"))

    def test_a_negative_weight(self):
        with pytest.raises(ValueError, match="weight of coupling 'odd' must be a number of at least 0, got -1"):
            register_coupling("odd", my_loss, weight=-1)
