"""Co-DETR: what its auxiliary heads and extra queries do in training, and that nothing of it is there at inference."""

import pytest
import torch
from torchvision.ops import box_convert

from concordet.assigned import IGNORED
from concordet.detectors import build_detector
from concordet.detectors.architectures.set_prediction.auxiliary_heads import Adapter
from concordet.detectors.architectures.set_prediction.co_detr import MAX_QUERIES, query_stages, sample_per_image
from concordet.detectors.architectures.set_prediction.detection_transformer import to_pixels
from concordet.losses import build_criterion
from concordet.losses.criteria import StagedCriterion
from tests.detectors.architectures.set_prediction.test_deformable_detr import spread, unequal
from tests.detectors.scenes import batch, build

NAME = "co_detr"
DECODER = ["encoder", "layer1", "layer2"]
STAGES = ["rpn", "roi", "atss", *query_stages(2), *DECODER]
QUERIES = ["rcnn_layer1", "rcnn_layer2", "atss_layer1", "atss_layer2"]


def records_of(model, images, targets):
    return {record.stage: record for record in model.assigned(images, targets)}


def test_there_is_a_record_for_each_term_of_the_total_loss():
    assert query_stages(2) == QUERIES
    model = build(NAME)
    images, targets = unequal()
    assert list(model.criterion.stages) == STAGES
    assert [r.stage for r in model.assigned(images, targets)] == STAGES
    assert [r.stage for r in model.eval().assigned(images, targets)] == DECODER
    assert {name.rsplit("_", 1)[0] for name in model.losses_and_detections(images, targets)[0]} == set(STAGES)


class TestInference:
    def test_the_heads_are_not_run(self):
        model = spread(build(NAME)).eval()
        images, _ = unequal()
        expected = model(images)
        for head in (*model.heads.modules(), *model.queries.modules()):
            head.forward = None
        torch.testing.assert_close(model(images), expected)

    def test_it_is_a_deformable_detr_of_two_stages(self):
        model = spread(build(NAME)).eval()
        other = build("deformable_detr", two_stage=True).eval()
        other.network.load_state_dict(model.network.state_dict())
        images, _ = unequal()
        torch.testing.assert_close(model(images), other(images))

    def test_weights_load_with_the_heads_and_without(self, tmp_path):
        model = spread(build(NAME))
        assert any(name.startswith("heads.") for name in model.state_dict())
        torch.save(model.state_dict(), tmp_path / "w.pt")
        torch.testing.assert_close(build(NAME, weights=tmp_path / "w.pt").state_dict(), model.state_dict())
        bare = build(NAME, auxiliary=False, weights=tmp_path / "w.pt")
        assert not any(name.startswith(("heads", "queries")) for name in bare.state_dict())
        images, _ = unequal()
        torch.testing.assert_close(bare.eval()(images), model.eval()(images))


