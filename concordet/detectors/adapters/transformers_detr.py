"""Losses in Transformers' set predictors, DETR and its relatives.

Their ``loss_function`` receives the outputs of all layers, builds the library's criterion and calls it. An installed
loss runs that same function, and replaces the method that computes the terms of one layer: classification and box terms
become ours. Everything else (outputs, matching, denoising queries, groups of queries, distributions of box sides,
weights) is the library's, in whatever version is installed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from concordet.assigned import BACKGROUND, Assigned, Regression
from concordet.detectors.adapters.changes import Change
from concordet.detectors.adapters.criteria import Loss, criterion_for, keeps_default, log_odds, named_terms
from concordet.detectors.parts.objects import first_indices
from concordet.detectors.parts.records import mean_count
from concordet.losses.criteria import BoxTerm, Criterion, LossDefaults, Terms, add_l1
from concordet.losses.functional.reduction import at_least_float32

Outputs = dict[str, Any]  # of one layer: "logits" [b, q, c], "pred_boxes" [b, q, 4] cxcywh in units of the image
Targets = list[dict[str, Tensor]]  # "class_labels" [m], "boxes" [m, 4] cxcywh in units of the image
Matches = list[tuple[Tensor, Tensor]]  # per image: indices of queries, indices of objects

CLASSIFICATION = {"labels", "vfl", "mal"}
"""The library's names for classification losses; each model has one of them."""

REPLACED = {*CLASSIFICATION, "boxes"}
"""The library's names for the losses that become ours."""


@dataclass(frozen=True)
class Family:
    """Models that share a loss in the library.

    Attributes:
        module: Module of ``transformers.loss``, imported only for models of this family.
        function: Name of the loss function in it.
        criterion: Name of the class of the criterion that the function builds.
        weights: Names of the configuration's weights of classification, L1 and GIoU; None for a weight of 1.
        weighted: Whether the library's criterion applies the weights itself.
        softmax: Whether the classifier is a softmax, with "no object" last.
        focal: Name of the configuration's alpha of focal loss; None for 0.25.
    """

    module: str
    function: str
    criterion: str
    weights: tuple[str | None, str, str] = (None, "bbox_loss_coefficient", "giou_loss_coefficient")
    weighted: bool = False
    softmax: bool = False
    focal: str | None = None

    def coefficients(self, config: Any) -> tuple[float, float, float]:
        """Weights of classification, L1 and GIoU; 1 where the installed version of the library has no such weight."""
        classification, l1, giou = (1.0 if name is None else float(getattr(config, name, 1.0)) for name in self.weights)
        return classification, l1, giou

    def loss_function(self) -> FunctionType:
        """The library's loss function."""
        return getattr(import_module(f"transformers.loss.{self.module}"), self.function)

    def with_criterion(self, change: Callable[[Any], None]) -> FunctionType:
        """The library's loss function, with ``change`` applied to the criterion that it builds.

        The function finds the criterion's class by its global name: a copy of it with other globals finds ours, and
        the library itself stays unchanged.
        """
        function = self.loss_function()
        cls = function.__globals__[self.criterion]

        def build(*arguments: Any, **keywords: Any) -> nn.Module:
            library = cls(*arguments, **keywords)
            change(library)
            return library

        copy = FunctionType(
            function.__code__,
            {**function.__globals__, self.criterion: build},
            function.__name__,
            function.__defaults__,
            function.__closure__,
        )
        copy.__kwdefaults__ = function.__kwdefaults__
        return copy


_RT_DETR_WEIGHTS = ("weight_loss_vfl", "weight_loss_bbox", "weight_loss_giou")

FAMILIES = {
    "detr": Family("loss_for_object_detection", "ForObjectDetectionLoss", "ImageLoss", softmax=True),
    "deformable_detr": Family(
        "loss_deformable_detr", "DeformableDetrForObjectDetectionLoss", "DeformableDetrImageLoss", focal="focal_alpha"
    ),
    "lw_detr": Family(
        "loss_lw_detr",
        "LwDetrForObjectDetectionLoss",
        "LwDetrImageLoss",
        ("class_loss_coefficient", "bbox_loss_coefficient", "giou_loss_coefficient"),
        focal="focal_alpha",
    ),
    "rt_detr": Family("loss_rt_detr", "RTDetrForObjectDetectionLoss", "RTDetrLoss", _RT_DETR_WEIGHTS, weighted=True),
    "d_fine": Family("loss_d_fine", "DFineForObjectDetectionLoss", "DFineLoss", _RT_DETR_WEIGHTS, weighted=True),
    "deimv2": Family(
        "loss_deimv2",
        "Deimv2ForObjectDetectionLoss",
        "Deimv2Loss",
        ("weight_loss_mal", "weight_loss_bbox", "weight_loss_giou"),
        weighted=True,
    ),
}


