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
from concordet.detectors.parts.postprocess import PostProcess
from concordet.losses.criteria import Criterion, StagedCriterion, build_criterion

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
    """Makes a detector of one's own available by name, in :func:`build_detector` and on the command line.

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

    Example:
        >>> "fcos" in list_detectors()
        True
    """
    return list(DETECTORS)


def predicts_masks(name: str) -> bool:
    """Whether a detector learns and predicts instance masks, so that its data must have them.

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
    """A detector in torchvision's convention with the loss of one's choice.

    Args:
        name: one of :func:`list_detectors`.
        num_classes: foreground classes; labels in targets and detections are 1..num_classes.
        loss: a name (:func:`concordet.losses.list_losses`) such as ``"rank_sort+concordance(0.3)"``, or a criterion.
            ``"default"`` is the detector's own.
        size: ``"full"``, the published architecture, or ``"nano"``, under 1 M parameters (Sparse R-CNN and DETRs:
            3 M), for CPUs and small images.
        backbone: a torchvision ResNet's name, with ``_dcn`` behind it for deformable convolutions
            (``"resnet101_dcn"``), ``"swin_t"``, ``"swin_l"`` or ``"timm/NAME"``; for SSD ``"vgg16"`` or a ResNet of at
            least 50 layers, for DSSD the latter, for RefineDet all of them.  None is ResNet-50, for DSSD ResNet-101,
            for SSD and RefineDet VGG-16.  Nano has its own.
        weights: file or torchvision enumeration, of the whole detector or of its backbone, for DETR and
            Deformable DETR also a folder that Transformers' ``save_pretrained`` wrote; None starts from scratch.
            With weights, batch norms and the first two stages are frozen, as torchvision does.
        image_size: Size of the network's input in pixels.  Most detectors keep the shape of images: (shorter, longer)
            are the most that their sides may have, one number is the shorter side, with the longer one in the same
            proportion as the default's; None is (800, 1333), nano (240, 320).  SSD, DSSD, RefineDet and YOLACT stretch
            every image to (height, width), or to a square with sides of one number; None is 300, 320 or 550 pixels,
            nano (240, 320).  ``model.resize`` says which
            (:class:`~concordet.detectors.parts.resize.Resize`).
        train_sizes: shorter sides of multi-scale training: each training image is resized to one of them or of
            ``image_size``'s, drawn at random.
        ignore_regions: leaves anchors inside ``ignored_boxes`` out of the loss.
        **options: of inference: ``score_threshold`` (0.05; 0 with a ranking loss, whose scores have an order but no
            scale), ``nms`` (``"hard"``, ``"soft"``, ``"soft_linear"``, ``"fast"``), ``nms_threshold``, ``sigma``,
            ``class_wise``, ``score_voting``, ``topk``, ``detections_per_image``
            (:class:`~concordet.detectors.parts.postprocess.PostProcess`); of DETR and Deformable DETR
            (:func:`~concordet.detectors.architectures.set_prediction.deformable_detr.deformable_detr`):
            ``num_queries``, ``layers``; of the latter
            ``box_refine`` and ``two_stage`` too.

    Returns:
        ``model(images, targets)`` gives losses in training mode, ``model(images)`` detections in evaluation mode.

    Raises:
        ValueError: for an unknown name, size, backbone, loss or option, or an option out of its range.

    Example:
        >>> import torch
        >>> model = build_detector("fcos", num_classes=3, size="nano", loss="focal+concordance(0.3)")
        >>> target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
        >>> sorted(model([torch.rand(3, 64, 64)], [target]))
        ['box', 'classification', 'concordance']
    """
    entry = _entry(name)
    if size not in get_args(Size):
        raise ValueError(f"size must be one of {', '.join(get_args(Size))}, got {size!r}")
    if num_classes < 1:
        raise ValueError(f"num_classes counts foreground classes and must be at least 1, got {num_classes}")
    own = entry.options(size)
    known = [*own, *(f.name for f in fields(PostProcess))]
    unknown = [k for k in options if k not in known]
    if unknown:
        raise ValueError(f"unknown option {unknown[0]!r} for detector {name!r}; choose one of {', '.join(known)}")
    postprocess = {k: v for k, v in options.items() if k not in own}
    own = {**own, **{k: v for k, v in options.items() if k in own}}
    criterion: Criterion | StagedCriterion
    if entry.criterion is not None:
        criterion = entry.criterion(loss, **own)
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
        **own,
    )
    if train_sizes:
        _train_at(model, train_sizes, name)
    if weights is not None:
        entry.load(model, weights)
    return model


def _entry(name: str) -> Architecture:
    if name not in DETECTORS:
        raise ValueError(f"unknown detector {name!r}; choose one of {', '.join(DETECTORS)}")
    return DETECTORS[name]


def _train_at(model: Detector, sides: Sequence[int], name: str) -> None:
    """Lets torchvision's transform draw the shorter side in training; of several it takes the last one otherwise."""
    if not model.resize.keeps_shape:
        raise ValueError(f"{name} resizes all images to one size; leave train_sizes out, or take another detector")
    if any(side < 1 for side in sides):
        raise ValueError(f"train_sizes must be shorter sides in pixels, from 1 on, got {list(sides)}")
    model.transform.min_size = (*sides, model.transform.min_size[-1])
