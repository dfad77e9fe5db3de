"""Losses in torchvision's detectors: the installed loss trains, and nothing else changes."""

import copy
import io

import pytest
import torch
from torch import nn
from torchvision.models import detection as tv
from torchvision.models.detection import roi_heads as tv_roi_heads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import box_iou, generalized_box_iou_loss

from concordet.assigned import IGNORED
from concordet.boxes import paired_iou
from concordet.detectors import build_detector, install, installed_criterion, list_installable, uninstall
from concordet.detectors.adapters import torchvision_rcnn as rcnn
from concordet.detectors.adapters.criteria import log_odds
from concordet.losses import build_criterion, functional
from concordet.losses.criteria import Criterion
from tests.detectors.adapters.tiny_models import TORCHVISION, gradient, learned, torchvision_model
from tests.detectors.scenes import batch

OWN = {
    "RetinaNet": {"classification", "bbox_regression"},
    "FCOS": {"classification", "bbox_regression", "bbox_ctrness"},
    "SSD": {"classification", "bbox_regression"},
    "FasterRCNN": {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"},
    "MaskRCNN": {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask"},
}


def losses_of(model, images, targets, seed=3):
    """Terms of a batch; models that draw samples draw the same each time."""
    torch.manual_seed(seed)
    return model(images, copy.deepcopy(targets))


def seen_records(criterion):
    """Records that a criterion is given, last stage last."""
    records = []
    for module in criterion.modules():
        if isinstance(module, Criterion):
            module.register_forward_pre_hook(lambda _, given: records.append(given[0]))
    return records


@pytest.fixture
def no_own_loss(monkeypatch):
    """torchvision's own losses of classes and boxes fail when they are called."""

    def fails(*args, **kwargs):
        raise AssertionError("torchvision's own loss ran")

    for owner in (tv.retinanet.RetinaNetHead, tv.fcos.FCOSHead, tv.ssd.SSD, RegionProposalNetwork):
        monkeypatch.setattr(owner, "compute_loss", fails)
    monkeypatch.setattr(tv_roi_heads, "fastrcnn_loss", fails)
    monkeypatch.setattr(rcnn, "fastrcnn_loss", fails)


def rank_sort_gradients(record, factor=1.0):
    """Gradients of RS Loss and its balanced GIoU term in a record's logits and boxes, from the functions."""
    logits, boxes = (x.detach().clone().requires_grad_() for x in (record.logits, record.boxes))
    place = record.positive, record.labels[record.positive]
    quality, labels = torch.zeros_like(logits.detach()), torch.zeros_like(logits, dtype=torch.int64)
    quality[place], labels[record.labels == IGNORED] = paired_iou(boxes.detach(), record.gt_boxes), -1
    labels[place] = 1
    parts = functional.rank_sort_loss(logits.flatten(), labels.flatten(), quality.flatten())
    ranking = parts.ranking + parts.sorting
    weights = logits.detach()[record.positive].amax(1).sigmoid()
    box = (weights * generalized_box_iou_loss(boxes, record.gt_boxes)).sum() / weights.sum()
    return torch.autograd.grad(factor * (ranking + box * (ranking / box).detach()), (logits, boxes))


def test_the_box_term_of_rank_sort_has_the_value_of_its_classification_terms():
    terms = losses_of(install(torchvision_model("FCOS"), "rank_sort").train(), *batch(3))
    torch.testing.assert_close(terms["loss_box"], terms["loss_ranking"] + terms["loss_sorting"])


@pytest.mark.parametrize("name", TORCHVISION)
class TestEveryModel:
    def test_ours_alone_trains(self, name, no_own_loss):
        model = torchvision_model(name)
        images, targets = batch(3, 0, 2)
        with pytest.raises(AssertionError, match="own loss ran"):
            model(images, copy.deepcopy(targets))
        install(model, "rank_sort")
        records = seen_records(installed_criterion(model))
        terms = losses_of(model, images, targets)
        assert all(k.startswith("loss_") for k in terms)
        total = sum(terms.values())
        for record in records:
            got = torch.autograd.grad(total, (record.logits, record.boxes), retain_graph=True)
            expected = rank_sort_gradients(record, 0.2 if record.stage == "rpn" else 1.0)
            for mine, other in zip(got, expected, strict=True):
                assert other.abs().sum() > 0
                torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-7)
        assert [r.stage for r in records] == (["rpn", "roi"] if "RCNN" in name else [""])

    def test_a_step_follows_our_gradient(self, name):
        model = torchvision_model(name)
        theirs = gradient(model, sum(losses_of(model, *batch(3, 2)).values()))
        install(model, "rank_sort")
        before = learned(model)
        ours = gradient(model, sum(losses_of(model, *batch(3, 2)).values()))
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
        sum(losses_of(model, *batch(3, 2)).values()).backward()
        optimizer.step()
        after = learned(model)
        torch.testing.assert_close(before - after, ours, rtol=1e-3, atol=1e-5)
        if len(theirs) == len(ours):  # FCOS's centerness branch is frozen
            assert torch.cosine_similarity(theirs, ours, dim=0) < 0.9

    def test_default_is_the_models_own(self, name):
        model = torchvision_model(name)
        own = losses_of(model, *batch(3, 0, 2))
        got = losses_of(install(model, "default"), *batch(3, 0, 2))
        assert set(got) == OWN[name]
        assert all(torch.equal(got[k], own[k]) for k in own)
        coupled = losses_of(install(model, "default+concordance(0.3)"), *batch(3, 0, 2))
        (extra,) = set(coupled) - OWN[name]
        assert extra.endswith("concordance")
        assert all(torch.equal(coupled[k], own[k]) for k in own)

    @pytest.mark.parametrize("loss", ["rank_sort", "default+pse"])
    def test_uninstalling_leaves_no_trace(self, name, loss):
        model = torchvision_model(name)
        own = losses_of(model, *batch(2, 1))
        modules = [vars(m).copy() for m in model.modules()]
        parameters, frozen = dict(model.named_parameters()), [p.requires_grad for p in model.parameters()]
        keys = list(model.state_dict())
        assert install(model, loss) is model
        assert list(model.state_dict()) == keys
        assert all(a is b for a, b in zip(model.parameters(), parameters.values(), strict=True))
        assert uninstall(model) is model
        assert [p.requires_grad for p in model.parameters()] == frozen
        assert [vars(m) for m in model.modules()] == modules
        got = losses_of(model, *batch(2, 1))
        assert all(torch.equal(got[k], own[k]) for k in own)

    @pytest.mark.parametrize("loss", ["rank_sort", "focal+concordance", "harmonic"])
    def test_images_without_objects(self, name, loss):
        model = install(torchvision_model(name), loss)
        terms = losses_of(model, *batch(0, 0))
        assert gradient(model, sum(terms.values())).isfinite().all()

    @pytest.mark.parametrize("loss", ["rank_sort", "focal"])
    def test_half_precision(self, name, loss):
        model = install(torchvision_model(name), loss)
        exact = sum(losses_of(model, *batch(3, 2)).values())
        with torch.autocast("cpu", torch.bfloat16):
            terms = losses_of(model, *batch(3, 2))
        assert all(v.dtype == torch.float32 for v in terms.values())
        assert gradient(model, sum(terms.values())).isfinite().all()
        assert sum(terms.values()).item() == pytest.approx(exact.item(), rel=0.2)

    @pytest.mark.parametrize("way", ["copy", "pickle"])
    def test_copies_are_installed_for_themselves(self, name, way):
        model = install(torchvision_model(name), "rank_sort")
        expected = losses_of(model, *batch(3, 2))
        if way == "copy":
            other = copy.deepcopy(model)
        else:
            file = io.BytesIO()
            torch.save(model, file)
            file.seek(0)
            other = torch.load(file, weights_only=False)
        terms = losses_of(other, *batch(3, 2))
        assert all(torch.equal(terms[k], expected[k]) for k in expected)
        sum(terms.values()).backward()
        assert all(p.grad is None for p in model.parameters())
        assert set(losses_of(uninstall(other), *batch(3, 2))) == OWN[name]
        assert set(losses_of(model, *batch(3, 2))) == set(expected)

    def test_a_state_dict_of_the_model_as_it_was_loads(self, name):
        model = torchvision_model(name)
        saved = copy.deepcopy(model.state_dict())
        install(model, "alrp").load_state_dict(saved)
        torchvision_model(name).load_state_dict(model.state_dict())

    @pytest.mark.parametrize("loss", ["rank_sort", "focal+concordance(0.3)"])
    def test_detections(self, name, loss):
        """Ranking losses have every score seen; the threshold comes back."""
        model = torchvision_model(name).eval()
        threshold = (model.roi_heads if "RCNN" in name else model).score_thresh
        images, _ = batch(3, 2)
        install(model, loss)
        found = model(images)
        now = (model.roi_heads if "RCNN" in name else model).score_thresh
        assert now == (0.0 if loss == "rank_sort" else threshold)
        assert len(found) == 2
        assert loss != "rank_sort" or all(len(f["scores"]) >= 50 for f in found)


class TestScores:
    def test_fcos_ranks_by_what_its_loss_ranked(self):
        model = torchvision_model("FCOS").eval()
        model.score_thresh = 0.0
        images, _ = batch(3)
        outputs = {}
        model.head.register_forward_hook(lambda *given: outputs.update(given[-1]))
        for loss in ("rank_sort", "default"):
            (found,) = install(model, loss)(images)
            probabilities = outputs["cls_logits"].sigmoid()
            if loss == "default":
                probabilities = torch.sqrt(probabilities * outputs["bbox_ctrness"].sigmoid())
            torch.testing.assert_close(found["scores"][0], probabilities.max())

    @pytest.mark.parametrize(
        ("loss", "trained"),
        [("rank_sort", False), ("rank_sort+centerness", True), ("focal+iou_head", True), ("default+pse", True)],
    )
    def test_the_loss_says_whether_centerness_learns(self, loss, trained):
        model = install(torchvision_model("FCOS"), loss)
        sum(losses_of(model, *batch(3, 2)).values()).backward()
        branch = model.head.regression_head.bbox_ctrness
        assert branch.weight.requires_grad is trained
        assert (branch.weight.grad is not None) is trained

    @pytest.mark.parametrize("name", ["SSD", "FasterRCNN"])
    def test_softmax_classifiers_rank_their_own_scores(self, name):
        """What the loss ranks are the log-odds of the probabilities that the model's own inference reports."""
        model = install(torchvision_model(name), "rank_sort")
        layer = model.head.classification_head if name == "SSD" else model.roi_heads.box_predictor
        raw = []
        layer.register_forward_hook(lambda *given: raw.append(given[-1] if name == "SSD" else given[-1][0]))
        records = seen_records(installed_criterion(model))
        losses_of(model, *batch(3))
        expected = raw[0].flatten(end_dim=-2).softmax(-1)[:, 1:]
        torch.testing.assert_close(records[-1].logits.sigmoid(), expected)

    def test_ranking_losses_see_every_proposal_and_anchor(self):
        model = install(torchvision_model("FasterRCNN"), "rank_sort")
        records = seen_records(installed_criterion(model))
        losses_of(model, *batch(3, 2))
        rpn, roi = records
        assert len(rpn.labels) == 2 * 3 * (8 * 12 + 4 * 6 + 2 * 3)
        assert len(roi.labels) > 0.9 * (2 * 100 + 5)
        install(model, "ce")
        records = seen_records(installed_criterion(model))
        model.roi_heads.fg_bg_sampler.batch_size_per_image = 10
        assert set(losses_of(model, *batch(3, 2))) >= {"loss_objectness", "loss_roi_classification"}
        assert len(records[-1].labels) == 20


class TestAgainstTheZoo:
    """The same weights and batch: an installed model has the losses of ours."""

    @pytest.mark.parametrize("loss", ["rank_sort", "alrp", "focal+concordance(0.3)", "harmonic"])
    def test_fcos(self, loss):
        theirs = install(torchvision_model("FCOS"), loss)
        ours = build_detector("fcos", num_classes=4, size="nano", loss=loss, image_size=(64, 96)).train()
        ours.backbone, ours.anchor_generator = theirs.backbone, theirs.anchor_generator
        ours.head = _ZooHead(theirs.head)
        images, targets = batch(3, 0, 2)
        got = losses_of(theirs, images, targets)
        expected = ours(images, [{**t, "labels": t["labels"] + 1} for t in targets])  # its classes begin at 1
        assert set(got) == {f"loss_{k}" for k in expected}
        for k, v in expected.items():
            torch.testing.assert_close(got[f"loss_{k}"], v, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("loss", ["ce", "harmonic"])
    def test_ssd_learns_from_its_hardest_negatives(self, loss):
        model = torchvision_model("SSD")
        own = losses_of(model, *batch(3, 2))
        got = losses_of(install(model, loss), *batch(3, 2))
        if loss == "ce":
            torch.testing.assert_close(got["loss_classification"], own["classification"])
            torch.testing.assert_close(got["loss_box"], own["bbox_regression"])
        else:
            assert set(got) == {"loss_classification", "loss_harmonic", "loss_contrast"}

    @pytest.mark.parametrize("kind", ["l1", "smooth_l1", "giou"])
    def test_retinanet_keeps_its_box_term(self, kind):
        """v2 regresses by GIoU; of one image our normalizer is torchvision's."""
        model = torchvision_model("RetinaNet")
        model.head.regression_head._loss_type = kind
        own = losses_of(model, *batch(3))
        got = losses_of(install(model, "focal"), *batch(3))
        torch.testing.assert_close(got["loss_classification"], own["classification"])
        torch.testing.assert_close(got["loss_box"], own["bbox_regression"])

    def test_faster_rcnn_with_cross_entropy_is_its_own(self):
        model = torchvision_model("MaskRCNN")
        own = losses_of(model, *batch(3, 0, 2))
        got = losses_of(install(model, "ce"), *batch(3, 0, 2))
        torch.testing.assert_close(got["loss_roi_classification"], own["loss_classifier"])
        torch.testing.assert_close(got["loss_roi_box"], own["loss_box_reg"])
        assert all(torch.equal(got[k], own[k]) for k in ("loss_mask", "loss_objectness", "loss_rpn_box_reg"))


class _ZooHead(nn.Module):
    """torchvision's FCOS head with the outputs of heads of this package."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, features):
        outputs = self.head(features)
        return outputs["cls_logits"], outputs["bbox_regression"], None


class TestLogOdds:
    def test_against_the_definition(self):
        logits = (4 * torch.randn(200, 5, generator=torch.Generator().manual_seed(0))).requires_grad_()
        exact = logits.detach().double().requires_grad_()
        p = exact.softmax(-1)[:, :-1]
        expected = torch.log(p / (1 - p))
        got = log_odds(logits)
        torch.testing.assert_close(got, expected.float(), rtol=1e-4, atol=1e-5)
        weights = torch.randn(200, 4, generator=torch.Generator().manual_seed(1))
        (mine,) = torch.autograd.grad((weights * got).sum(), logits)
        (other,) = torch.autograd.grad((weights.double() * expected).sum(), exact)
        torch.testing.assert_close(mine, other.float(), rtol=1e-4, atol=1e-5)

    def test_far_apart_and_tied(self):
        logits = torch.tensor([[100.0, -100.0, 0.0], [0.0, 0.0, 0.0], [-50.0, -50.0, 50.0]], requires_grad=True)
        got = log_odds(logits)
        log2 = torch.tensor(2.0).log().item()
        expected = torch.tensor([[100.0, -200.0], [-log2, -log2], [-100.0, -100.0]])
        torch.testing.assert_close(got, expected)
        got.sum().backward()
        assert logits.grad.isfinite().all()


class TestInstalling:
    def test_twice_replaces_the_loss(self):
        model = torchvision_model("FCOS")
        own = losses_of(model, *batch(3))
        install(install(model, "rank_sort"), "ap+concordance(0.3)")
        assert set(losses_of(model, *batch(3))) == {"loss_ranking", "loss_box", "loss_concordance"}
        assert uninstall(model).score_thresh == pytest.approx(0.2)
        assert set(losses_of(model, *batch(3))) == set(own)
        with pytest.raises(ValueError, match=r"no loss is installed in this FCOS; call install\(model, loss\) first"):
            uninstall(model)

    def test_a_refused_loss_changes_nothing(self):
        model = install(torchvision_model("RetinaNet"), "rank_sort")
        with pytest.raises(ValueError, match="RetinaNet has no auxiliary head for 'centerness'"):
            install(model, "focal+centerness")
        with pytest.raises(ValueError, match=r"loss must be one of .* got 'focall'"):
            install(model, "focall")
        assert "loss_ranking" in losses_of(model, *batch(3))

    @pytest.mark.parametrize(("name", "stage"), [("FCOS", ""), ("FasterRCNN", "roi_")])
    def test_a_criterion_is_taken_as_it_is(self, name, stage):
        criterion = build_criterion("ap+concordance(0.3)")
        model = install(torchvision_model(name), criterion)
        assert criterion in list(installed_criterion(model).modules())
        expected = {f"loss_{stage}{term}" for term in ("ranking", "box", "concordance")}
        assert {k for k in losses_of(model, *batch(3)) if "rpn" not in k} == expected

    def test_criteria_of_other_stages_are_refused(self):
        staged = installed_criterion(install(torchvision_model("FasterRCNN"), "rank_sort"))
        with pytest.raises(
            ValueError, match=r"must be a name or a Criterion, .* FCOS has one stage, got \['rpn', 'roi'\]"
        ):
            install(torchvision_model("FCOS"), staged)
        assert installed_criterion(install(torchvision_model("FasterRCNN"), staged)) is staged
        with pytest.raises(ValueError, match="loss must be a name or a criterion of concordet, got CrossEntropyLoss"):
            install(torchvision_model("FCOS"), nn.CrossEntropyLoss())

    @pytest.mark.parametrize(
        "build", [lambda: nn.Linear(2, 2), lambda: build_detector("fcos", num_classes=3, size="nano")]
    )
    def test_other_models_are_refused_by_name(self, build):
        model = build()
        with pytest.raises(ValueError, match=f"model must be one of RetinaNet, .*, got {type(model).__name__}"):
            install(model, "rank_sort")

    @pytest.mark.parametrize(
        ("wrap", "attribute"),
        [(nn.DataParallel, "module"), (lambda model: torch.compile(model, backend="eager"), "_orig_mod")],
    )
    def test_wrapped_models_are_refused(self, wrap, attribute):
        wrapper = wrap(torchvision_model("FCOS"))
        message = f"got {type(wrapper).__name__} around FCOS; install in model.{attribute} before wrapping"
        for call in (lambda: install(wrapper, "rank_sort"), lambda: uninstall(wrapper)):
            with pytest.raises(ValueError, match=message):
                call()
        install(getattr(wrapper, attribute), "rank_sort")

    @pytest.mark.parametrize("name", TORCHVISION)
    def test_a_coupling_changes_no_detection(self, name):
        model = torchvision_model(name).eval()
        images, _ = batch(3, 2)
        (model.roi_heads if "RCNN" in name else model).score_thresh = 0.005
        expected = model(images)
        assert len(expected[0]["scores"]) > 0
        for found, other in zip(install(model, "default+concordance(0.3)")(images), expected, strict=True):
            assert all(torch.equal(found[key], other[key]) for key in other)

    @pytest.mark.parametrize("name", ["RetinaNet", "SSD", "FasterRCNN", "MaskRCNN"])
    def test_a_ranking_loss_changes_the_threshold_only(self, name):
        model = torchvision_model(name).eval()
        images, _ = batch(3, 2)
        (model.roi_heads if "RCNN" in name else model).score_thresh = 0.0
        expected = model(images)
        for found, other in zip(install(model, "rank_sort")(images), expected, strict=True):
            assert all(torch.equal(found[key], other[key]) for key in other)

    def test_keypoints_are_refused(self):
        with torch.device("meta"):
            model = tv.keypointrcnn_resnet50_fpn(weights=None, weights_backbone=None)
        with pytest.raises(ValueError, match="got a KeypointRCNN of keypoints; use Faster R-CNN"):
            install(model, "rank_sort")

    @pytest.mark.parametrize(
        "name",
        [
            "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn", "ssd300_vgg16", "ssdlite320_mobilenet_v3_large",
            "fasterrcnn_resnet50_fpn_v2", "fasterrcnn_mobilenet_v3_large_fpn", "maskrcnn_resnet50_fpn_v2",
        ],
    )  # fmt: skip
    def test_torchvisions_builders(self, name):
        with torch.device("meta"):
            model = getattr(tv, name)(weights=None, weights_backbone=None)
        keys = list(model.state_dict())
        assert list(install(model, "rank_sort").state_dict()) == keys
        assert type(model).__name__ in list_installable()

    def test_state_of_alrp_is_saved_beside_the_model(self):
        model = install(torchvision_model("FCOS"), "alrp")
        criterion = installed_criterion(model)
        first = losses_of(model, *batch(3))["loss_box"]
        criterion.on_epoch_end()
        second = losses_of(model, *batch(3))["loss_box"]
        assert second < first
        other = install(torchvision_model("FCOS"), "alrp")
        other.load_state_dict(model.state_dict())
        installed_criterion(other).load_state_dict(criterion.state_dict())
        torch.testing.assert_close(losses_of(other, *batch(3))["loss_box"], second)

    def test_only_learning_gathers_state(self):
        model = install(torchvision_model("FCOS"), "alrp")
        with torch.no_grad():
            losses_of(model, *batch(3))
        assert installed_criterion(model).core.sums.sum() == 0
        losses_of(model, *batch(3))
        assert installed_criterion(model).core.sums.sum() > 0


def test_it_learns():
    """A few steps on one image: what the loss ranks comes to the top."""
    model = install(torchvision_model("FCOS"), "rank_sort")
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    images, targets = batch(3)
    history = []
    for _ in range(40):
        terms = model(images, copy.deepcopy(targets))
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        history.append(terms["loss_ranking"].item())
    assert history[-1] < 0.3 < history[0]
    (found,) = model.eval()(images)
    best = box_iou(targets[0]["boxes"], found["boxes"][:10]).amax(1)
    assert best.mean() > 0.4