class TestExtraQueries:
    def test_each_is_decoded_as_if_it_were_alone_with_its_kind(self):
        """The same queries, an image and a head at a time, without padding and masks."""
        model = spread(build(NAME)).eval()
        images, targets = batch(3, 1, 5)
        checked = [{"boxes": t["boxes"], "labels": t["labels"]} for t in targets]
        outcome = model._predict(images, checked)
        own = model._records(outcome, trained=True)
        found = {r.stage: r for r in own if r.stage in QUERIES}
        memory, shapes = outcome.decoding["encoder_hidden_states"], outcome.decoding["spatial_shapes_list"]
        torch.manual_seed(0)
        outcome_again = model.heads(outcome.batch, memory, shapes, outcome.objects)
        unit = torch.tensor([96.0, 64, 96, 64])
        positives = outcome_again[1]["atss"]
        for image in range(3):
            mine = positives.record.image_ids == image
            boxes = box_convert(positives.boxes[mine] / unit, "xyxy", "cxcywh")
            places, contents = model.queries["atss"](model._embedded(boxes), positives.features[mine])
            decoding = {
                k: v[image : image + 1] if isinstance(v, torch.Tensor) and len(v) == 3 and v.ndim > 2 else v
                for k, v in outcome.decoding.items()
                if k not in ("encoder_attention_mask", "spatial_shapes", "level_start_index")
            }
            decoding |= {k: outcome.decoding[k] for k in ("spatial_shapes", "level_start_index")}
            decoding["encoder_attention_mask"] = outcome.decoding["encoder_attention_mask"][image : image + 1]
            separate = model._decoded(
                decoding, boxes[None], places[None], contents[None], torch.ones(1, len(boxes), dtype=torch.int64)
            )
            for layer, (logits, decoded) in enumerate(separate, 1):
                record = found[f"atss_layer{layer}"]
                rows = record.image_ids == image
                assert rows.sum() == len(boxes) > 0
                torch.testing.assert_close(record.logits[rows], logits[0], rtol=1e-4, atol=1e-4)
                pixels = to_pixels(decoded, [(64, 96)])[0]
                torch.testing.assert_close(record.boxes[rows], pixels, rtol=1e-4, atol=1e-3)

    def test_their_objects_are_those_of_the_heads_positives(self):
        model = build(NAME, "rank_sort")  # without sampling every proposal is used
        images, targets = unequal()
        records = records_of(model, images, targets)
        for head, stage in (("roi", "rcnn_layer1"), ("atss", "atss_layer2")):
            wanted, got = records[head], records[stage]
            assert len(wanted.positive) > 0
            assert torch.equal(got.labels, wanted.labels[wanted.positive])
            assert torch.equal(got.gt_ids, wanted.gt_ids)
            assert torch.equal(got.image_ids, wanted.image_ids)
            assert got.positive.tolist() == list(range(len(got.logits)))
            assert got.normalizer == len(got.logits)
            units = torch.tensor([[96.0, 64, 96, 64]])  # of the largest image; the first has its size
            first = got.image_ids == 0
            expected = box_convert(got.gt_boxes[first] / units, "xyxy", "cxcywh")
            torch.testing.assert_close(got.regression.targets[first], expected)

    def test_they_begin_where_the_heads_found_them(self):
        """A decoder that moves nothing gives the heads' boxes back."""
        model = build(NAME).train()
        for tower in model.network.bbox_embed:
            torch.nn.init.zeros_(tower.layers[-1].weight)
            torch.nn.init.zeros_(tower.layers[-1].bias)
        outcome = model._predict(*batch(3, 2))
        memory, shapes = outcome.decoding["encoder_hidden_states"], outcome.decoding["spatial_shapes_list"]
        _, positives = model.heads(outcome.batch, memory, shapes, outcome.objects)
        for record in model._query_records(outcome, positives):
            boxes = positives[record.stage.split("_")[0]].boxes
            unit = torch.tensor([96.0, 64, 96, 64])
            centered = box_convert(boxes / unit, "xyxy", "cxcywh").clamp(1e-5, 1 - 1e-5)
            torch.testing.assert_close(record.regression.deltas, centered, rtol=1e-4, atol=2e-5)

    def test_there_are_not_too_many(self):
        torch.manual_seed(0)
        image_ids = torch.tensor([0] * 5 + [2] * 9 + [3] * 2)
        kept = sample_per_image(image_ids, 4)
        assert (kept.diff() > 0).all()
        assert image_ids[kept].bincount().tolist() == [4, 0, 4, 2]
        chosen = {tuple(sample_per_image(image_ids, 4).tolist()) for _ in range(20)}
        assert len(chosen) > 1
        assert torch.equal(sample_per_image(image_ids, 9), torch.arange(16))
        assert len(sample_per_image(image_ids[:0], 4)) == 0
        record = records_of(build(NAME, "rank_sort"), *batch(300, 0))["atss_layer1"]
        assert len(record.logits) <= MAX_QUERIES


