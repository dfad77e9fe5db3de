"""Parameters of the full architectures at 80 classes: those of the implementations that the docstrings name.

torchvision's own classes are counted; other published architectures are summed layer by layer from their papers and
configuration files; printed totals are in a table with their sources, and those in docstrings are counted too.
"""

import re

import pytest
import torch
from torchvision.models import detection, resnet50, resnet101, vgg16

from concordet.detectors import build_detector, list_detectors
from concordet.detectors.architectures.registry import DETECTORS
from concordet.detectors.networks.backbones import nano_body

CLASSES = 80


def count(module):
    return sum(p.numel() for p in module.parameters())


def ours(name, **options):
    with torch.device("meta"):
        return count(build_detector(name, num_classes=CLASSES, **options))


# --- torchvision's own ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "builder", "classes"),
    [
        ("fcos", detection.fcos_resnet50_fpn, CLASSES),
        ("ssd", detection.ssd300_vgg16, CLASSES + 1),
        ("faster_rcnn", detection.fasterrcnn_resnet50_fpn, CLASSES + 1),
        ("mask_rcnn", detection.maskrcnn_resnet50_fpn, CLASSES + 1),
    ],
)
def test_torchvisions(name, builder, classes):
    with torch.device("meta"):
        theirs = builder(weights=None, weights_backbone=None, num_classes=classes)
    assert ours(name) == count(theirs)


# --- sums of published layers ---------------------------------------------------------------------------------------


def conv(inputs, outputs, kernel, bias=True):
    return inputs * outputs * kernel**2 + outputs * bias


def normed(inputs, outputs, kernel):
    """A convolution without bias and the scale and shift of a norm."""
    return conv(inputs, outputs, kernel, bias=False) + 2 * outputs


def linear(inputs, outputs, bias=True):
    return conv(inputs, outputs, 1, bias)


def body(builder):
    with torch.device("meta"):
        network = builder()
        return count(network) - count(network.fc)


R50 = body(resnet50)
C3_TO_C5 = sum(conv(c, 256, 1) + conv(256, 256, 3) for c in (512, 1024, 2048))
C2_TO_C5 = C3_TO_C5 + conv(256, 256, 1) + conv(256, 256, 3)
P6_P7 = 2 * conv(256, 256, 3)
P6_P7_OF_C5 = conv(2048, 256, 3) + conv(256, 256, 3)
TOWER = 4 * conv(256, 256, 3)
NORMED_TOWER = 4 * (conv(256, 256, 3) + 2 * 256)
RPN = conv(256, 256, 3) + conv(256, 3, 1) + conv(256, 12, 1)
TWO_LAYERS = linear(256 * 7 * 7, 1024) + linear(1024, 1024)


def one_anchor_a_location(scales):
    """FCOS's towers, three predictions per location."""
    predictions = sum(conv(256, outputs, 3) for outputs in (CLASSES, 4, 1))
    return R50 + C3_TO_C5 + P6_P7 + 2 * NORMED_TOWER + predictions + scales


def sparse_rcnn():
    """The authors' configuration: 100 boxes, six stages, one layer before classes and three before boxes."""
    attention = 4 * linear(256, 256)
    dynamic = linear(256, 2 * 64 * 256) + linear(256 * 49, 256) + 2 * (64 + 256 + 256)
    feed_forward = linear(256, 2048) + linear(2048, 256)
    towers = 4 * (linear(256, 256, bias=False) + 2 * 256)
    stage = attention + dynamic + feed_forward + 3 * 2 * 256 + towers + linear(256, CLASSES) + linear(256, 4)
    return R50 + C2_TO_C5 + 100 * (4 + 256) + 6 * stage


def vgg_with_fc7():
    with torch.device("meta"):
        return count(vgg16().features) + conv(512, 1024, 3) + conv(1024, 1024, 1)


def ssd512():
    """VGG-16 with conv8 to conv12, the last with a kernel of 4 in the paper and of 3 with padding here."""
    extra = conv(1024, 256, 1) + conv(256, 512, 3) + conv(512, 128, 1) + conv(128, 256, 3)
    extra += 2 * (conv(256, 128, 1) + conv(128, 256, 3)) + conv(256, 128, 1) + conv(128, 256, 4)
    levels = zip((512, 1024, 512, 256, 256, 256, 256), (4, 6, 6, 6, 6, 4, 4), strict=True)
    return vgg_with_fc7() + 512 + extra + sum(conv(c, k * (CLASSES + 1 + 4), 3) for c, k in levels)


def refinedet():
    """The paper's Figs. 1 and 2 on VGG-16: objectness and boxes of four levels, transfer connections, second stage."""
    levels = (512, 512, 1024, 512)
    extra = conv(1024, 256, 1) + conv(256, 512, 3) + 2 * 512
    first = sum(conv(c, 3 * (2 + 4), 3) for c in levels)
    transfer = sum(conv(c, 256, 3) + 2 * conv(256, 256, 3) for c in levels) + 3 * conv(256, 256, 2)
    return vgg_with_fc7() + extra + first + transfer + 4 * conv(256, 3 * (CLASSES + 1 + 4), 3)


