"""Two-stage detectors: torchvision's numbers with the default loss, sampling, cascades, and the stages of a loss."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torchvision.models import detection
from torchvision.models.detection.faster_rcnn import FasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNN

from concordet.assigned import BACKGROUND, IGNORED
from concordet.boxes import paired_iou
from concordet.detectors import build_detector
from concordet.detectors.architectures.two_stage.faster_rcnn import DEFAULTS
from concordet.detectors.parts.proposals import roi_matches, sample
from concordet.losses import build_criterion
from concordet.losses.criteria import StagedCriterion
from tests.detectors.scenes import batch, build

TWO_STAGE = ["faster_rcnn", "cascade_rcnn", "mask_rcnn"]


def torchvision_twin(ours):
    """torchvision's class around the same modules, with the same settings."""
    stage, rpn = ours.roi_heads, ours.rpn
    common = {
        "box_roi_pool": ours.box_pool,
        "box_head": stage.box_head,
        "box_predictor": stage.box_predictor,
        "rpn_anchor_generator": rpn.anchor_generator,
        "rpn_head": rpn.head,
        "rpn_pre_nms_top_n_train": 500,
        "rpn_pre_nms_top_n_test": 500,
        "rpn_post_nms_top_n_train": 200,
        "rpn_post_nms_top_n_test": 200,
        "box_score_thresh": ours.postprocess.score_threshold,
        "min_size": 64,
        "max_size": 96,
    }
    if hasattr(stage, "mask_head"):
        return MaskRCNN(
            ours.backbone,
            mask_roi_pool=ours.mask_pool,
            mask_head=stage.mask_head,
            mask_predictor=stage.mask_predictor,
            **common,
        )
    return FasterRCNN(ours.backbone, **common)


def spread(model):
    """Fresh classifiers and regressors give nearly tied scores, whose order is arbitrary."""
    generator = torch.Generator().manual_seed(3)
    stage = model.roi_heads
    for layer, std in (
        (model.rpn.head.cls_logits, 1.0), (model.rpn.head.bbox_pred, 0.3),
        (stage.box_predictor.cls_score, 1.0), (stage.box_predictor.bbox_pred, 1.0),
    ):  # fmt: skip
        torch.nn.init.normal_(layer.weight, std=std, generator=generator)
    return model


class TestAgainstTorchvision:
    """Same weights, same batch, same seed of the sampler: torchvision's own class computes the same."""

    @pytest.mark.parametrize("name", ["faster_rcnn", "mask_rcnn"])
    def test_losses(self, name):
        ours = spread(build(name))
        theirs = torchvision_twin(ours).train()
        images, targets = batch(3, 0, 5)
        torch.manual_seed(5)
        expected = theirs(images, copy.deepcopy(targets))
        torch.manual_seed(5)
        got = ours(images, targets)
        pairs = {
            "rpn_classification": "loss_objectness",
            "rpn_box": "loss_rpn_box_reg",
            "roi_classification": "loss_classifier",
            "roi_box": "loss_box_reg",
            "roi_mask": "loss_mask",
        }
        assert set(got) == {mine for mine, other in pairs.items() if other in expected}
        for mine in got:
            assert got[mine] > 0
            torch.testing.assert_close(got[mine], expected[pairs[mine]], rtol=1e-5, atol=1e-6)
        parameters = [p for p in ours.parameters() if p.requires_grad]
        mine = torch.autograd.grad(sum(got.values()), parameters)
        other = torch.autograd.grad(sum(expected.values()), parameters)
        for a, b in zip(mine, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)

    @pytest.mark.parametrize("name", ["faster_rcnn", "mask_rcnn"])
    def test_detections(self, name):
        ours = spread(build(name, score_threshold=0.05)).eval()
        images, _ = batch(3, 5)
        theirs = torchvision_twin(ours).eval()
        for got, expected in zip(ours(images), theirs(images), strict=True):
            assert len(got["scores"]) > 10
            assert got.keys() == expected.keys()
            for field in expected:
                torch.testing.assert_close(got[field], expected[field], rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        ("name", "builder"),
        [("faster_rcnn", detection.fasterrcnn_resnet50_fpn), ("mask_rcnn", detection.maskrcnn_resnet50_fpn)],
    )
    def test_parameters_at_full_size(self, name, builder):
        """Every parameter has torchvision's name and shape, so that its weights load."""
        with torch.device("meta"):
            theirs = builder(weights=None, weights_backbone=None, num_classes=81).state_dict()
            ours = build_detector(name, num_classes=80).state_dict()
        assert {k: v.shape for k, v in ours.items() if k[:9] != "criterion"} == {k: v.shape for k, v in theirs.items()}


