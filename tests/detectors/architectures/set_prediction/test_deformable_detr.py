"""Deformable DETR: Transformers' own losses on the same weights and images, its folders, ranking losses."""

import pytest
import torch
from torchvision.ops import box_convert
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher, DeformableDetrImageLoss
from transformers.loss.loss_for_object_detection import HungarianMatcher

from concordet.detectors import build_detector
from concordet.detectors.networks.transformers_base import valid_pixels
from concordet.detectors.parts.hungarian import Costs, hungarian_match
from concordet.losses import build_criterion
from concordet.losses.criteria import StagedCriterion
from tests.detectors.scenes import batch, build, scene

NAME = "deformable_detr"
SHAPES = [{}, {"box_refine": True}, {"two_stage": True}]
TERMS = {"classification": ("loss_ce", 1), "l1": ("loss_bbox", 5), "box": ("loss_giou", 2)}


def spread(model):
    """Fresh heads predict the same for all queries, and any matching is as good as another."""
    torch.manual_seed(1)
    for head in (*model.network.bbox_embed, *model.network.class_embed):
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def unequal():
    """Three images of other sizes, one without objects: all but the largest are padded."""
    scenes = [scene(3, 64, 96, seed=1), scene(0, 50, 60, seed=2), scene(5, 90, 40, seed=3)]
    return [list(part) for part in zip(*scenes, strict=True)]


def theirs(model, images, targets):
    """What Transformers' model gives for the same pixels, masks and objects."""
    pixels, resized = model.transform(images, targets)
    labels = []
    for target, (height, width) in zip(resized, pixels.image_sizes, strict=True):
        boxes = box_convert(target["boxes"], "xyxy", "cxcywh") / torch.tensor([width, height, width, height])
        labels.append({"class_labels": target["labels"] - 1, "boxes": boxes})
    return model.network(pixels.tensors, valid_pixels(pixels), labels=labels), labels


@pytest.mark.parametrize("shape", SHAPES, ids=["plain", "box_refine", "two_stage"])
class TestAgainstTransformers:
    def test_losses_and_gradients(self, shape):
        model = spread(build(NAME, layers=3, **shape))
        images, targets = unequal()
        expected, _ = theirs(model, images, targets)
        terms = model(images, targets)
        for layer, suffix in (("layer1", "_0"), ("layer2", "_1"), ("layer3", "")):
            for ours, (name, weight) in TERMS.items():
                wanted = weight * expected.loss_dict[name + suffix]
                torch.testing.assert_close(terms[f"{layer}_{ours}"], wanted, rtol=1e-5, atol=1e-6)
        total = sum(value for name, value in terms.items() if not name.startswith("encoder"))
        torch.testing.assert_close(total, expected.loss, rtol=1e-5, atol=1e-6)
        parameters = dict(model.named_parameters())
        got = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
        wanted = torch.autograd.grad(expected.loss, list(parameters.values()), allow_unused=True)
        largest = max(b.abs().max().item() for b in wanted if b is not None)
        for name, a, b in zip(parameters, got, wanted, strict=True):
            assert (a is None) == (b is None), name
            if a is not None:  # some are zero but for rounding: keys' biases
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6 * largest, msg=name)

    def test_logits_and_boxes(self, shape):
        model = spread(build(NAME, layers=3, **shape))
        images, targets = unequal()
        expected, _ = theirs(model, images, targets)
        outcome = model._predict(images, None)
        *_, last = outcome.stages
        torch.testing.assert_close(last.logits, expected.logits, rtol=1e-5, atol=1e-5)
        for boxes, wanted, (height, width) in zip(last.boxes, expected.pred_boxes, outcome.sizes, strict=True):
            pixels = box_convert(wanted, "cxcywh", "xyxy") * torch.tensor([width, height, width, height])
            torch.testing.assert_close(boxes, pixels, rtol=1e-5, atol=1e-4)


def test_the_encoder_tells_objects_from_background():
    """Its loss is that of a layer, all objects being of the first class (Deformable DETR, Appendix A.4)."""
    model = spread(build(NAME, two_stage=True))
    images, targets = unequal()
    _, labels = theirs(model, images, targets)
    pixels, _ = model.transform(images, targets)
    out = model.network.model(pixels.tensors, pixel_mask=valid_pixels(pixels))
    matcher = DeformableDetrHungarianMatcher(class_cost=2, bbox_cost=5, giou_cost=2)
    criterion = DeformableDetrImageLoss(matcher, 3, 0.25, ["labels", "boxes"])
    found = {"logits": out.enc_outputs_class, "pred_boxes": out.enc_outputs_coord_logits.sigmoid()}
    expected = criterion(found, [{**t, "class_labels": torch.zeros_like(t["class_labels"])} for t in labels])
    terms = model(images, targets)
    for ours, (name, weight) in TERMS.items():
        torch.testing.assert_close(terms[f"encoder_{ours}"], weight * expected[name], rtol=1e-5, atol=1e-6)


