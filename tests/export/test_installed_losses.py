"""Installed losses act in training only: models of other libraries export as they did before.

By design, FCOS loses its centerness with losses other than its own, and a ranking loss sets torchvision's score
threshold to 0 (docs/install.md).
"""

import warnings

import pytest
import torch
from torch import nn

from concordet.detectors import install, uninstall
from tests.detectors.adapters.tiny_models import set_predictor, torchvision_model


class Flat(nn.Module):
    """A torchvision detector of one image, as tensors."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, image):
        (detection,) = self.model([image])
        return detection["boxes"], detection["labels"], detection["scores"]


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("FCOS", "default+concordance(0.3)"),
        ("RetinaNet", "default+concordance(0.3)"),
        ("RetinaNet", "rank_sort+concordance(0.3)"),
        ("SSD", "rank_sort+concordance(0.3)"),
        ("FasterRCNN", "rank_sort+concordance(0.3)"),
    ],
)
def test_torchvision_models_trace_to_the_same_detections(name, loss):
    model, image = torchvision_model(name).eval(), torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0))

    def traced():
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.jit.trace(Flat(model), image, check_trace=False)

    getattr(model, "roi_heads", model).score_thresh = 0.0  # ranking losses set it
    model([image])  # anchors are kept from the first image on
    before = traced()
    install(model, loss)
    after = traced()
    for expected, got in zip(before(image), after(image), strict=True):
        assert len(expected)
        assert torch.equal(expected, got)


def test_a_ranking_loss_changes_the_threshold_of_a_model_and_uninstall_restores_it():
    model = torchvision_model("RetinaNet").eval()
    before = model.score_thresh
    assert before > 0
    install(model, "rank_sort+concordance(0.3)")
    assert model.score_thresh == 0
    uninstall(model)
    assert model.score_thresh == before


def test_transformers_models_export_to_the_same_graph():
    model = set_predictor("Detr").eval()
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def exported():
        with torch.no_grad():
            return torch.export.export(model, (pixels,), strict=False)

    before = exported()
    install(model, "rank_sort+concordance(0.3)")
    after = exported()
    nodes = [[(node.op, str(node.target)) for node in program.graph.nodes] for program in (before, after)]
    assert nodes[0] == nodes[1]
    assert len(nodes[0]) > 100