def set_prediction_adapter(family: str, model: Any, loss: Loss) -> tuple[Criterion, list[Change]]:
    """Adapter of Transformers' models for object detection; every layer has the same criterion.

    A loss by name gets the model's own weights of L1 and GIoU; with self-balanced ranking losses each of the two is
    scaled to the ranking term instead.

    Args:
        family: Name in :data:`FAMILIES`.
        model: Model that the loss is for.
        loss: Name or criterion.

    Raises:
        ValueError: if the loss does not fit the model, or another loss was assigned to ``loss_function``: a module, or
            a function that ``default`` would have to keep.
    """
    name = type(model).__name__
    if "loss_function" in dict(model.named_children()):
        raise ValueError(
            f"this {name} has a module named loss_function, which Transformers never calls; "
            "remove it with `del model.loss_function`, then install"
        )
    settings, current = FAMILIES[family], model.loss_function
    default = keeps_default(loss)
    if default and not isinstance(current, SetLoss) and current is not settings.loss_function():
        raise ValueError(
            f"loss must replace the loss_function that was assigned to this {name}, got {loss!r}; "
            "remove it with `del model._loss_function`, or install another loss"
        )
    classification, l1, giou = settings.coefficients(model.config)
    alpha = getattr(model.config, settings.focal) if settings.focal else 0.25
    defaults = LossDefaults(
        "ce" if settings.softmax else "focal",
        BoxTerm("giou", weight=giou),
        softmax=settings.softmax,
        focal=(alpha, 2.0),
        no_object_weight=model.config.eos_coefficient if settings.softmax else None,
    )
    criterion = criterion_for(model, loss, defaults)
    if isinstance(loss, str) and not default:
        add_l1(criterion, classification=classification, l1=l1)
    return criterion, [Change(model, "loss_function", SetLoss(family, criterion, default))]


@dataclass(frozen=True, eq=False)
class SetLoss:
    """Replaces ``loss_function`` of a model.

    It is not an ``nn.Module``: assigned to ``loss_function``, a module would become a child of the model and never be
    called.

    Args:
        family: Name in :data:`FAMILIES`.
        criterion: Criterion of every layer.
        keeps_default: Whether the library's terms of classification and boxes stay, and ours are added to them.
    """

    family: str
    criterion: Criterion
    keeps_default: bool

    def __call__(
        self,
        logits: Tensor,
        labels: Targets,
        device: torch.device,
        pred_boxes: Tensor,
        config: Any,
        *layers: Any,
        **keywords: Any,
    ) -> tuple[Tensor, Terms, list[Outputs] | None]:
        """Total, named terms and outputs of the layers before the last, as the library's functions return them."""
        family = FAMILIES[self.family]
        if self.keeps_default and not self.criterion.couplings:
            return family.loss_function()(logits, labels, device, pred_boxes, config, *layers, **keywords)
        if not self.keeps_default:
            logits, pred_boxes, layers = _widened(logits), _widened(pred_boxes), tuple(map(_widened, layers))
            keywords = {name: _widened(value) for name, value in keywords.items()}
            labels = [{**target, "boxes": target["boxes"].to(pred_boxes.dtype)} for target in labels]
        collected = LayerRecords(self, family, config, logits.shape[1], keywords.get("denoising_meta_values"))
        function = family.with_criterion(collected.attach)
        total, terms, auxiliary = function(logits, labels, device, pred_boxes, config, *layers, **keywords)
        ours = named_terms(self.criterion, collected.records)
        values = [value for layer in ours for value in layer.values()]
        return sum(values, torch.as_tensor(total, device=logits.device)), _with_ours(terms, ours), auxiliary


