"""Losses in detectors that someone already has: ``install(model, "rank_sort")``, in place, and ``uninstall(model)``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from torch import nn

from concordet.detectors.adapters.installation import KEY, Change, Installation, Loss, make, take_back
from concordet.detectors.adapters.torchvision_one_stage import in_fcos, in_retinanet, in_ssd
from concordet.detectors.adapters.torchvision_rcnn import in_faster_rcnn
from concordet.losses.criteria import Criterion, StagedCriterion

__all__ = ["install", "installed_criterion", "list_installable", "uninstall"]

Model = TypeVar("Model", bound=nn.Module)
Adapter = Callable[[Any, Loss], tuple[Criterion | StagedCriterion, list[Change]]]


def _in_transformers(family: str, model: nn.Module, loss: Loss) -> tuple[Criterion, list[Change]]:
    from concordet.detectors.adapters.transformers_detr import (
        in_set_predictor,  # Transformers is there: the model is its
    )

    return in_set_predictor(family, model, loss)


_SET_PREDICTORS = {
    "Detr": "detr",
    "ConditionalDetr": "deformable_detr",
    "DabDetr": "deformable_detr",
    "DeformableDetr": "deformable_detr",
    "LwDetr": "lw_detr",
    "RfDetr": "lw_detr",
    "RTDetr": "rt_detr",
    "RTDetrV2": "rt_detr",
    "DFine": "d_fine",
    "Deimv2": "deimv2",
}

ADAPTERS: dict[tuple[str, str], Adapter] = {
    ("torchvision", "RetinaNet"): in_retinanet,
    ("torchvision", "FCOS"): in_fcos,
    ("torchvision", "SSD"): in_ssd,
    ("torchvision", "FasterRCNN"): in_faster_rcnn,
    ("torchvision", "MaskRCNN"): in_faster_rcnn,
    **{
        ("transformers", f"{name}ForObjectDetection"): partial(_in_transformers, family)
        for name, family in _SET_PREDICTORS.items()
    },
}
"""Library and class to what makes a criterion for a model, and says what changes in it."""


def list_installable() -> list[str]:
    """Names of the classes that :func:`install` knows.

    Example:
        >>> "FCOS" in list_installable() and "RTDetrForObjectDetection" in list_installable()
        True
    """
    return [name for _, name in ADAPTERS]


def install(model: Model, loss: Loss) -> Model:
    """Gives an existing detector of torchvision or Transformers this loss, in place.

    In training the model returns our terms, named ``loss_...``, instead of those of classification and boxes; its other
    terms (masks, denoising queries, distributions of box sides), its matching, parameters and state dict stay.  With a
    ranking loss, whose scores have an order but no scale, torchvision's score threshold becomes 0.  A softmax
    classifier stays one: a loss with a sigmoid a class takes the log-odds of its probabilities.  ``docs/install.md``
    says what is installed where.

    Args:
        model: an instance of one of :func:`list_installable`; install before wrapping it (DDP, ``torch.compile``).
        loss: a name (:func:`concordet.losses.list_losses`), or a criterion.  ``"default"`` is the model's own loss, so
            that ``"default+concordance(0.3)"`` adds a coupling to it.  Another loss takes the place of one installed
            before.

    Returns:
        The model.

    Raises:
        ValueError: for a model that is not supported, an unknown loss, or one that makes no sense with the model.

    Example:
        >>> import torch
        >>> from torchvision.models.detection import fcos_resnet50_fpn
        >>> model = fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4, min_size=64, max_size=64)
        >>> target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
        >>> sorted(install(model, "rank_sort")([torch.rand(3, 64, 64)], [target]))
        ['loss_box', 'loss_ranking', 'loss_sorting']
        >>> sorted(uninstall(model)([torch.rand(3, 64, 64)], [target]))
        ['bbox_ctrness', 'bbox_regression', 'classification']
    """
    if not isinstance(loss, str | Criterion | StagedCriterion):
        raise ValueError(f"loss must be a name or a criterion of concordet, got {type(loss).__name__}")
    criterion, changes = _adapter(model)(model, loss)  # first, so that nothing changes where the loss is refused
    if KEY in vars(model):
        uninstall(model)
    undo = make(changes)
    setattr(model, KEY, Installation(criterion, undo))
    return model


def uninstall(model: Model) -> Model:
    """Gives the model its own loss back, in place; weights stay as they are.

    Raises:
        ValueError: where no loss is installed.
    """
    take_back(_installation(model))
    delattr(model, KEY)
    return model


def installed_criterion(model: nn.Module) -> Criterion | StagedCriterion:
    """The criterion of an installed loss.

    It is no part of the model's state dict.  Only aLRP has state: save ``installed_criterion(model).state_dict()``
    beside the model's, and call ``on_epoch_end()`` after each epoch.

    Raises:
        ValueError: where no loss is installed.

    Example:
        >>> from torchvision.models.detection import fcos_resnet50_fpn
        >>> model = install(fcos_resnet50_fpn(weights=None, weights_backbone=None), "alrp")
        >>> list(installed_criterion(model).state_dict())
        ['core.weight', 'core.sums']
    """
    return _installation(model).criterion


def _installation(model: nn.Module) -> Installation:
    found = vars(model).get(KEY)
    if found is None:
        raise ValueError(f"no loss is installed in this {type(model).__name__}; call install(model, loss) first")
    return found


def _adapter(model: nn.Module) -> Adapter:
    for kind in type(model).__mro__:
        adapter = ADAPTERS.get((kind.__module__.split(".")[0], kind.__name__))
        if adapter is not None:
            return adapter
    raise ValueError(
        f"cannot install a loss in {type(model).__name__}; supported are {', '.join(list_installable())} "
        "(install before wrapping a model)"
    )
