"""Objects of a batch, and the predictions matched to them, against a loop over images and rows."""

import pytest
import torch

from concordet.assigned import BACKGROUND, IGNORED
from concordet.detectors.parts.objects import Matching, Objects

COUNTS = [2, 0, 3, 0, 1]


def objects():
    generator = torch.Generator().manual_seed(0)
    boxes = [torch.rand(n, 4, generator=generator) for n in COUNTS]
    return Objects.of(boxes, [torch.randint(5, (n,), generator=generator) for n in COUNTS])


def test_targets_with_ignored_regions():
    boxes = torch.arange(12.0).view(3, 4)
    target = {"boxes": boxes, "labels": torch.tensor([2, 1, 0]), "masks": torch.ones(2, 4, 4, dtype=torch.uint8)}
    empty = {"boxes": boxes[:0], "labels": torch.zeros(0, dtype=torch.int64)}
    got = Objects.from_targets([target, empty])
    assert torch.equal(got.boxes[0], boxes[:2])
    assert got.classes[0].tolist() == [1, 0]
    assert torch.equal(got.ignored[0], boxes[2:])
    assert got.masks == [target["masks"], None]
    assert got.counts == [2, 0]
    assert got.class_agnostic().classes[0].tolist() == [0, 0]
    assert len(Objects.from_targets([target], ignore_regions=False).ignored[0]) == 0


@pytest.mark.parametrize("seed", range(5))
def test_matching_equals_a_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    batch = objects()
    matches = []
    for count in COUNTS:
        rows = int(torch.randint(0, 12, (), generator=generator))
        matches.append(torch.randint(IGNORED, count, (rows,), generator=generator))
    labels, positive, gt_ids, image_ids, gt_boxes = [], [], [], [], []
    for i, match in enumerate(matches):
        for value in match.tolist():
            if value >= 0:
                positive.append(len(labels))
                gt_ids.append(sum(COUNTS[:i]) + value)
                image_ids.append(i)
                gt_boxes.append(batch.boxes[i][value].tolist())
            labels.append(int(batch.classes[i][value]) if value >= 0 else value)
    got = Matching.of(matches, batch)
    assert got.labels.tolist() == labels
    assert got.positive.tolist() == positive
    assert got.gt_ids.tolist() == gt_ids
    assert got.image_ids.tolist() == image_ids
    assert torch.equal(got.gt_boxes, torch.tensor(gt_boxes).view(-1, 4))
    assert got.classes.tolist() == [labels[i] for i in positive]


def test_normalizer_counts_positives_or_rows():
    batch = objects()
    matches = [torch.tensor([0, 1, BACKGROUND, IGNORED]), *(torch.zeros(0, dtype=torch.int64) for _ in COUNTS[1:])]
    matching = Matching.of(matches, batch)
    logits, boxes = torch.zeros(4, 5), torch.zeros(2, 4)
    assert matching.assigned(logits, boxes).normalizer == 2
    assert matching.assigned(logits, boxes, mean_over_rows=True).normalizer == 3