class LayerRecords:
    """Replaces the method that computes the terms of one layer, during one call of a :class:`SetLoss`.

    It collects the layers' records, and returns for each a zero named by its number, which :func:`_with_ours` replaces:
    once all records are known, they can be ranked in one call.

    Args:
        loss: Loss of the model.
        family: Family of the model.
        config: Configuration of the model.
        queries: Number of queries per image, with all groups and denoising queries.
        denoising: The library's record of denoising queries; None without them.
    """

    def __init__(self, loss: SetLoss, family: Family, config: Any, queries: int, denoising: dict[str, Any] | None):
        self.loss: SetLoss
        self.family: Family
        self.config: Any
        self.loss, self.family, self.config = loss, family, config
        self.queries = queries
        self.denoising_queries = denoising["dn_num_split"][0] if denoising is not None else 0
        self.denoising_layers: list[Outputs] = []
        self.records: list[Assigned] = []

    def attach(self, library: Any) -> None:
        """Replaces ``get_loss`` of the library's criterion."""
        self.library: Any
        self.library_terms: Any
        self.library, self.library_terms = library, library.get_loss
        library.get_loss = self.get_loss
        library.register_forward_pre_hook(self._note_denoising)
        if hasattr(library, "group_detr") and not self.loss.keeps_default:
            # evaluation has one group of queries, where the library still expects as many as training has
            library.group_detr = self.queries // self.config.num_queries

    def _note_denoising(self, library: nn.Module, arguments: tuple[Outputs, Targets]) -> None:
        self.denoising_layers = arguments[0].get("dn_auxiliary_outputs", [])

    def get_loss(self, kind: str, outputs: Outputs, targets: Targets, matches: Matches, count: float) -> Terms:
        """Terms of one layer that the library groups under the name ``kind``."""
        if any(outputs is layer for layer in self.denoising_layers):
            return self.library_terms(kind, outputs, targets, matches, count)
        keep = self.loss.keeps_default or kind not in REPLACED
        terms = self.library_terms(kind, outputs, targets, matches, count) if keep else {}
        return {**terms, **self._ours(outputs, targets, matches)} if kind in CLASSIFICATION else terms

    def _ours(self, outputs: Outputs, targets: Targets, matches: Matches) -> Terms:
        if self.denoising_queries and outputs["logits"].shape[1] == self.queries:
            # until 5.17 the library matched denoising queries of the last layer like other queries
            outputs = {key: outputs[key][:, self.denoising_queries :] for key in ("logits", "pred_boxes")}
            matches = self.library.matcher(outputs, targets)
        softmax, keep_softmax = self.family.softmax, self.loss.criterion.needs.softmax
        number = f"#{len(self.records)}"
        self.records.append(transformers_record(outputs, targets, matches, softmax=softmax, keep_softmax=keep_softmax))
        if self.family.weighted:  # the library drops terms without a weight
            self.library.weight_dict[number] = 1.0
        return {number: outputs["logits"].new_zeros(())}


def _with_ours(terms: Terms, ours: Sequence[Terms]) -> Terms:
    """The library's terms, in which our terms of each layer replace the zero that stands for them.

    Example:
        >>> _with_ours({"loss_mask": 1, "#0": 0, "#1_aux_0": 0}, [{"loss_box": 2}, {"loss_box": 3}])
        {'loss_mask': 1, 'loss_box': 2, 'loss_box_aux_0': 3}
    """
    merged: Terms = {}
    for name, value in terms.items():
        placeholder = re.fullmatch(r"#(\d+)(.*)", name)
        if placeholder is None:
            merged[name] = value
        else:  # the library has appended the layer's name
            layer, suffix = placeholder.groups()
            merged |= {f"{own}{suffix}": term for own, term in ours[int(layer)].items()}
    return merged


def _widened(value: Any) -> Any:
    """Tensors of half precision as float32, in which costs and overlaps are accurate; other values as they are."""
    return at_least_float32(value) if isinstance(value, Tensor) and value.is_floating_point() else value


def transformers_record(
    outputs: Outputs, targets: Targets, matches: Matches, *, softmax: bool, keep_softmax: bool
) -> Assigned:
    """The record of one layer, with boxes in units of the image; encoded ones are center and size.

    Args:
        outputs: Outputs of the layer.
        targets: Objects of each image.
        matches: Matches of each image.
        softmax: Whether the classifier is a softmax, with "no object" last.
        keep_softmax: Whether the criterion takes a softmax's logits; otherwise they become its log-odds.
    """
    logits, boxes = at_least_float32(outputs["logits"]), at_least_float32(outputs["pred_boxes"])
    device, queries = logits.device, logits.shape[1]
    counts = [len(t["class_labels"]) for t in targets]
    offsets = first_indices(counts, torch.device("cpu"))
    indices = torch.cat([rows + i * queries for i, (rows, _) in enumerate(matches)])
    objects = torch.cat([columns + offset for (_, columns), offset in zip(matches, offsets, strict=True)])
    order = indices.argsort()
    positive, gt_ids = indices[order].to(device), objects[order].to(device)
    labels = torch.full((logits.shape[0] * queries,), BACKGROUND, device=device)
    labels[positive] = torch.cat([t["class_labels"] for t in targets])[gt_ids]
    matched_boxes = boxes.flatten(0, 1)[positive]
    gt_boxes = torch.cat([t["boxes"] for t in targets])[gt_ids]
    flat = logits.flatten(0, 1)
    return Assigned(
        logits=log_odds(flat) if softmax and not keep_softmax else flat,
        labels=labels,
        positive=positive,
        boxes=box_convert(matched_boxes, "cxcywh", "xyxy"),
        gt_boxes=box_convert(gt_boxes, "cxcywh", "xyxy"),
        gt_ids=gt_ids,
        image_ids=positive // queries,
        normalizer=mean_count(len(positive), device),
        regression=Regression(matched_boxes, gt_boxes),
        softmax=softmax and keep_softmax,
    )