class TestAuxiliaryHeads:
    def test_they_see_the_encoders_output_as_a_pyramid(self):
        adapter, shapes = Adapter(32), [(4, 6), (2, 3)]
        memory = torch.randn(2, 30, 32)
        fine, coarse, half = adapter(memory, shapes)
        assert torch.equal(fine[1, :, 2, 5], memory[1, 2 * 6 + 5])
        assert torch.equal(coarse[0, :, 1, 2], memory[0, 24 + 1 * 3 + 2])
        assert half.shape == (2, 32, 1, 2)

    def test_atss_features_are_those_of_the_anchors_locations(self):
        model = build(NAME)
        outcome = model._predict(*batch(3, 2))
        memory, shapes = outcome.decoding["encoder_hidden_states"], outcome.decoding["spatial_shapes_list"]
        _, positives = model.heads(outcome.batch, memory, shapes, outcome.objects)
        levels = dict(zip((8, 16, 32, 64), model.heads.adapter(memory, shapes), strict=True))
        atss = positives["atss"]
        for image, box, feature in zip(atss.record.image_ids, atss.boxes, atss.features, strict=True):
            stride = round((box[2] - box[0]).item() / 4)  # nano's anchors
            x, y = (((box[:2] + box[2:]) / 2) / stride).long().tolist()
            torch.testing.assert_close(feature, levels[stride][image, :, y, x])

    def test_they_train_the_encoder_and_the_backbone(self):
        model = build(NAME)
        terms = model(*batch(3, 2))
        sum(v for k, v in terms.items() if k.startswith("atss_") and "layer" not in k).backward()
        assert model.backbone.body.stem[0].weight.grad.abs().sum() > 0
        assert model.network.model.encoder.layers[0].mlp.fc1.weight.grad.abs().sum() > 0
        assert model.network.model.decoder.layers[0].mlp.fc1.weight.grad is None

    def test_extra_queries_train_the_decoder(self):
        model = build(NAME)
        terms = model(*batch(3, 2))
        sum(v for k, v in terms.items() if k.startswith("atss_layer")).backward()
        assert model.network.model.decoder.layers[0].mlp.fc1.weight.grad.abs().sum() > 0
        assert model.network.class_embed[0].weight.grad.abs().sum() > 0

    def test_ranking_losses_take_no_sample_and_no_centerness(self):
        default, ranked = (records_of(build(NAME, loss), *batch(3, 2)) for loss in ("default", "rank_sort"))
        assert default["atss"].quality.logits is not None
        assert ranked["atss"].quality.logits is None
        assert default["roi"].softmax
        assert not ranked["roi"].softmax
        model = build(NAME, "rank_sort")
        anchors = 2 * sum(-(-64 // s) * -(-96 // s) for s in (8, 16, 32, 64)) * 6
        assert len(records_of(model, *batch(3, 2))["rpn"].labels) == anchors


class TestTotalLoss:
    """Thesis, Eq. 3.54."""

    @pytest.mark.parametrize(("loss", "weight"), [("default", 12), ("rank_sort", 5), ("bucketed_rank_sort+pse", 5)])
    def test_weights_of_the_auxiliary_heads(self, loss, weight):
        model = build(NAME, loss)
        records = model.assigned(*batch(3, 2))
        terms = model.criterion(records)
        fifth = 0.2 if loss != "default" else 1.0  # RS Loss's weight of proposals
        factors = {"rpn": weight * fifth, "roi": weight, "atss": weight}
        for record in records:
            for name, value in model.criterion.stages[record.stage](record).items():
                torch.testing.assert_close(terms[f"{record.stage}_{name}"], factors.get(record.stage, 1.0) * value)

    def test_decoder_terms_are_deformable_detrs(self):
        """The class weighs 2 here, as in the authors' code; Transformers' weighs 1."""
        model, other = spread(build(NAME)), build("deformable_detr", two_stage=True)
        other.network.load_state_dict(model.network.state_dict())
        images, targets = unequal()
        got, expected = model(images, targets), other(images, targets)
        for name, value in expected.items():
            torch.testing.assert_close(got[name], (2 if name.endswith("classification") else 1) * value)

    @pytest.mark.parametrize("loss", ["rank_sort", "bucketed_rank_sort"])
    def test_brs_detr_balances_l1_and_giou_each_for_itself(self, loss):
        terms = spread(build(NAME, loss))(*batch(3, 2))
        for stage in [*QUERIES, *DECODER]:
            rank = terms[f"{stage}_ranking"] + terms[f"{stage}_sorting"]
            if terms[f"{stage}_box"] > 0:
                torch.testing.assert_close(terms[f"{stage}_box"], rank)
                torch.testing.assert_close(terms[f"{stage}_l1"], rank)
        assert all(terms[f"{stage}_box"] > 0 for stage in ("atss_layer1", "rcnn_layer2", *DECODER))

    def test_without_auxiliary_heads_their_terms_are_gone(self):
        model = build(NAME, auxiliary=False)
        assert model.heads is None
        assert {name.rsplit("_", 1)[0] for name in model(*batch(3, 2))} == set(DECODER)

    def test_ignored_regions_are_the_heads_too(self):
        images, targets = batch(2)
        targets[0]["ignored_boxes"] = torch.tensor([[-500.0, -500.0, 600.0, 600.0]])
        records = records_of(build(NAME, "rank_sort"), images, targets)
        assert all((records[name].labels == IGNORED).any() for name in ("rpn", "atss", *DECODER))


@pytest.mark.parametrize(("backbone", "millions"), [(None, 41.2), ("swin_t", 41.7)])
def test_parameters_that_detect_at_full_size(backbone, millions):
    """Two-stage Deformable DETR's 41 M; Swin-T itself has 4.0 M more, projections of its narrower maps 3.5 M less."""
    with torch.device("meta"):
        model = build_detector(NAME, num_classes=80, backbone=backbone)
    assert sum(p.numel() for p in model.network.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)


def test_criteria_by_object():
    terms = build(NAME, build_criterion("focal"))(*batch(2))
    assert set(terms) == {f"{stage}_{term}" for stage in STAGES for term in ("classification", "box")}
    staged = StagedCriterion({name: build_criterion("ap") for name in STAGES})
    assert build(NAME, staged).criterion is staged


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "focal+centerness"}, "without auxiliary head for co_detr"),
        ({"two_stage": True}, "option of co_detr must be one of num_queries, layers, .*, got two_stage"),
        (
            {"loss": StagedCriterion({"layer1": build_criterion("focal")})},
            r"criterion must be .*, got \['layer1'\]",
        ),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        build(NAME, **options)