@pytest.mark.parametrize("name", TWO_STAGE)
class TestRecords:
    def test_sampled_with_softmax(self, name):
        torch.manual_seed(0)
        rpn, *rois = build(name).assigned(*batch(3, 0, 4))
        assert len(rpn.labels) == 3 * 256
        assert rpn.normalizer == 3 * 256
        assert len(rpn.positive) <= 3 * 128
        for record in rois:
            assert record.softmax
            assert record.logits.shape == (len(record.labels), 4)
            assert record.normalizer == len(record.labels) <= 3 * 512
        assert [r.stage for r in (rpn, *rois)] == list(build(name).criterion.stages)

    def test_a_softmax_that_needs_no_samples_sees_everything(self, name):
        criterion = build_criterion("ce", DEFAULTS)
        assert criterion.needs.softmax
        criterion.needs = replace(criterion.needs, samples=False)
        rpn, *rois = build(name, criterion).assigned(*batch(3, 0, 4))
        assert len(rpn.labels) > 3 * 256
        for record in rois:
            assert record.softmax
            assert record.normalizer == max(len(record.positive), 1)

    @pytest.mark.parametrize("loss", ["rank_sort", "focal"])
    def test_all_anchors_and_proposals_without_softmax(self, name, loss):
        model = build(name, loss)
        images, targets = batch(3, 0, 4)
        rpn, *rois = model.assigned(images, targets)
        anchors = model.rpn.anchor_generator(ImageList(torch.zeros(3, 3, 64, 96), [(64, 96)] * 3), _levels())
        assert len(rpn.labels) == 3 * len(anchors[0])
        found = model._predict(images, targets).rpn
        for record in rois:
            assert not record.softmax
            assert record.logits.shape == (sum(len(b) for b in found.boxes) + 7, 3)  # and the objects' own boxes
            assert record.normalizer == max(len(record.positive), 1)

    def test_perfect_regression_has_iou_one(self, name):
        model = build(name, "rank_sort")
        records = model.assigned(*batch(4, 2))
        references = _references(model, batch(4, 2))
        coders = [model.rpn.box_coder, *(s.coder for s in model.box_stages)]
        for record, boxes, coder in zip(records, references, coders, strict=True):
            decoded = coder.decode_single(record.regression.targets, boxes[record.positive])
            assert len(decoded) > 0
            torch.testing.assert_close(paired_iou(decoded, record.gt_boxes), torch.ones(len(decoded)))

    def test_evaluation_measures_only_proposals_and_samples_nothing(self, name):
        model = build(name).eval()
        images, targets = batch(3, 4)
        state = torch.get_rng_state()
        *_, last = model.assigned(images, targets)
        assert torch.equal(torch.get_rng_state(), state)
        found = model._predict(images, None).rpn
        assert len(last.labels) == sum(len(b) for b in found.boxes)
        detections, records = model.detections_and_assigned(images, targets)
        torch.testing.assert_close(records[-1].confidences(), last.confidences())
        torch.testing.assert_close(detections, model(images))


