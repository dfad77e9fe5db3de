"""Sparse R-CNN: least-cost matching against all permutations, its modules against loops, its criterion."""

from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import generalized_box_iou_loss

from concordet.assigned import BACKGROUND
from concordet.boxes import paired_iou
from concordet.detectors import build_detector
from concordet.detectors.architectures.set_prediction.sparse_rcnn import CODER, STAGES, DynamicConv
from concordet.detectors.parts.hungarian import hungarian_match
from concordet.losses import build_criterion
from concordet.losses.criteria import StagedCriterion
from tests.detectors.scenes import batch, build


def pair_cost(logits, box, gt_box, label, size):
    """2 focal + 5 L1 + 2 GIoU, of one prediction and one object."""
    p = logits[label].sigmoid().item()
    positive = -0.25 * (1 - p) ** 2 * torch.tensor(p + 1e-8).log().item()
    negative = -0.75 * p**2 * torch.tensor(1 - p + 1e-8).log().item()
    unit = torch.tensor([size[1], size[0], size[1], size[0]])
    distance = ((box - gt_box) / unit).abs().sum().item()
    giou = 1 - generalized_box_iou_loss(box[None], gt_box[None]).item()
    return 2 * (positive - negative) + 5 * distance - 2 * giou


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(0, 5))
def test_matching_costs_least_of_all_assignments(seed, predictions, objects):
    generator = torch.Generator().manual_seed(seed)

    def boxes(n):
        corner = 60 * torch.rand(n, 2, generator=generator)
        return torch.cat([corner, corner + 1 + 30 * torch.rand(n, 2, generator=generator)], 1)

    logits = 3 * torch.randn(predictions, 3, generator=generator)
    found, wanted = boxes(predictions), boxes(objects)
    classes, size = torch.randint(0, 3, (objects,), generator=generator), (80, 100)
    match = hungarian_match(logits, found, wanted, classes, size).tolist()
    pairs = [(i, j) for i, j in enumerate(match) if j != BACKGROUND]
    assert len(pairs) == len({j for _, j in pairs}) == min(predictions, objects)
    cost = {
        (i, j): pair_cost(logits[i], found[i], wanted[j], classes[j], size)
        for i in range(predictions)
        for j in range(objects)
    }
    if objects >= predictions:
        every = [list(enumerate(order)) for order in permutations(range(objects), predictions)]
    else:
        every = [[(i, j) for j, i in enumerate(order)] for order in permutations(range(predictions), objects)]
    least = min(sum(cost[pair] for pair in pairing) for pairing in every)
    assert sum(cost[pair] for pair in pairs) == pytest.approx(least, abs=1e-4)


def test_dynamic_convolution_is_the_loop_of_the_paper():
    torch.manual_seed(0)
    layer = DynamicConv(6, 4, 3)
    own, pooled = torch.randn(5, 6), torch.randn(5, 9, 6)
    got = layer(own, pooled)
    for i in range(5):
        kernels = layer.dynamic_layer(own[i])
        x = F.relu(layer.norm1(pooled[i] @ kernels[:24].view(6, 4)))
        x = F.relu(layer.norm2(x @ kernels[24:].view(4, 6)))
        torch.testing.assert_close(got[i], F.relu(layer.norm3(layer.out_layer(x.flatten()))))


def test_parameters_at_full_size():
    """106 M in the authors' and in mmdetection's tables."""
    with torch.device("meta"):
        model = build_detector("sparse_rcnn", num_classes=80)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(106, rel=0.02)


def test_boxes_begin_as_the_whole_image():
    model = build("sparse_rcnn")
    torch.testing.assert_close(model.head.proposals((64, 96)), torch.tensor([[0.0, 0, 96, 64]]).repeat(50, 1))


def test_records_are_one_to_one_and_in_units_of_the_image():
    model = build("sparse_rcnn")
    images, targets = batch(3, 0, 60)
    records = model.assigned(images, targets)
    assert [r.stage for r in records] == list(STAGES)
    unit = torch.tensor([96.0, 64, 96, 64])
    for record in records:
        assert len(record.labels) == 3 * 50
        assert record.image_ids.bincount().tolist() == [3, 0, 50]
        assert len(record.gt_ids.unique()) == len(record.gt_ids)
        torch.testing.assert_close(record.regression.deltas * unit, record.boxes)
        torch.testing.assert_close(record.regression.targets * unit, record.gt_boxes)
    decoded = CODER.decode_single(CODER.encode_single(record.gt_boxes, record.boxes.detach()), record.boxes.detach())
    torch.testing.assert_close(paired_iou(decoded, record.gt_boxes), torch.ones(len(decoded)), rtol=0, atol=1e-4)


