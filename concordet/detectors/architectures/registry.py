"""The table of detectors, and the one function that builds them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from torchvision.models import WeightsEnum

from concordet.detectors.architectures.architecture import Architecture
from concordet.detectors.architectures.dense import atss, dssd, fcos, foveabox, paa, refinedet, retinanet, ssd, yolact
from concordet.detectors.architectures.set_prediction import co_detr, deformable_detr, detr, sparse_rcnn
from concordet.detectors.architectures.two_stage import cascade_rcnn, faster_rcnn, mask_rcnn
from concordet.detectors.base import Detector
from concordet.detectors.networks.backbones import Size
from concordet.detectors.networks.weights import is_torchvision_name
from concordet.detectors.parts.postprocess import PostProcess
from concordet.errors import UsageError, unknown
from concordet.losses.criteria import Criterion, StagedCriterion, build_criterion
from concordet.setting_types import MAX_IMAGE_SIDE

DETECTORS: dict[str, Architecture] = {
    "retinanet": retinanet.ARCHITECTURE,
    "fcos": fcos.ARCHITECTURE,
    "atss": atss.ARCHITECTURE,
    "foveabox": foveabox.ARCHITECTURE,
    "paa": paa.ARCHITECTURE,
    "ssd": ssd.ARCHITECTURE,
    "dssd": dssd.ARCHITECTURE,
    "refinedet": refinedet.ARCHITECTURE,
    "faster_rcnn": faster_rcnn.ARCHITECTURE,
    "cascade_rcnn": cascade_rcnn.ARCHITECTURE,
    "mask_rcnn": mask_rcnn.ARCHITECTURE,
    "yolact": yolact.ARCHITECTURE,
    "sparse_rcnn": sparse_rcnn.ARCHITECTURE,
    "detr": detr.ARCHITECTURE,
    "deformable_detr": deformable_detr.ARCHITECTURE,
    "co_detr": co_detr.ARCHITECTURE,
}


def register_detector(name: str, architecture: Architecture) -> None:
    """Registers a detector under a name that :func:`build_detector` and the command line then take.

    Args:
        name: Lowercase letters, digits and underscores.
        architecture: How the detector is built, and its defaults.

    Raises:
        ValueError: For a name that is malformed or taken. Registering a detector of the same build function again (in
            a notebook) replaces it.

    Example:
        >>> from dataclasses import replace
        >>> from concordet.detectors.parts.postprocess import PostProcess
        >>> soft = replace(DETECTORS["fcos"], postprocess=PostProcess(nms="soft"))
        >>> register_detector("doc_soft_fcos", soft)
        >>> build_detector("doc_soft_fcos", num_classes=3, size="nano").postprocess.nms
        'soft'
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"name of a detector must be lowercase letters, digits and underscores, got {name!r}")
    if name in DETECTORS and _origin(DETECTORS[name]) != _origin(architecture):
        raise ValueError(f"name of a detector must be new, got {name!r}, which exists; choose another")
    DETECTORS[name] = architecture


def _origin(architecture: Architecture) -> tuple[str, str]:
    build = architecture.build
    return build.__module__, build.__qualname__


def list_detectors() -> list[str]:
    """Names that :func:`build_detector` takes.

    Returns:
        The built-in detectors, then those of :func:`register_detector`.

    Example:
        >>> "fcos" in list_detectors()
        True
    """
    return list(DETECTORS)


def predicts_masks(name: str) -> bool:
    """Whether a detector learns and predicts instance masks, so that its data must have them.

    Args:
        name: One of :func:`list_detectors`.

    Returns:
        True where targets need ``masks`` and detections have them.

    Raises:
        ValueError: there is no such detector.

    Example:
        >>> predicts_masks("mask_rcnn"), predicts_masks("fcos")
        (True, False)
    """
    return _entry(name).masks