def _levels():
    return [torch.zeros(3, 1, 64 // s, 96 // s) for s in (8, 16, 32)]


def _references(model, scenes):
    outcome = model._predict(*scenes)
    found = outcome.rpn
    boxes = [torch.cat(pair) for pair in zip(found.boxes, outcome.objects.boxes, strict=True)]
    return [torch.cat(found.anchors), *(torch.cat(r.references) for r in model.refine(found, boxes))]


class TestCascade:
    def test_each_stage_refines_the_boxes_of_the_one_before(self):
        model = build("cascade_rcnn", "rank_sort")
        found = model._predict(*batch(2, 3)).rpn
        first, second, third = model.refine(found, found.boxes)
        for before, after, stage in ((first, second, model.box_stages[0]), (second, third, model.box_stages[1])):
            decoded = stage.coder.decode_single(before.deltas[:, 0], torch.cat(before.references))
            decoded[:, 0::2].clamp_(0, 96)
            decoded[:, 1::2].clamp_(0, 64)
            torch.testing.assert_close(torch.cat(after.references), decoded)
            assert not torch.cat(after.references).requires_grad

    def test_positives_need_higher_ious_at_later_stages(self):
        model = build("cascade_rcnn", "rank_sort")
        scenes = batch(6, 8)
        _, *records = model.assigned(*scenes)
        for record, boxes, threshold in zip(records, _references(model, scenes)[1:], (0.5, 0.6, 0.7), strict=True):
            ious = paired_iou(boxes[record.positive], record.gt_boxes)
            assert (ious >= threshold).all()
            assert (record.labels == BACKGROUND).sum() + len(record.positive) == len(record.labels)

    def test_stages_weigh_as_published(self):
        assert build("cascade_rcnn").criterion.weights == {"roi1": 1.0, "roi2": 0.5, "roi3": 0.25}
        assert build("cascade_rcnn", "rank_sort").criterion.weights == {"rpn": 0.2}

    def test_boxes_are_coded_with_the_published_standard_deviations(self):
        published = [(0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067)]
        for stage, stds in zip(build("cascade_rcnn").box_stages, published, strict=True):
            proposal, box = torch.tensor([[10.0, 20.0, 50.0, 40.0]]), torch.tensor([[14.0, 18.0, 44.0, 50.0]])
            raw = [(29 - 30) / 40, (34 - 30) / 20, math.log(30 / 40), math.log(32 / 20)]
            expected = torch.tensor([[value / std for value, std in zip(raw, stds, strict=True)]])
            torch.testing.assert_close(stage.coder.encode_single(box, proposal), expected)
        for stage in build("cascade_rcnn", "rank_sort").box_stages:
            assert stage.coder.weights == (10.0, 10.0, 5.0, 5.0)
        for loss, weights in (("default", (1.0,) * 4), ("rank_sort", (10.0, 10.0, 5.0, 5.0))):
            assert build("cascade_rcnn", loss).rpn.box_coder.weights == weights

    def test_box_terms_are_smooth_l1_with_beta_1(self):
        """Per stage: the sum over coordinates of x^2 / 2 below 1 and |x| - 1 / 2 above, over all sampled boxes."""
        model = build("cascade_rcnn")
        records = model.assigned(*batch(4, 6))
        losses = model.criterion(records)
        for record, weight in zip(records[1:], (1.0, 0.5, 0.25), strict=True):
            error = (record.regression.deltas - record.regression.targets).abs()
            loss = torch.where(error < 1, error**2 / 2, error - 0.5).sum() / len(record.labels)
            torch.testing.assert_close(losses[f"{record.stage}_box"], weight * loss)
        rpn = records[0]
        error = (rpn.regression.deltas - rpn.regression.targets).abs()
        loss = torch.where(error < 1 / 9, error**2 * 4.5, error - 1 / 18).sum() / len(rpn.labels)
        torch.testing.assert_close(losses["rpn_box"], loss)

    def test_scores_are_those_of_the_averaged_logits(self):
        model = build("cascade_rcnn", "rank_sort").eval()
        images, targets = batch(4)
        found = model._predict(images, None).rpn
        scores = sum(r.logits for r in model.refine(found, found.boxes)).div(3).sigmoid()
        (detected,) = model(images)
        assert detected["scores"][0] == scores.max()
        record = model.assigned(images, targets)[-1]
        torch.testing.assert_close(record.logits.sigmoid(), scores)


class TestMasks:
    def test_targets_are_the_objects_in_the_frames_of_the_boxes(self):
        """A box equal to that of its object, whose mask fills it, has a target of ones."""
        model = build("mask_rcnn", "rank_sort")
        images, targets = batch(3)
        targets[0]["masks"] = torch.ones_like(targets[0]["masks"])
        record = model.assigned(images, targets)[-1]
        assert record.masks.logits.shape == record.masks.targets.shape == (len(record.positive), 14, 14)
        own = record.positive >= len(record.labels) - 3  # objects' boxes come last
        assert own.sum() == 3
        torch.testing.assert_close(record.masks.targets[own], torch.ones(3, 14, 14))

    def test_a_record_without_masks_on_images_without(self):
        model = build("mask_rcnn").eval()
        images, targets = batch(3)
        del targets[0]["masks"]
        assert model.assigned(images, targets)[-1].masks is None
        with pytest.raises(ValueError, match="target 0: masks must be given for mask_rcnn, got none"):
            model.train()(images, targets)

    def test_masks_of_another_shape_are_refused(self):
        images, targets = batch(3)
        targets[0]["masks"] = targets[0]["masks"][:2]
        with pytest.raises(ValueError, match=r"masks must be \[3, 64, 96\], one per object, got \[2, 64, 96\]"):
            build("mask_rcnn")(images, targets)

    def test_detected_masks_lie_in_the_image(self):
        images, _ = batch(3)
        image = torch.nn.functional.interpolate(images[0][None], (50, 40))[0]
        (found,) = build("mask_rcnn", score_threshold=0.0).eval()([image])
        assert found["masks"].shape == (len(found["boxes"]), 1, 50, 40)
        assert found["masks"].min() >= 0
        assert found["masks"].max() <= 1


class TestCriteria:
    def test_the_region_proposal_network_has_the_same_kind_of_loss(self):
        def kinds(loss):
            stages = build("faster_rcnn", loss).criterion.stages
            return [(sorted(stages[s].couplings), not stages[s].needs.ranks_only) for s in ("rpn", "roi")]

        assert kinds("focal+concordance+pse") == [([], True), (["concordance", "pse"], True)]
        assert kinds("ap+concordance") == [(["concordance"], False)] * 2
        assert build("faster_rcnn", "alrp").criterion.stages["rpn"].core.term.positive_iou == 0.7

    def test_proposals_of_ranking_losses_weigh_a_fifth(self):
        model = build("faster_rcnn", "rank_sort")
        scenes = batch(3, 2)
        terms, (rpn, _) = model(*scenes), model.assigned(*scenes)
        alone = build_criterion("rank_sort")(rpn)
        for name, value in alone.items():
            torch.testing.assert_close(terms[f"rpn_{name}"], 0.2 * value)

    def test_criterion_objects_are_taken(self):
        criterion = build_criterion("rank_sort")
        model = build("faster_rcnn", criterion)
        assert model.criterion.stages["roi"] is criterion
        assert model.criterion.stages["rpn"].needs.ranks_only
        assert model.postprocess.score_threshold == 0
        stages = build("cascade_rcnn", build_criterion("alrp")).criterion.stages
        assert len({id(stage.core) for stage in stages.values()}) == 4  # state of their own
        staged = StagedCriterion({"rpn": build_criterion("ce"), "roi": build_criterion("focal")})
        assert build("faster_rcnn", staged).criterion is staged
        assert build("faster_rcnn", build_criterion("focal")).criterion.weights == {"roi": 1.0}

    @pytest.mark.parametrize(
        ("name", "loss", "message"),
        [
            ("faster_rcnn", "focal+iou_head", "without auxiliary head for faster_rcnn, got 'focal.iou_head'"),
            ("mask_rcnn", "ce+centerness", "without auxiliary head for mask_rcnn"),
            (
                "cascade_rcnn",
                StagedCriterion({"roi": build_criterion("ce")}),
                r"criterion must be .*, got \['roi'\]",
            ),
        ],
    )
    def test_refusals(self, name, loss, message):
        with pytest.raises(ValueError, match=message):
            build(name, loss)


def test_roi_matching_is_the_best_object_above_the_threshold():
    proposals = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6], [0, 0, 10, 4], [50, 50, 60, 60]])
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6]])
    assert roi_matches(proposals, boxes).tolist() == [0, 1, 1, BACKGROUND]
    assert roi_matches(proposals, boxes, foreground=0.7).tolist() == [0, 1, BACKGROUND, BACKGROUND]
    assert roi_matches(proposals, boxes[:0]).tolist() == [BACKGROUND] * 4
    assert roi_matches(proposals[:0], boxes).tolist() == []


def test_a_sample_has_its_share_of_positives_and_nothing_ignored():
    from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

    matches = torch.tensor([2] * 30 + [BACKGROUND] * 50 + [IGNORED] * 20)
    (rows,) = sample([matches], BalancedPositiveNegativeSampler(40, 0.25))
    assert (matches[rows] >= 0).sum() == 10
    assert (matches[rows] == BACKGROUND).sum() == 30


@pytest.mark.parametrize(
    ("name", "loss", "count"),
    [
        ("faster_rcnn", "default", 2000),  # torchvision's own, of which 512 are drawn
        ("faster_rcnn", "focal", 1000),
        ("mask_rcnn", "rank_sort", 1000),
        ("cascade_rcnn", "rank_sort", 2000),
    ],
)
def test_number_of_proposals_in_training(name, loss, count):
    with torch.device("meta"):
        model = build_detector(name, num_classes=3, loss=loss)
    assert model.rpn._post_nms_top_n["training"] == count
