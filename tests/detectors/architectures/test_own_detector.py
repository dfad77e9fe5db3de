"""A detector from outside the package: the one of docs/extend/detector.md, with distributions over box sides."""

import contextlib
import io
import re
from pathlib import Path

import pytest
import torch

from concordet.detectors import build_detector
from tests.detectors.scenes import batch

PAGE = Path(__file__).parents[3] / "docs/extend/detector.md"


@pytest.fixture
def page():
    """Names that the page defines; what it prints must be what its comments say."""
    names = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(block, str(PAGE), "exec"), names)
        assert printed.getvalue().splitlines() == re.findall(r"^# (.*)$", block, flags=re.MULTILINE)
    return names


def built(loss="default"):
    torch.manual_seed(0)
    return build_detector("gfl", num_classes=3, size="nano", loss=loss, image_size=(64, 96))


def test_the_distribution_term_is_the_papers(page):
    """A quarter of the mean over sides of -((y_{i+1} - y) log S_i + (y - y_i) log S_{i+1}), per positive (Eq. 6)."""
    model = built()
    for parameter in model.head.regression_head.bbox_reg.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    (record,) = model.assigned(*batch(2, 3))
    bins = page["NANO"].bins
    regression = record.regression
    assert regression.deltas.shape == regression.targets.shape == (len(record.positive), 4)
    assert regression.distributions.shape == (len(record.positive), 4, bins)
    total = 0.0
    for distributions, targets in zip(regression.distributions.softmax(-1).tolist(), regression.targets, strict=True):
        for probabilities, target in zip(distributions, targets.clamp(0, bins - 1.01).tolist(), strict=True):
            i = int(target)
            left, right = (torch.tensor(probabilities[k]).log().item() for k in (i, i + 1))
            total -= ((i + 1 - target) * left + (target - i) * right) / 4
    expected = 0.25 * total / len(record.positive)
    assert model.criterion(record)["distribution"].item() == pytest.approx(expected, rel=1e-4)


def test_boxes_are_expectations(page):
    codec = page["distribution_codec"](4)
    anchors, boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0]]), torch.tensor([[16.0, 4.0, 48.0, 36.0]])  # stride 8
    sides = codec.encode(boxes, anchors)
    torch.testing.assert_close(sides, torch.tensor([[1.0, 2.5, 3.0, 1.5]]))
    logits = torch.full((1, 4, 9), -50.0)
    for side, value in enumerate(sides[0].tolist()):
        logits[0, side, [int(value), int(value + 0.5)]] = 0.0  # all on one bin, or half on each of two
    torch.testing.assert_close(codec.decode(logits.flatten(1), anchors), boxes)


@pytest.mark.usefixtures("page")
def test_it_learns_boxes_and_scores():
    model = built()
    scenes = batch(2, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    history = []
    for _ in range(25):
        losses = model(*scenes)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: value.item() for name, value in losses.items()})
    for name in ("classification", "distribution", "box"):  # scores are to be IoUs, which start at almost 0
        assert history[-1][name] < max(losses[name] for losses in history) / 2


@pytest.mark.usefixtures("page")
@pytest.mark.parametrize("loss", ["rank_sort", "alrp", "focal+concordance(0.3)", "harmonic"])
def test_every_other_loss_works_with_it(loss):
    model = built(loss)
    losses = model(*batch(2, 0, 3))
    sum(losses.values()).backward()
    gradients = [p.grad for p in model.head.regression_head.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    assert any(g.abs().max() > 0 for g in gradients)


@pytest.mark.usefixtures("page")
def test_records_of_images_of_unequal_sizes():
    """In evaluation mode two sizes are two tensors, whose records are merged, distributions included."""
    images, targets = batch(2)
    (other, *_), (their, *_) = batch(3, height=96, width=64)
    (record,) = built().eval().assigned([*images, other], [*targets, their])
    assert set(record.image_ids.tolist()) == {0, 1}
    assert len(record.regression.distributions) == len(record.positive)