def build_detector(
    name: str,
    *,
    num_classes: int,
    loss: str | Criterion | StagedCriterion = "default",
    size: Size = "full",
    backbone: str | None = None,
    weights: str | Path | WeightsEnum | None = None,
    image_size: int | Sequence[int] | None = None,
    train_sizes: Sequence[int] = (),
    ignore_regions: bool = True,
    **options: Any,
) -> Detector:
    """Builds a detector in torchvision's convention, with any loss.

    Args:
        name: One of :func:`list_detectors`.
        num_classes: Number of foreground classes; labels in targets and detections are 1..num_classes.
        loss: Name (:func:`concordet.losses.list_losses`) such as ``"rank_sort+concordance(0.3)"``, or a criterion;
            ``"default"`` is the loss that the detector was published with.
        size: ``"full"``, the published architecture, or ``"nano"``, under 1 M parameters (Sparse R-CNN and DETRs:
            3 M), for CPUs and small images.
        backbone: Name of a torchvision ResNet, followed by ``_dcn`` for deformable convolutions
            (``"resnet101_dcn"``), ``"swin_t"``, ``"swin_l"`` or ``"timm/NAME"``; for SSD ``"vgg16"`` or a ResNet of at
            least 50 layers, for DSSD the latter, for RefineDet all of them. None is ResNet-50, for DSSD ResNet-101,
            for SSD and RefineDet VGG-16. Nano detectors have one small backbone and take no other.
        weights: File or torchvision enumeration, for the whole detector or for its backbone, for DETR and
            Deformable DETR also a folder written by Transformers' ``save_pretrained``; None starts from scratch.
            With weights, batch norms and the first two stages are frozen, as in torchvision. Nano detectors take only
            weights of the same detector.
        image_size: Size of the network's input in pixels. Most detectors keep the shape of images: (shorter, longer)
            are the most that their sides may have, one number is the shorter side, with the longer one in the same
            proportion as the default's; None is (800, 1333), nano (240, 320). SSD, DSSD, RefineDet and YOLACT stretch
            every image to (height, width), or to a square with sides of one number; None is 300, 320 or 550 pixels,
            nano (240, 320). ``model.resize`` (:class:`~concordet.detectors.Resize`) tells which.
        train_sizes: Shorter sides for multi-scale training: each training image is resized to one of them or to that
            of ``image_size``, drawn at random.
        ignore_regions: Leave anchors inside ``ignored_boxes`` out of the loss.
        **options: Settings of inference: ``score_threshold`` (0.05; 0 with a ranking loss, whose scores have an order
            but no scale), ``nms`` (``"hard"``, ``"soft"``, ``"soft_linear"``, ``"fast"``), ``nms_threshold``,
            ``sigma``, ``class_wise``, ``score_voting``, ``topk``, ``detections_per_image``
            (:class:`~concordet.detectors.parts.postprocess.PostProcess`). Options of the detector itself: DETR,
            Deformable DETR and Co-DETR have ``num_queries`` and ``layers``, Deformable DETR also ``box_refine`` and
            ``two_stage`` and Co-DETR ``auxiliary``
            (:func:`~concordet.detectors.architectures.set_prediction.deformable_detr.deformable_detr`).

    Returns:
        The detector: ``model(images, targets)`` returns losses in training mode, ``model(images)`` detections in
        evaluation mode, ``model.losses_and_detections(images, targets)`` both.

    Raises:
        ValueError: If a name, size, backbone, loss or option is unknown, or an option is out of its range.

    Example:
        >>> import torch
        >>> model = build_detector("fcos", num_classes=3, size="nano", loss="focal+concordance(0.3)")
        >>> target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
        >>> sorted(model([torch.rand(3, 64, 64)], [target]))
        ['box', 'classification', 'concordance']
    """
    entry = _entry(name)
    if size not in get_args(Size):
        raise ValueError(unknown("size", size, get_args(Size)))
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}; count foreground classes only")
    if size == "nano" and (isinstance(weights, WeightsEnum) or is_torchvision_name(weights)):
        raise UsageError(
            f"weights must be a checkpoint of the same detector where size is nano, got {weights}, of a full-size"
            " network; leave weights out, or use size full"
        )
    defaults = entry.options(size)
    known = [*defaults, *(f.name for f in fields(PostProcess))]
    for option in options:
        if option not in known:
            raise UsageError(unknown(f"option of {name}", option, known))
    postprocess = {k: v for k, v in options.items() if k not in defaults}
    architecture_options = {**defaults, **{k: v for k, v in options.items() if k in defaults}}
    criterion: Criterion | StagedCriterion
    if entry.criterion is not None:
        criterion = entry.criterion(loss, **architecture_options)
    else:
        criterion = build_criterion(loss, entry.defaults) if isinstance(loss, str) else loss
    head = criterion.needs.quality_head
    if isinstance(criterion, Criterion) and head is not None and not entry.quality_head:
        raise ValueError(f"loss must be without auxiliary head for {name}, got {loss!r}; leave the head out")
    if criterion.needs.ranks_only:
        postprocess.setdefault("score_threshold", 0.0)
    resize = entry.resize_for(size)
    if image_size is not None:
        resize = resize.of(image_size)
    model = entry.build(
        criterion,
        num_classes=num_classes,
        size=size,
        backbone=backbone,
        pretrained=weights is not None,
        resize=resize,
        postprocess=PostProcess(**{**vars(entry.postprocess), **postprocess}),
        ignore_regions=ignore_regions,
        **architecture_options,
    )
    if train_sizes:
        _train_at(model, train_sizes, name)
    if weights is not None:
        entry.load(model, weights)
    return model


def _entry(name: str) -> Architecture:
    if name not in DETECTORS:
        raise ValueError(unknown("detector", name, DETECTORS))
    return DETECTORS[name]


def _train_at(model: Detector, sides: Sequence[int], name: str) -> None:
    """Makes torchvision's transform draw the shorter side in training; in evaluation it uses the last one."""
    if not model.resize.keeps_shape:
        raise ValueError(f"train_sizes must be empty for {name}, which resizes all images to one size; leave it out")
    if not all(1 <= side <= MAX_IMAGE_SIDE for side in sides):
        raise ValueError(
            f"train_sizes must be shorter sides from 1 to {MAX_IMAGE_SIDE} pixels, got {list(sides)}; choose others"
        )
    model.transform.min_size = (*sides, model.transform.min_size[-1])