def dssd():
    """The paper's Fig. 2 c and 3 on ResNet-101."""

    def block(inputs):
        return normed(inputs, 256, 1) + normed(256, 256, 3) + normed(256, 1024, 1) + normed(inputs, 1024, 1)

    def deconvolution(coarse, skip):
        return conv(coarse, 512, 2) + 2 * normed(512, 512, 3) + normed(skip, 512, 3)

    def prediction(inputs):
        return normed(inputs, 256, 1) + normed(256, 256, 1) + normed(256, 1024, 1) + normed(inputs, 1024, 1)

    extra = block(2048) + 3 * block(1024)
    way_up = (
        deconvolution(1024, 1024) + 2 * deconvolution(512, 1024) + deconvolution(512, 2048) + deconvolution(512, 512)
    )
    heads = 6 * conv(1024, 8 * (CLASSES + 1 + 4), 3)
    return body(resnet101) + extra + way_up + prediction(1024) + 5 * prediction(512) + heads


ATTENTION = 4 * linear(256, 256)
BOX_MLP = 2 * linear(256, 256) + linear(256, 4)


def layer_norms(number, width=256):
    return number * 2 * width


def detr():
    """The authors' code: six layers of 256 channels, feed-forward 2048, 100 queries, a class for no object."""
    feed_forward = linear(256, 2048) + linear(2048, 256)
    encoder = ATTENTION + feed_forward + layer_norms(2)
    decoder = 2 * ATTENTION + feed_forward + layer_norms(3)
    ends = conv(2048, 256, 1) + layer_norms(1) + 100 * 256 + linear(256, CLASSES + 1) + BOX_MLP
    return R50 + 6 * (encoder + decoder) + ends


def deformable_detr(two_stage):
    """The authors' code: 8 heads look at 4 points on each of 4 levels; one head for all layers, or one for each."""
    deformable = linear(256, 8 * 4 * 4 * 2) + linear(256, 8 * 4 * 4) + 2 * linear(256, 256)
    feed_forward = linear(256, 1024) + linear(1024, 256)
    encoder = deformable + feed_forward + layer_norms(2)
    decoder = ATTENTION + deformable + feed_forward + layer_norms(3)
    levels = sum(conv(c, 256, 1) for c in (512, 1024, 2048)) + conv(2048, 256, 3) + layer_norms(4) + 4 * 256
    heads = linear(256, CLASSES) + BOX_MLP
    if two_stage:  # the encoder's proposals and their positions instead of learned queries
        ends = 7 * heads + linear(256, 256) + layer_norms(1) + linear(512, 512) + layer_norms(1, 512)
    else:
        ends = heads + 300 * 512 + linear(256, 2)
    return R50 + levels + 6 * (encoder + decoder) + ends


def yolact():
    """mmdetection's configuration: P6 of C5, four convolutions before prototypes, one in the head, pixels' classes."""
    prototypes = 4 * conv(256, 256, 3) + conv(256, 32, 1)
    head = conv(256, 256, 3) + conv(256, 3 * (CLASSES + 1 + 4 + 32), 3)
    return R50 + C3_TO_C5 + P6_P7_OF_C5 + prototypes + head + conv(256, CLASSES, 1)


SUMS = {
    "yolact": (yolact(), {}),
    "detr": (detr(), {}),
    "deformable_detr": (deformable_detr(two_stage=False), {}),
    # what is left for inference: two-stage Deformable DETR; the auxiliary heads are this project's own
    "co_detr": (deformable_detr(two_stage=True), {"auxiliary": False}),
    "retinanet": (R50 + C3_TO_C5 + P6_P7_OF_C5 + 2 * TOWER + conv(256, 9 * CLASSES, 3) + conv(256, 9 * 4, 3), {}),
    "fcos": (one_anchor_a_location(scales=5), {}),
    "atss": (one_anchor_a_location(scales=5), {}),
    "paa": (one_anchor_a_location(scales=5), {}),
    "foveabox": (R50 + C3_TO_C5 + P6_P7_OF_C5 + 2 * TOWER + conv(256, CLASSES, 3) + conv(256, 4, 3), {}),
    "ssd": (ssd512(), {"image_size": (512, 512)}),
    "refinedet": (refinedet(), {}),
    "dssd": (dssd(), {}),
    "faster_rcnn": (R50 + C2_TO_C5 + RPN + TWO_LAYERS + linear(1024, CLASSES + 1) + linear(1024, 4 * CLASSES), {}),
    "cascade_rcnn": (R50 + C2_TO_C5 + RPN + 3 * (TWO_LAYERS + linear(1024, CLASSES + 1) + linear(1024, 4)), {}),
    "sparse_rcnn": (sparse_rcnn(), {}),
}


