"""The table of detectors, and the one function that builds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast, get_args

from torch import nn
from torchvision.models import WeightsEnum
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from concordet.detectors import set_prediction
from concordet.detectors.architectures.dense import atss, dssd, fcos, foveabox, paa, refinedet, retinanet, ssd, yolact
from concordet.detectors.architectures.set_prediction import (
    co_detr,
    deformable_detr,
    detection_transformer,
    detr,
    sparse_rcnn,
)
from concordet.detectors.architectures.two_stage import cascade_rcnn, faster_rcnn, mask_rcnn
from concordet.detectors.networks.backbones import Size
from concordet.detectors.networks.weights import load_weights
from concordet.detectors.parts.postprocess import PostProcess
from concordet.losses.criteria import Criterion, LossDefaults, StagedCriterion, build_criterion


@dataclass(frozen=True)
class Entry:
    """A detector of the zoo: how it is built, its published loss and image size, thresholds.

    ``criterion`` makes the criterion of a detector with several stages; ``quality_head`` says that it can have an
    auxiliary head.  ``options`` names the detector's own options with their defaults at a size, which ``build`` and
    ``criterion`` then take; ``load`` loads weights.  ``masks``: it learns and predicts instance masks.
    """

    build: Callable[..., nn.Module]
    defaults: LossDefaults
    image_size: tuple[int, int] = (800, 1333)
    postprocess: PostProcess = field(default_factory=PostProcess)
    criterion: Callable[..., StagedCriterion] | None = None
    quality_head: bool = False
    options: Callable[[Size], dict[str, Any]] = lambda size: {}
    load: Callable[[nn.Module, str | Path | WeightsEnum], None] = load_weights
    masks: bool = False


TWO_STAGE_INFERENCE = PostProcess(nms_threshold=0.5, topk=5000)

DETECTORS: dict[str, Entry] = {
    "retinanet": Entry(retinanet.retinanet, retinanet.DEFAULTS, postprocess=PostProcess(nms_threshold=0.5)),
    "fcos": Entry(fcos.fcos, fcos.DEFAULTS, quality_head=True),
    "atss": Entry(atss.atss, atss.DEFAULTS, quality_head=True),
    "foveabox": Entry(foveabox.foveabox, foveabox.DEFAULTS, postprocess=PostProcess(nms_threshold=0.5)),
    "paa": Entry(paa.paa, paa.DEFAULTS, postprocess=PostProcess(score_voting=True), quality_head=True),
    "ssd": Entry(ssd.ssd, ssd.DEFAULTS, (300, 300), ssd.POSTPROCESS),
    "dssd": Entry(dssd.dssd, dssd.DEFAULTS, (320, 320), dssd.POSTPROCESS),
    "refinedet": Entry(
        refinedet.refinedet, refinedet.DEFAULTS, (320, 320), refinedet.POSTPROCESS, refinedet.refinedet_criterion
    ),
    "faster_rcnn": Entry(
        faster_rcnn.faster_rcnn,
        faster_rcnn.DEFAULTS,
        postprocess=TWO_STAGE_INFERENCE,
        criterion=faster_rcnn.faster_rcnn_criterion,
    ),
    "cascade_rcnn": Entry(
        cascade_rcnn.cascade_rcnn,
        cascade_rcnn.DEFAULTS,
        postprocess=TWO_STAGE_INFERENCE,
        criterion=cascade_rcnn.cascade_rcnn_criterion,
    ),
    "mask_rcnn": Entry(
        mask_rcnn.mask_rcnn,
        mask_rcnn.DEFAULTS,
        postprocess=TWO_STAGE_INFERENCE,
        criterion=mask_rcnn.mask_rcnn_criterion,
        masks=True,
    ),
    "yolact": Entry(yolact.yolact, yolact.DEFAULTS, (550, 550), yolact.POSTPROCESS, masks=True),
    "sparse_rcnn": Entry(
        sparse_rcnn.sparse_rcnn,
        sparse_rcnn.DEFAULTS,
        postprocess=set_prediction.POSTPROCESS,
        criterion=sparse_rcnn.sparse_rcnn_criterion,
    ),
    "detr": Entry(
        detr.detr,
        detr.DEFAULTS,
        postprocess=set_prediction.POSTPROCESS,
        criterion=detr.detr_criterion,
        options=detr.detr_options,
        load=detection_transformer.load_network,
    ),
    "deformable_detr": Entry(
        deformable_detr.deformable_detr,
        deformable_detr.DEFAULTS,
        postprocess=set_prediction.POSTPROCESS,
        criterion=deformable_detr.deformable_detr_criterion,
        options=deformable_detr.deformable_detr_options,
        load=detection_transformer.load_network,
    ),
    "co_detr": Entry(
        co_detr.co_detr,
        deformable_detr.DEFAULTS,
        postprocess=set_prediction.POSTPROCESS,
        criterion=co_detr.co_detr_criterion,
        options=co_detr.co_detr_options,
    ),
}
NANO_IMAGE_SIZE = (240, 320)


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
    image_size: tuple[int, int] | None = None,
    train_sizes: Sequence[int] = (),
    ignore_regions: bool = True,
    **options: Any,
) -> nn.Module:
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
        image_size: (shorter side, longer side) images are resized to, keeping their shape; None: (800, 1333), nano
            (240, 320).  For SSD, DSSD, RefineDet and YOLACT (height, width), whatever the shape; None: 300, 320
            or 550 pixels.
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
    if isinstance(criterion, Criterion) and criterion.quality is not None and not entry.quality_head:
        raise ValueError(f"{name} has no auxiliary head for {criterion.quality!r} in loss {loss!r}; leave that out")
    if not criterion.calibrated:
        postprocess.setdefault("score_threshold", 0.0)
    model = entry.build(
        criterion,
        num_classes=num_classes,
        size=size,
        backbone=backbone,
        pretrained=weights is not None,
        image_size=image_size or (entry.image_size if size == "full" else NANO_IMAGE_SIZE),
        postprocess=PostProcess(**{**vars(entry.postprocess), **postprocess}),
        ignore_regions=ignore_regions,
        **own,
    )
    if train_sizes:
        _train_at(cast(GeneralizedRCNNTransform, model.transform), train_sizes, name)
    if weights is not None:
        entry.load(model, weights)
    return model


def _entry(name: str) -> Entry:
    if name not in DETECTORS:
        raise ValueError(f"unknown detector {name!r}; choose one of {', '.join(DETECTORS)}")
    return DETECTORS[name]


def _train_at(transform: GeneralizedRCNNTransform, sides: Sequence[int], name: str) -> None:
    """Lets torchvision's transform draw the shorter side in training; of several it takes the last one otherwise."""
    if transform.fixed_size is not None:
        raise ValueError(f"{name} resizes all images to one size; leave train_sizes out, or take another detector")
    if any(side < 1 for side in sides):
        raise ValueError(f"train_sizes are shorter sides in pixels, from 1 on, got {list(sides)}")
    transform.min_size = (*sides, transform.min_size[-1])
