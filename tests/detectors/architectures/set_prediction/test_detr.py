"""DETR: Transformers' own logits, boxes and losses on the same weights and images, its folders, ranking losses."""

import pytest
import torch
from torchvision.ops import box_convert
from transformers import DetrConfig, DetrForObjectDetection
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher
from transformers.loss.loss_for_object_detection import HungarianMatcher, ImageLoss

from concordet.detectors import build_detector
from concordet.detectors.networks.transformers_base import PlaceholderConfig, valid_pixels
from concordet.losses import build_criterion
from concordet.losses.criteria import StagedCriterion
from tests.detectors.architectures.set_prediction.test_deformable_detr import TERMS, theirs, unequal
from tests.detectors.scenes import batch, build

NAME = "detr"


def spread(model):
    """Fresh heads predict the same for all queries, and any matching is as good as another."""
    torch.manual_seed(1)
    for parameter in (*model.network.bbox_predictor.parameters(), *model.network.class_labels_classifier.parameters()):
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def published(model):
    """Transformers' class itself with the detector's weights; only the loss of the last layer."""
    config = DetrConfig(
        **{**model.network.config.to_dict(), "auxiliary_loss": False, "backbone_config": PlaceholderConfig()}
    )
    config.backbone_config = model.network.config.backbone_config
    reference = DetrForObjectDetection(config)
    reference.model.backbone.model = model.backbone
    reference.load_state_dict(model.network.state_dict())
    return reference.train(model.training)


class TestAgainstTransformers:
    def test_losses_and_gradients_of_every_layer(self):
        model = spread(build(NAME))
        images, targets = unequal()
        expected, _ = theirs(model, images, targets)
        terms = model(images, targets)
        assert len(terms) == 9
        for layer, suffix in (("layer1", "_0"), ("layer2", "_1"), ("layer3", "")):
            for ours, (name, weight) in TERMS.items():
                wanted = weight * expected.loss_dict[name + suffix]
                torch.testing.assert_close(terms[f"{layer}_{ours}"], wanted, rtol=1e-5, atol=1e-6)
        total = sum(terms.values())
        torch.testing.assert_close(total, expected.loss, rtol=1e-5, atol=1e-6)
        parameters = dict(model.named_parameters())
        got = torch.autograd.grad(total, list(parameters.values()))
        wanted = torch.autograd.grad(expected.loss, list(parameters.values()))
        largest = max(b.abs().max().item() for b in wanted)
        for name, a, b in zip(parameters, got, wanted, strict=True):  # some are zero but for rounding: keys' biases
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6 * largest, msg=name)

    def test_the_class_itself(self):
        """Untouched, it has the same logits, boxes and loss of the last layer."""
        model = spread(build(NAME))
        images, targets = unequal()
        outcome = model._predict(images, None)
        terms = model(images, targets)
        model.network = published(model)
        expected, _ = theirs(model, images, targets)
        torch.testing.assert_close(outcome.stages[-1].logits, expected.logits, rtol=1e-5, atol=1e-5)
        for boxes, wanted, (height, width) in zip(
            outcome.stages[-1].boxes, expected.pred_boxes, outcome.sizes, strict=True
        ):
            pixels = box_convert(wanted, "cxcywh", "xyxy") * torch.tensor([width, height, width, height])
            torch.testing.assert_close(boxes, pixels, rtol=1e-5, atol=1e-4)
        last = sum(value for name, value in terms.items() if name.startswith("layer3"))
        torch.testing.assert_close(last, expected.loss, rtol=1e-5, atol=1e-6)

    def test_earlier_layers_are_normalized_only_for_their_predictions(self):
        """As published: with fewer layers of the same weights, Transformers' class predicts what a layer does."""
        model = spread(build(NAME)).eval()
        images, targets = unequal()
        first = model._predict(images, None).stages[0]
        terms = model.losses_and_detections(images[:1], targets[:1])[0]
        shorter = published(model)
        shorter.model.decoder.layers = shorter.model.decoder.layers[:1]
        pixels, _ = model.transform(images)
        expected = shorter(pixels.tensors, valid_pixels(pixels))
        torch.testing.assert_close(first.logits, expected.logits, rtol=1e-5, atol=1e-5)
        model.network = shorter
        wanted, _ = theirs(model, images[:1], targets[:1])
        own = sum(value for name, value in terms.items() if name.startswith("layer1"))
        torch.testing.assert_close(own, wanted.loss, rtol=1e-5, atol=1e-6)

    def test_a_ranking_loss_is_matched_with_a_class_cost_of_four(self):
        """Transformers' L1 on our matches, which are those of its matcher for a sigmoid a class."""
        model = spread(build(NAME, "ap"))
        images, targets = unequal()
        outcome = model._predict(images, None)
        _, labels = theirs(build(NAME), images, targets)
        stage, terms = outcome.stages[-1], model(images, targets)
        extents = torch.tensor([[w, h, w, h] for h, w in outcome.sizes])[:, None]
        found = {"logits": stage.logits, "pred_boxes": box_convert(stage.boxes / extents, "xyxy", "cxcywh")}
        matcher = DeformableDetrHungarianMatcher(class_cost=4, bbox_cost=5, giou_cost=2)
        expected = ImageLoss(matcher, 3, 0.1, ["boxes"])(found, labels)
        other = ImageLoss(HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2), 3, 0.1, ["boxes"])(found, labels)
        torch.testing.assert_close(terms["layer3_l1"], 5 * expected["loss_bbox"], rtol=1e-5, atol=1e-6)
        assert (other["loss_bbox"] - expected["loss_bbox"]).abs() > 1e-3