def test_each_stage_moves_the_boxes_of_the_one_before():
    model = build("sparse_rcnn")
    seen = []
    for stage in model.head.head_series:
        stage.register_forward_hook(lambda module, args, output: seen.append(output[2]))
    stages = model._predict(batch(2)[0], None).stages
    boxes = model.head.proposals((64, 96))
    for deltas, stage in zip(seen, stages, strict=True):
        torch.testing.assert_close(stage.boxes[0], CODER.decode_single(deltas[0], boxes))
        boxes = stage.boxes[0].detach()


def test_the_default_loss_is_the_published_sum():
    model = build("sparse_rcnn")
    images, targets = batch(3, 2)
    terms = model(images, targets)
    assert len(terms) == 18
    record = model.assigned(images, targets)[-1]
    count = len(record.positive)
    wanted = torch.zeros_like(record.logits)
    wanted[record.positive, record.labels[record.positive]] = 1
    p = record.logits.sigmoid()
    own = torch.where(wanted > 0, p, 1 - p)
    focal = (torch.where(wanted > 0, 0.25, 0.75) * (1 - own) ** 2 * -own.log()).sum()
    torch.testing.assert_close(terms["stage6_classification"], 2 * focal / count)
    distance = (record.regression.deltas - record.regression.targets).abs().sum()
    torch.testing.assert_close(terms["stage6_l1"], 5 * distance / count)
    giou = generalized_box_iou_loss(record.boxes, record.gt_boxes).sum()
    torch.testing.assert_close(terms["stage6_box"], 2 * giou / count)


def test_ranking_losses_balance_both_box_terms_each_for_itself():
    terms = build("sparse_rcnn", "rank_sort")(*batch(3, 2))
    for stage in STAGES:
        rank = terms[f"{stage}_ranking"] + terms[f"{stage}_sorting"]
        torch.testing.assert_close(terms[f"{stage}_box"], rank)
        torch.testing.assert_close(terms[f"{stage}_l1"], rank)


def test_self_balancing_moves_on_in_every_stage():
    model = build("sparse_rcnn", "alrp")
    model(*batch(3, 2))
    model.criterion.on_epoch_end()
    weights = [stage.core.core.weight.item() for stage in model.criterion.stages.values()]
    assert all(weight != 50 for weight in weights)
    assert sum("core.core.weight" in name for name in model.criterion.state_dict()) == 6


def test_harmonic_loss_keeps_its_own_regression():
    assert not any("l1" in name for name in build("sparse_rcnn", "harmonic")(*batch(3)))


def test_nothing_is_suppressed():
    model = build("sparse_rcnn").eval()
    for stage in model.head.head_series:
        torch.nn.init.zeros_(stage.bboxes_delta.weight)
        torch.nn.init.zeros_(stage.bboxes_delta.bias)
    (found,) = model(batch(2)[0])
    torch.testing.assert_close(found["boxes"], torch.tensor([[0.0, 0, 96, 64]]).repeat(100, 1))
    assert len(found["scores"]) == 100
    assert (found["scores"].diff() <= 0).all()


def test_criteria_by_object_are_taken_as_they_are():
    model = build("sparse_rcnn", build_criterion("focal"))
    assert set(model(*batch(2))) == {f"{s}_{t}" for s in STAGES for t in ("classification", "box")}
    staged = StagedCriterion({s: build_criterion("ap") for s in STAGES})
    assert build("sparse_rcnn", staged).criterion is staged


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("focal+iou_head", "without auxiliary head for sparse_rcnn, got 'focal.iou_head'"),
        (StagedCriterion({"roi": build_criterion("focal")}), r"criterion must be .*, got \['roi'\]"),
    ],
)
def test_refusals(loss, message):
    with pytest.raises(ValueError, match=message):
        build("sparse_rcnn", loss)
