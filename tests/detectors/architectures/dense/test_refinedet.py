"""RefineDet: its two stages."""

import pytest
import torch

from concordet.assigned import IGNORED
from concordet.detectors import build_detector
from concordet.losses.criteria import StagedCriterion, build_criterion
from tests.detectors.scenes import batch, build


class TestRefineDet:
    def test_the_second_stage_starts_where_the_first_ends(self):
        model = build("refinedet")
        first, second = model._predict(*batch(3, 2)).stages
        for i in range(2):
            boxes = model.codec.decode(first.regressions[i], first.anchors[i])
            torch.testing.assert_close(second.anchors[i], boxes)
            assert not second.anchors[i].requires_grad

    def test_the_first_stage_tells_objects_from_background(self):
        arm, odm = build("refinedet").assigned(*batch(3, 2))
        assert (arm.stage, odm.stage) == ("arm", "odm")
        assert (arm.logits.shape[1], odm.logits.shape[1]) == (2, 4)
        assert (arm.labels[arm.positive] == 0).all()

    def test_anchors_without_objectness_are_ruled_out(self):
        model = build("refinedet").eval()
        for layer in model.head.arm.classification_head.module_list:
            torch.nn.init.constant_(layer.bias.view(-1, 2)[:, 0], 9.0)  # torchvision's order: background first
        model.eval()
        images, targets = batch(3)
        _, odm = model.assigned(images, targets)
        assert (odm.labels == IGNORED).all()
        assert len(model(images)[0]["boxes"]) == 0
        terms, _ = model.losses_and_detections(images, targets)
        assert all(v.isfinite() for v in terms.values())

    def test_losses_without_softmax_rule_out_nothing(self):
        model = build("refinedet", "rank_sort+pse")
        assert model._predict(*batch(2)).stages[-1].dropped is None
        assert set(model.criterion.stages["arm"].couplings) == set()
        assert set(model.criterion.stages["odm"].couplings) == {"pse"}
        assert model.postprocess.score_threshold == 0

    def test_a_criterion_object_serves_both_stages(self):
        criterion = build_criterion("alrp")
        model = build("refinedet", criterion)
        assert model.criterion.stages["odm"] is criterion
        sum(model(*batch(2)).values()).backward()
        model.criterion.on_epoch_end()
        first, second = (model.criterion.stages[s].core.weight for s in ("arm", "odm"))
        assert first != second  # each balances itself

    @pytest.mark.parametrize("backbone", ["vgg16", "resnet50"])
    def test_levels(self, backbone):
        with torch.device("meta"):
            model = build_detector("refinedet", num_classes=3, backbone=backbone)
            shapes = [tuple(x.shape[-2:]) for x in model.backbone(torch.zeros(1, 3, 320, 320)).values()]
        assert shapes == [(40, 40), (20, 20), (10, 10), (5, 5)]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"loss": "focal+iou_head"}, "without auxiliary head for"),
            ({"loss": StagedCriterion({"roi": build_criterion("focal")})}, "stages of the criterion must be"),
            ({"backbone": "vgg"}, "backbone must be one of resnet18"),
            ({"size": "nano", "backbone": "vgg16"}, "drop backbone='vgg16'"),
        ],
    )
    def test_refusals(self, options, message):
        with pytest.raises(ValueError, match=message):
            build_detector("refinedet", num_classes=3, **options)
