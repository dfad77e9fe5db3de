"""Losses in Transformers' set predictors, DETR and its kin.

Their ``loss_function`` is given the outputs of all layers.  Ours hands them to the library's own criterion, which
matches them, layer by layer, and asks for each layer's terms: there classification and boxes become ours.  All else
(matching, denoising queries, groups of queries, distributions of box sides) stays the library's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_convert
from transformers.loss import (
    loss_d_fine,
    loss_deformable_detr,
    loss_deimv2,
    loss_for_object_detection,
    loss_lw_detr,
    loss_rt_detr,
)

from concordet.assigned import BACKGROUND, Assigned, Regression
from concordet.detectors.adapters.installation import Change, Loss, criterion_for, keeps_own, log_odds, named_terms
from concordet.detectors.parts.objects import first_indices
from concordet.detectors.parts.records import mean_count
from concordet.losses.criteria import BoxTerm, Criterion, LossDefaults, Terms, add_l1

Outputs = dict[str, Any]  # of one layer: "logits" [b, q, c], "pred_boxes" [b, q, 4] cxcywh in units of the image
Targets = list[dict[str, Tensor]]  # "class_labels" [m], "boxes" [m, 4] cxcywh in units of the image
Matches = list[tuple[Tensor, Tensor]]  # of each image: queries, objects

CLASSIFICATION = {"labels", "vfl", "mal"}
"""The library's kinds of classification terms; a model has one of them."""

REPLACED = {*CLASSIFICATION, "boxes"}
"""Kinds of terms that become ours."""

DENOISING = "denoising"
"""Marks the outputs of denoising queries."""

_LAYER = re.compile(r"_(\d+|enc)$")


@dataclass(frozen=True)
class Family:
    """Models that share a loss in the library.

    Attributes:
        criterion: makes the library's criterion from a configuration and the number of queries.
        outputs: makes what that one takes from the arguments of the loss function.
        weights: names of the configuration's weights of classification, L1 and GIoU; None is 1.
        weighted: the library's criterion weighs its terms itself.
        softmax: the classifier is a softmax, with "no object" last.
        focal: name of the configuration's alpha of focal loss; None: 0.25.
    """

    criterion: Callable[[Any, int], Any]
    outputs: Callable[..., Outputs]
    weights: tuple[str | None, str, str] = (None, "bbox_loss_coefficient", "giou_loss_coefficient")
    weighted: bool = False
    softmax: bool = False
    focal: str | None = None

    def coefficients(self, config: Any) -> tuple[float, float, float]:
        """Weights of classification, L1 and GIoU."""
        classification, l1, giou = (1.0 if name is None else float(getattr(config, name)) for name in self.weights)
        return classification, l1, giou


def in_set_predictor(family: str, model: Any, loss: Loss) -> tuple[Criterion, list[Change]]:
    """One of Transformers' models for object detection; every layer has the same criterion.

    A loss by name gets the model's own weights of L1 and GIoU, self-balanced with ranking losses, each for itself.

    Args:
        family: name in :data:`FAMILIES`.
        model: the model.
        loss: a name or a criterion.

    Raises:
        ValueError: also where a module was assigned to ``loss_function``.
    """
    if "loss_function" in dict(model.named_children()):
        raise ValueError(
            f"this {type(model).__name__} has a module named loss_function, which Transformers never calls; "
            "remove it with `del model.loss_function`, then install"
        )
    kind = FAMILIES[family]
    classification, l1, giou = kind.coefficients(model.config)
    alpha = getattr(model.config, kind.focal) if kind.focal else 0.25
    defaults = LossDefaults(
        "ce" if kind.softmax else "focal",
        BoxTerm("giou", weight=giou),
        softmax=kind.softmax,
        focal=(alpha, 2.0),
        no_object_weight=model.config.eos_coefficient if kind.softmax else None,
    )
    criterion, own = criterion_for(model, loss, defaults), keeps_own(loss)
    if isinstance(loss, str) and not own:
        add_l1(criterion, classification=classification, l1=l1)
    return criterion, [Change(model, "loss_function", SetLoss(family, criterion, own))]