def test_a_softmax_is_matched_as_transformers_does():
    torch.manual_seed(0)
    logits, boxes = 2 * torch.randn(1, 12, 4), 0.2 + 0.6 * torch.rand(1, 12, 4)
    wanted, classes = 0.2 + 0.6 * torch.rand(5, 4), torch.randint(0, 3, (5,))
    matcher = HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
    found = {"logits": logits, "pred_boxes": boxes}
    ((rows, columns),) = matcher(found, [{"class_labels": classes, "boxes": wanted}])
    unit = torch.tensor([300.0, 200, 300, 200])
    ours, theirs = (box_convert(b, "cxcywh", "xyxy") * unit for b in (boxes[0], wanted))
    match = hungarian_match(
        logits[0], ours, theirs, classes, (200, 300), costs=Costs(1.0, box_format="cxcywh"), softmax=True
    )
    assert match[rows].tolist() == columns.tolist()
    assert (match >= 0).sum() == 5


class TestRankingLosses:
    def test_the_class_costs_more(self):
        assert build(NAME).costs.classification == 2
        assert build(NAME, "focal+concordance").costs.classification == 2
        assert build(NAME, "rank_sort").costs.classification == 4
        assert build(NAME, "bucketed_rank_sort+pse").costs.classification == 4

    def test_l1_and_giou_are_balanced_each_for_itself(self):
        """Eq. 3.56: both weigh what makes them as large as the ranking loss, in the encoder and in every layer."""
        terms = spread(build(NAME, "bucketed_rank_sort", two_stage=True))(*batch(3, 2))
        for stage in ("encoder", "layer1", "layer2"):
            rank = terms[f"{stage}_ranking"] + terms[f"{stage}_sorting"]
            assert rank > 0
            torch.testing.assert_close(terms[f"{stage}_box"], rank)
            torch.testing.assert_close(terms[f"{stage}_l1"], rank)


def published(backbone, **shape):
    """Transformers' own model of the published shape, as small as it gets."""
    torch.manual_seed(2)
    config = DeformableDetrConfig(
        backbone=backbone, num_labels=3, encoder_layers=2, decoder_layers=2, num_queries=20, **shape
    )
    return DeformableDetrForObjectDetection(config).eval()


class TestWeights:
    def test_a_folder_of_transformers(self, tmp_path):
        """The whole network, backbone included, predicts what theirs does."""
        reference = published("resnet18")
        reference.save_pretrained(tmp_path)
        model = build_detector(
            NAME, num_classes=3, backbone="resnet18", weights=tmp_path, layers=2, num_queries=20, image_size=(64, 96)
        ).eval()
        images, _ = unequal()
        pixels, _ = model.transform(images)
        with torch.no_grad():
            expected = reference(pixels.tensors, valid_pixels(pixels))
            (_, stage) = model._predict(images, None).stages
        torch.testing.assert_close(stage.logits, expected.logits, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_queries": 10}, "num_queries 10, got 20"),
            ({"num_classes": 5}, "num_labels 5, got 3"),
            ({"backbone": "resnet34"}, "must be the same one"),
        ],
    )
    def test_a_folder_of_another_shape_is_refused(self, tmp_path, options, message):
        published("resnet18").save_pretrained(tmp_path)
        shape = {"num_classes": 3, "backbone": "resnet18", "layers": 2, "num_queries": 20, **options}
        with pytest.raises(ValueError, match=message):
            build_detector(NAME, weights=tmp_path, **shape)

    def test_another_folder_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match=r"must hold a .*DeformableDetrForObjectDetection"):
            build(NAME, weights=tmp_path)

    def test_a_saved_detector_loads(self, tmp_path):
        model = spread(build(NAME, two_stage=True))
        torch.save(model.state_dict(), tmp_path / "w.pt")
        other = build(NAME, two_stage=True, weights=tmp_path / "w.pt")
        torch.testing.assert_close(other.network.state_dict(), model.network.state_dict())


@pytest.mark.parametrize(("shape", "millions"), list(zip(SHAPES, (40, 41, 41), strict=True)))
def test_parameters_at_full_size(shape, millions):
    """The authors' table, which counts COCO's 91 class ids."""
    with torch.device("meta"):
        model = build_detector(NAME, num_classes=91, **shape)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)


def test_criteria_by_object():
    terms = build(NAME, build_criterion("focal"), layers=2)(*batch(2))
    assert set(terms) == {f"layer{i}_{term}" for i in (1, 2) for term in ("classification", "box")}
    staged = StagedCriterion({name: build_criterion("ap") for name in ("encoder", "layer1", "layer2")})
    assert build(NAME, staged, layers=2, two_stage=True).criterion is staged


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "focal+iou_head"}, "without auxiliary head for deformable_detr"),
        ({"queries": 10}, "option of deformable_detr must be one of num_queries, .*, got queries"),
        ({"layers": 1}, "layers must be at least 2, got 1"),
        ({"num_queries": 0}, "num_queries must be at least 1, got 0"),
        (
            {"loss": StagedCriterion({"layer1": build_criterion("focal")})},
            r"criterion must be .*, got \['layer1'\]",
        ),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        build(NAME, **options)


def test_two_stages_need_as_many_locations_as_queries():
    model = build(NAME, two_stage=True, num_queries=200)
    with pytest.raises(ValueError, match=r"must be at most 126 with two_stage=True, .* 64 x 96 pixels, got 200"):
        model(*batch(2))


def test_transformers_missing(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "concordet.detectors.networks.transformers_deformable_detr", None)
    with pytest.raises(ValueError, match="needs the package transformers"):
        build(NAME)
