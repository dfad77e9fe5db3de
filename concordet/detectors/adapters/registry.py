"""The table of adapters, and the functions that use it: ``install(model, "rank_sort")`` and ``uninstall(model)``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from torch import nn

from concordet.detectors.adapters.changes import KEY, Change, Installation, apply, revert
from concordet.detectors.adapters.criteria import Loss
from concordet.detectors.adapters.torchvision_one_stage import fcos_adapter, retinanet_adapter, ssd_adapter
from concordet.detectors.adapters.torchvision_rcnn import rcnn_adapter
from concordet.losses.criteria import Criterion, StagedCriterion

Model = TypeVar("Model", bound=nn.Module)
Adapter = Callable[[Any, Loss], tuple[Criterion | StagedCriterion, list[Change]]]


def _set_prediction_adapter(family: str, model: nn.Module, loss: Loss) -> tuple[Criterion, list[Change]]:
    # late: only users of such models have Transformers
    from concordet.detectors.adapters.transformers_detr import set_prediction_adapter

    return set_prediction_adapter(family, model, loss)


_SET_PREDICTION_FAMILIES = {
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
    ("torchvision", "RetinaNet"): retinanet_adapter,
    ("torchvision", "FCOS"): fcos_adapter,
    ("torchvision", "SSD"): ssd_adapter,
    ("torchvision", "FasterRCNN"): rcnn_adapter,
    ("torchvision", "MaskRCNN"): rcnn_adapter,
    **{
        ("transformers", f"{name}ForObjectDetection"): partial(_set_prediction_adapter, family)
        for name, family in _SET_PREDICTION_FAMILIES.items()
    },
}
"""Adapters by library and class: each builds the criterion of a model and lists the changes to the model."""


def list_installable() -> list[str]:
    """Names of the classes that :func:`install` takes.

    Returns:
        Class names, torchvision's first.

    Example:
        >>> "FCOS" in list_installable() and "RTDetrForObjectDetection" in list_installable()
        True
    """
    return [name for _, name in ADAPTERS]


def install(model: Model, loss: Loss) -> Model:
    """Swaps the loss of a torchvision or Transformers detector, in place.

    In training the model then returns terms named ``loss_...`` instead of its own classification and box terms. Its
    other terms (masks, denoising queries, distributions of box sides), its matching, parameters, state dict and
    outputs stay. Two things change at inference, because scores change their meaning: ranking losses order scores and
    give them no scale, so that torchvision's score threshold becomes 0, and FCOS scores are class probabilities unless
    its centerness branch is trained. Softmax classifiers stay: a loss with one sigmoid per class gets the log-odds of
    their probabilities. ``docs/install.md`` has a table of models and what changes in them.

    Args:
        model: Instance of one of :func:`list_installable`, not yet wrapped (DataParallel, DDP, ``torch.compile``).
        loss: Name from :func:`concordet.losses.list_losses`, or a criterion. ``"default"`` is the model's own loss, so
            that ``"default+concordance(0.3)"`` adds a coupling to it. A loss installed before is replaced.

    Returns:
        The same model.

    Raises:
        ValueError: for a model that is not supported or is wrapped, an unknown loss, or one that does not fit the
            model.

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
    criterion, changes = _adapter(model)(model, loss)  # first, so that a refused loss changes nothing
    if KEY in vars(model):
        uninstall(model)
    undo = apply(changes)
    setattr(model, KEY, Installation(criterion, undo))
    return model


def uninstall(model: Model) -> Model:
    """Restores the model's own loss, in place; weights stay as they are.

    Args:
        model: Model in which a loss is installed.

    Returns:
        The same model.

    Raises:
        ValueError: where no loss is installed.

    Example:
        >>> from torchvision.models.detection import fcos_resnet50_fpn
        >>> model = install(fcos_resnet50_fpn(weights=None, weights_backbone=None), "rank_sort")
        >>> uninstall(model) is model
        True
    """
    revert(_installation(model))
    delattr(model, KEY)
    return model


def installed_criterion(model: nn.Module) -> Criterion | StagedCriterion:
    """The criterion of an installed loss, which is not part of the model's state dict.

    Only aLRP has state: save ``installed_criterion(model).state_dict()`` with the model's, and call
    ``on_epoch_end()`` after each epoch.

    Args:
        model: Model in which a loss is installed.

    Returns:
        The criterion; for R-CNNs one per stage (``rpn``, ``roi``).

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
    installation = vars(model).get(KEY)
    if installation is None:
        _refuse_wrapper(model)
        raise ValueError(f"no loss is installed in this {type(model).__name__}; call install(model, loss) first")
    return installation


def _adapter(model: nn.Module) -> Adapter:
    for cls in type(model).__mro__:
        adapter = ADAPTERS.get((cls.__module__.split(".")[0], cls.__name__))
        if adapter is not None:
            return adapter
    _refuse_wrapper(model)
    raise ValueError(f"model must be one of {', '.join(list_installable())}, got {type(model).__name__}")


def _refuse_wrapper(model: nn.Module) -> None:
    for attribute in ("module", "_orig_mod"):  # of DataParallel, DDP and EMA copies; of torch.compile
        inner = getattr(model, attribute, None)
        if isinstance(inner, nn.Module):
            raise ValueError(
                f"model must be the detector itself, got {type(model).__name__} around {type(inner).__name__}; "
                f"install in model.{attribute} before wrapping"
            )