@dataclass(frozen=True, eq=False)
class SetLoss:
    """Stands for ``loss_function`` of a model.

    No ``nn.Module``: assigned to ``loss_function``, one would become a child of the model and never be called.

    Args:
        family: name in :data:`FAMILIES`.
        criterion: ours, of every layer.
        own: the library's terms of classification and boxes stay, ours are added.
    """

    family: str
    criterion: Criterion
    own: bool

    def __call__(
        self,
        logits: Tensor,
        labels: Targets,
        device: torch.device,
        pred_boxes: Tensor,
        config: Any,
        outputs_class: Tensor | None = None,
        outputs_coord: Tensor | None = None,
        *encoder: Tensor,
        **more: Any,
    ) -> tuple[Tensor, Terms, list[Outputs] | None]:
        """Total, named terms, and outputs of the layers before the last, as the library's functions return them."""
        family = FAMILIES[self.family]
        tensors = map(_single, (logits, pred_boxes, outputs_class, outputs_coord, *encoder))
        outputs = family.outputs(config, *tensors, **{name: _single(value) for name, value in more.items()})
        library = family.criterion(config, logits.shape[1]).to(device)
        library.get_loss = self._terms_of_layers(library)
        terms = library(outputs, labels)
        weights = dict.fromkeys(terms, 1.0)
        if not family.weighted:
            theirs = dict(zip(("loss_ce", "loss_bbox", "loss_giou"), family.coefficients(config), strict=True))
            theirs["cardinality_error"] = 0.0
            weights = {name: theirs.get(_LAYER.sub("", name), 1.0) for name in terms}
        total = sum((weights[name] * value for name, value in terms.items()), logits.new_zeros(()))
        return total, terms, outputs.get("auxiliary_outputs")

    def _terms_of_layers(self, library: Any) -> Callable[[str, Outputs, Targets, Matches, float], Terms]:
        """What the library's criterion asks for each kind of terms of each layer."""
        theirs, family = library.get_loss, FAMILIES[self.family]

        def get_loss(kind: str, outputs: Outputs, targets: Targets, matches: Matches, count: float) -> Terms:
            if self.own or kind not in REPLACED or DENOISING in outputs:
                terms = theirs(kind, outputs, targets, matches, count)
            else:
                terms = {}
            if kind in CLASSIFICATION and DENOISING not in outputs:
                record = transformers_record(
                    outputs, targets, matches, softmax=family.softmax, kept=self.criterion.needs.softmax
                )
                ours = named_terms(self.criterion, record)
                if family.weighted:
                    library.weight_dict.update(dict.fromkeys(ours, 1.0))
                terms = {**terms, **ours}
            return terms

        return get_loss


def _single(value: Any) -> Any:
    """Tensors of half precision become single: costs and overlaps are too coarse otherwise."""
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def transformers_record(outputs: Outputs, targets: Targets, matches: Matches, *, softmax: bool, kept: bool) -> Assigned:
    """The record of one layer; boxes are in units of the image, encoded ones are centre and size.

    Args:
        outputs: of the layer.
        targets: of the images.
        matches: of the images.
        softmax: the classifier is a softmax, with "no object" last.
        kept: the criterion is one of a softmax; for any other a softmax's logits become its log-odds.
    """
    logits, boxes = outputs["logits"], outputs["pred_boxes"]
    device, queries = logits.device, logits.shape[1]
    counts = [len(t["class_labels"]) for t in targets]
    firsts = first_indices(counts, torch.device("cpu"))
    places = torch.cat([rows + i * queries for i, (rows, _) in enumerate(matches)])
    objects = torch.cat([own + first for (_, own), first in zip(matches, firsts, strict=True)])
    order = places.argsort()
    positive, gt_ids = places[order].to(device), objects[order].to(device)
    labels = torch.full((logits.shape[0] * queries,), BACKGROUND, device=device)
    labels[positive] = torch.cat([t["class_labels"] for t in targets])[gt_ids]
    own, gt_boxes = boxes.flatten(0, 1)[positive], torch.cat([t["boxes"] for t in targets])[gt_ids]
    flat = logits.flatten(0, 1)
    return Assigned(
        logits=log_odds(flat) if softmax and not kept else flat,
        labels=labels,
        positive=positive,
        boxes=box_convert(own, "cxcywh", "xyxy"),
        gt_boxes=box_convert(gt_boxes, "cxcywh", "xyxy"),
        gt_ids=gt_ids,
        image_ids=positive // queries,
        normalizer=mean_count(len(positive), device),
        regression=Regression(own, gt_boxes),
        softmax=softmax and kept,
    )


# --- the library's losses -------------------------------------------------------------------------------------------


def _layers(classes: Tensor, boxes: Tensor, **more: Tensor) -> list[Outputs]:
    """Outputs of each layer from stacks ``[layers, b, q, ...]``."""
    names = ["logits", "pred_boxes", *more]
    # D-FINE's stacks differ in length; the library pairs as many as there are
    return [dict(zip(names, values, strict=True)) for values in zip(classes, boxes, *more.values(), strict=False)]


def plain_outputs(
    config: Any,
    logits: Tensor,
    pred_boxes: Tensor,
    classes: Tensor,
    boxes: Tensor,
    encoder_classes: Tensor | None = None,
    encoder_boxes: Tensor | None = None,
    **more: Any,
) -> Outputs:
    """Of models without denoising: stacks begin with the layer."""
    outputs: Outputs = {"logits": logits, "pred_boxes": pred_boxes}
    if config.auxiliary_loss:
        outputs["auxiliary_outputs"] = _layers(classes[:-1], boxes[:-1])
    if encoder_classes is not None:
        outputs["enc_outputs"] = {"logits": encoder_classes, "pred_boxes": encoder_boxes}
    return outputs