class TestCriteria:
    def test_a_softmax_has_no_object_and_other_losses_have_none(self):
        for loss, outputs in (("default", 4), ("ce+pse", 4), ("harmonic", 4), ("focal", 3), ("rank_sort", 3)):
            assert build(NAME, loss).network.class_labels_classifier.out_features == outputs

    def test_class_costs(self):
        costs = {"default": 1, "harmonic": 1, "focal+concordance": 2, "rank_sort": 4, "alrp": 4}
        assert {loss: build(NAME, loss).costs.classification for loss in costs} == costs

    def test_l1_and_giou_are_balanced_each_for_itself(self):
        terms = build(NAME, "rank_sort")(*batch(3, 2))
        for layer in ("layer1", "layer2", "layer3"):
            classification = terms[f"{layer}_ranking"] + terms[f"{layer}_sorting"]
            torch.testing.assert_close(terms[f"{layer}_box"], classification)
            torch.testing.assert_close(terms[f"{layer}_l1"], classification)

    def test_scores_of_a_softmax_are_those_of_the_best_class(self):
        model = spread(build(NAME)).eval()
        images, _ = batch(2)
        (stage,) = model._predict(images, None).stages[-1:]
        best = stage.logits.softmax(-1)[0, :, :-1].max(-1)
        (found,) = model(images)
        order = best.values.argsort(descending=True, stable=True)
        torch.testing.assert_close(found["scores"], best.values[order])
        assert found["labels"].tolist() == (best.indices[order] + 1).tolist()

    def test_by_object(self):
        assert set(build(NAME, build_criterion("focal"), layers=1)(*batch(2))) == {
            "layer1_classification",
            "layer1_box",
        }
        staged = StagedCriterion({name: build_criterion("ap") for name in ("layer1", "layer2")})
        assert build(NAME, staged, layers=2).criterion is staged


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"num_queries": 0}, "num_queries must be at least 1, got 0"),
        ({"loss": "default+iou_head"}, "without auxiliary head for"),
        ({"two_stage": True}, "option of detr must be one of num_queries, .*, got two_stage"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        build(NAME, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What Transformers writes of its own class, and that one."""
    torch.manual_seed(2)
    config = DetrConfig(backbone="resnet18", num_labels=3, encoder_layers=2, decoder_layers=2, num_queries=20)
    reference = DetrForObjectDetection(config).eval()
    path = tmp_path_factory.mktemp("detr")
    reference.save_pretrained(path)
    return path, reference


SHAPE = {"num_classes": 3, "backbone": "resnet18", "layers": 2, "num_queries": 20, "image_size": (64, 96)}


class TestWeights:
    @pytest.mark.parametrize("loss", ["default", "rank_sort"])
    def test_a_folder_of_transformers(self, folder, loss):
        """The whole network, backbone included, predicts what theirs does; a sigmoid a class has no "no object"."""
        path, reference = folder
        model = build_detector(NAME, weights=path, loss=loss, **SHAPE).eval()
        images, _ = unequal()
        pixels, _ = model.transform(images)
        with torch.no_grad():
            expected = reference(pixels.tensors, valid_pixels(pixels)).logits
            got = model._predict(images, None).stages[-1].logits
        torch.testing.assert_close(got, expected[..., : got.shape[-1]], rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_queries": 10}, "num_queries 10, got 20"),
            ({"num_classes": 5}, "num_labels 5, got 3"),
            ({"backbone": "resnet34"}, "must be the same one"),
        ],
    )
    def test_a_folder_of_another_shape_is_refused(self, folder, options, message):
        with pytest.raises(ValueError, match=message):
            build_detector(NAME, weights=folder[0], **{**SHAPE, **options})

    def test_a_folder_of_another_model_is_refused(self, folder):
        with pytest.raises(ValueError, match=r"must hold a .*DeformableDetrForObjectDetection"):
            build_detector("deformable_detr", weights=folder[0], **SHAPE)

    def test_a_folder_without_some_weights_is_refused(self, folder, tmp_path):
        reference = folder[1]
        state = {k: v for k, v in reference.state_dict().items() if "query_position" not in k}
        reference.save_pretrained(tmp_path, state_dict=state)
        with pytest.raises(ValueError, match=r"got none of 'model\.query_position_embeddings\.weight'"):
            build_detector(NAME, weights=tmp_path, **SHAPE)


def test_parameters_at_full_size():
    """The authors' table, which counts COCO's 91 class ids."""
    with torch.device("meta"):
        model = build_detector(NAME, num_classes=91)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(41, rel=0.02)