@pytest.mark.parametrize("name", SUMS)
def test_sums_of_published_layers(name):
    expected, options = SUMS[name]
    assert ours(name, **options) == pytest.approx(expected, rel=0.001)


def test_every_detector_is_counted():
    assert {*SUMS, "mask_rcnn"} <= set(list_detectors())


# --- printed totals -------------------------------------------------------------------------------------------------

with torch.device("meta"):
    FROZEN = sum(p.numel() for n, p in resnet50().named_parameters() if n.startswith(("conv1", "bn1", "layer1")))
"""A ResNet-50's stem and second stage, which mmdetection freezes and does not count."""

MILLIONS = {
    # mmdetection's get_flops.py: trainable parameters of the configurations *_r50_fpn_1x_coco
    ("retinanet", None): 37.74 + FROZEN / 1e6,
    ("atss", None): 32.07 + FROZEN / 1e6,
    ("faster_rcnn", None): 41.53 + FROZEN / 1e6,
    ("cascade_rcnn", None): 69.17 + FROZEN / 1e6,
    ("mask_rcnn", None): 44.18 + FROZEN / 1e6,
    # Swin Transformer for Object Detection, table of results
    ("mask_rcnn", "swin_t"): 48,
    # Carion et al. 2020, Table 1; Zhu et al. 2021, Table 1
    ("detr", None): 41,
    ("deformable_detr", None): 40,
}


@pytest.mark.parametrize(("name", "backbone"), MILLIONS)
def test_printed_totals(name, backbone):
    assert ours(name, backbone=backbone) / 1e6 == pytest.approx(MILLIONS[name, backbone], rel=0.02)


def test_mmdetection_counts_what_is_trained():
    """Its printed totals and ours are the same to the last digit that is printed."""
    for name in ("retinanet", "atss", "cascade_rcnn"):
        assert round((ours(name) - FROZEN) / 1e6, 2) == round(MILLIONS[name, None] - FROZEN / 1e6, 2)


# --- counts in docstrings -------------------------------------------------------------------------------------------

NANO = {"size": "nano", "num_classes": 3}
NANO_80 = {"size": "nano"}

STATED = {
    "retinanet": {"38.0": {}, "0.6": NANO},
    "fcos": {"32.3": {}, "0.6": NANO},
    "atss": {"32.3": {}, "0.6": NANO},
    "foveabox": {"36.4": {}, "0.6": NANO},
    "paa": {"32.3": {}, "0.6": NANO},
    "ssd": {"34.3": {}, "36.0": {"image_size": (512, 512)}, "0.4": NANO},
    "dssd": {"152.5": {}, "0.5": NANO},
    "refinedet": {"36.1": {}, "0.5": NANO},
    "faster_rcnn": {"41.8": {}, "0.7": NANO},
    "cascade_rcnn": {"69.4": {}, "0.8": NANO},
    "mask_rcnn": {"44.4": {}, "0.8": NANO},
    "yolact": {"35.3": {}, "0.6": NANO},
    "sparse_rcnn": {"106.3": {}, "2.3": NANO},
    "detr": {"41.6": {"num_classes": 91}, "1.2": NANO_80},
    "deformable_detr": {
        "40.1": {"num_classes": 91},
        "40.8": {"num_classes": 91, "box_refine": True},
        "1.1": NANO_80,
        "1.3": {**NANO_80, "two_stage": True},
    },
    "co_detr": {"41.2": {"auxiliary": False}, "62.3": {}, "2.9": NANO_80},
}
PUBLISHED_ELSEWHERE = {
    "faster_rcnn": {"41.5"},
    "cascade_rcnn": {"69.2"},
    "mask_rcnn": {"44.2"},
    "detr": {"41"},
    "deformable_detr": {"40"},
}
"""Totals that a docstring compares ours with; see MILLIONS."""


@pytest.mark.parametrize("name", STATED)
def test_docstrings_state_what_is_counted(name):
    text = " ".join(DETECTORS[name].build.__doc__.split())
    stated = set(re.findall(r"(\d+(?:\.\d+)?) M\b", text))
    assert stated - PUBLISHED_ELSEWHERE.get(name, set()) == set(STATED[name])
    for millions, options in STATED[name].items():
        with torch.device("meta"):
            model = build_detector(name, **{"num_classes": CLASSES, **options})
        assert f"{count(model) / 1e6:.{len(millions.partition('.')[2])}f}" == millions


def test_nano_detectors_are_as_small_as_build_detector_says():
    for name in STATED:
        with torch.device("meta"):
            millions = count(build_detector(name, num_classes=CLASSES, size="nano")) / 1e6
        assert millions < (3 if STATED[name].keys() & {"2.3", "1.2", "1.1", "2.9"} else 1)
    assert round(count(nano_body()) / 1e6, 1) == 0.3
    assert "residual network of 0.3 M parameters" in nano_body.__doc__