def denoised_outputs(
    config: Any,
    logits: Tensor,
    pred_boxes: Tensor,
    classes: Tensor,
    boxes: Tensor,
    *,
    enc_topk_logits: Tensor,
    enc_topk_bboxes: Tensor,
    denoising_meta_values: dict[str, Any] | None = None,
    predicted_corners: Tensor | None = None,
    initial_reference_points: Tensor | None = None,
    **more: Any,
) -> Outputs:
    """Of models whose queries begin with denoising ones in training: stacks begin with the image.

    Distributions of box sides (``predicted_corners``) learn from the last layer's.
    """
    meta = denoising_meta_values
    split = meta["dn_num_split"] if meta is not None else [0, logits.shape[1]]
    outputs: Outputs = {
        "logits": logits.split(split, 1)[1],
        "pred_boxes": pred_boxes.split(split, 1)[1].clamp(0, 1),
    }
    if not config.auxiliary_loss:
        return outputs
    stacks = {"classes": classes, "boxes": boxes.clamp(0, 1)}
    if isinstance(predicted_corners, Tensor) and isinstance(initial_reference_points, Tensor):
        stacks |= {"pred_corners": predicted_corners, "ref_points": initial_reference_points}
    noisy, clean = ({k: x.transpose(0, 1).split(split, 2)[i] for k, x in stacks.items()} for i in (0, 1))
    outputs["auxiliary_outputs"] = [
        *_taught({k: x[:-1] for k, x in clean.items()}, clean),
        {"logits": enc_topk_logits, "pred_boxes": enc_topk_bboxes.clamp(0, 1)},
    ]
    if meta is not None:
        outputs["dn_auxiliary_outputs"] = [{**layer, DENOISING: True} for layer in _taught(noisy, noisy)]
        outputs["denoising_meta_values"] = meta
    return outputs


def _taught(stacks: dict[str, Tensor], teacher: dict[str, Tensor]) -> list[Outputs]:
    """Layers of ``stacks``; where there are distributions, with those of the teacher's last layer."""
    layers = _layers(**stacks)
    if "pred_corners" not in stacks:
        return layers
    taught = {"teacher_corners": teacher["pred_corners"][-1], "teacher_logits": teacher["classes"][-1]}
    return [{**layer, **taught} for layer in layers]


KINDS = ["labels", "boxes", "cardinality"]


def _costs(config: Any) -> dict[str, float]:
    return {"class_cost": config.class_cost, "bbox_cost": config.bbox_cost, "giou_cost": config.giou_cost}


def _detr(config: Any, queries: int) -> Any:
    matcher = loss_for_object_detection.HungarianMatcher(**_costs(config))
    return loss_for_object_detection.ImageLoss(matcher, config.num_labels, config.eos_coefficient, KINDS)


def _deformable_detr(config: Any, queries: int) -> Any:
    matcher = loss_deformable_detr.DeformableDetrHungarianMatcher(**_costs(config))
    return loss_deformable_detr.DeformableDetrImageLoss(matcher, config.num_labels, config.focal_alpha, KINDS)


def _lw_detr(config: Any, queries: int) -> Any:
    matcher = loss_lw_detr.LwDetrHungarianMatcher(**_costs(config))
    groups = queries // config.num_queries  # several in training, one in evaluation
    return loss_lw_detr.LwDetrImageLoss(matcher, config.num_labels, config.focal_alpha, KINDS, groups)


FAMILIES = {
    "detr": Family(_detr, plain_outputs, softmax=True),
    "deformable_detr": Family(_deformable_detr, plain_outputs, focal="focal_alpha"),
    "lw_detr": Family(
        _lw_detr,
        plain_outputs,
        ("class_loss_coefficient", "bbox_loss_coefficient", "giou_loss_coefficient"),
        focal="focal_alpha",
    ),
    "rt_detr": Family(
        lambda config, queries: loss_rt_detr.RTDetrLoss(config),
        denoised_outputs,
        ("weight_loss_vfl", "weight_loss_bbox", "weight_loss_giou"),
        weighted=True,
    ),
    "d_fine": Family(
        lambda config, queries: loss_d_fine.DFineLoss(config),
        denoised_outputs,
        ("weight_loss_vfl", "weight_loss_bbox", "weight_loss_giou"),
        weighted=True,
    ),
    "deimv2": Family(
        lambda config, queries: loss_deimv2.Deimv2Loss(config),
        denoised_outputs,
        ("weight_loss_mal", "weight_loss_bbox", "weight_loss_giou"),
        weighted=True,
    ),
}
"""Models of one family have one loss in the library."""
