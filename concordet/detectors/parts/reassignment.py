"""Reassignment: changes of an assignment once predictions are known, one function per algorithm.

Each takes one image's matches ``[a]`` (:mod:`concordet.detectors.parts.assigners`) and a :class:`Scene`, and returns
matches.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from concordet.assigned import BACKGROUND, IGNORED
from concordet.detectors.parts.coders import BoxCodec
from concordet.losses.functional import focal_loss


@dataclass(frozen=True)
class Scene:
    """Predictions and objects of one image, without gradient.

    Attributes:
        logits: ``[a, c]``; of a softmax ``[a, c + 1]``, background last.
        regressions: ``[a, d]`` encoded boxes.
        anchors: ``[a, 4]``.
        codec: Regressions to boxes.
        boxes: ``[m, 4]`` of the objects.
        classes: ``[m]`` 0..c-1.
        level_sizes: Anchors per level.
    """

    logits: Tensor
    regressions: Tensor
    anchors: Tensor
    codec: BoxCodec
    boxes: Tensor
    classes: Tensor
    level_sizes: Sequence[int]


Reassigner = Callable[[Tensor, Scene], Tensor]


def hard_negatives(matches: Tensor, scene: Scene) -> Tensor:
    """Keeps three times as many negatives as positives, and ignores the rest; see :func:`hardest_kept`."""
    return hardest_kept(matches, scene.logits)


def hardest_kept(matches: Tensor, logits: Tensor, *, ratio: int = 3) -> Tensor:
    """Keeps the negatives of highest loss, ``ratio`` times as many as there are positives, and ignores the rest.

    For softmax classifiers, for which background would otherwise outweigh all classes. Liu et al. 2016, Sec. 2.2.

    Args:
        matches: ``[a]`` index of an object, or a label without object.
        logits: ``[a, c + 1]``, background last.
        ratio: Negatives per positive.

    Returns:
        ``[a]`` matches, with other negatives ignored.

    Example:
        >>> logits = torch.tensor([[0.0, 9.0], [0.0, 0.0], [0.0, 5.0], [0.0, 1.0], [0.0, 7.0]])
        >>> hardest_kept(torch.tensor([0, -1, -1, -1, -1]), logits).tolist()
        [0, -1, -1, -1, -2]
    """
    background = matches == BACKGROUND
    count = min(ratio * int((matches >= 0).sum()), int(background.sum()))
    losses = -logits.log_softmax(-1)[:, -1]
    hardest = losses.masked_fill(~background, -torch.inf).topk(count).indices
    kept = torch.where(background, IGNORED, matches)
    kept[hardest] = BACKGROUND
    return kept


def mixture_matches(matches: Tensor, scene: Scene, *, candidates: int = 9, box_weight: float = 1.3) -> Tensor:
    """PAA's: a mixture of two normal distributions over an object's candidates separates positives from negatives.

    Args:
        matches: ``[a]`` candidates: index of an anchor's object, or a label without object.
        scene: Predictions of classifiers with one sigmoid per class, and the objects.
        candidates: Number of candidates per object and level that the mixture is fitted to, those of lowest loss.
        box_weight: Weight of the GIoU loss in a candidate's loss, which is added to its focal loss.

    Positives are the candidates of the component of lower loss, up to the densest one of that component (Fig. 3c). An
    object with a single candidate keeps it. Kim and Lee 2020, Algorithm 1.
    """
    rows = torch.nonzero(matches >= 0).squeeze(1)
    objects = matches[rows]
    targets = torch.zeros_like(scene.logits[rows])
    targets[torch.arange(len(rows), device=rows.device), scene.classes[objects]] = 1
    losses = focal_loss(scene.logits[rows], targets, reduction="none").sum(1)
    boxes = scene.codec.decode(scene.regressions[rows], scene.anchors[rows])
    losses = losses + box_weight * generalized_box_iou_loss(boxes, scene.boxes[objects], reduction="none")
    # training reports a diverged model by its loss; here NaN must only not raise an error
    costs = losses.nan_to_num(nan=1e6, posinf=1e6).cpu().numpy().astype(np.float64)
    owners, indices = objects.cpu().numpy(), rows.cpu().numpy()
    levels = np.searchsorted(np.cumsum(scene.level_sizes), indices, side="right")
    kept = [np.empty(0, dtype=np.int64)]
    for k in np.unique(owners):
        own = np.flatnonzero(owners == k)
        own = own[np.argsort(costs[own], kind="stable")]
        best = np.concatenate([own[levels[own] == n][:candidates] for n in np.unique(levels[own])])
        best = best[np.argsort(costs[best], kind="stable")]
        kept.append(best[better_component(costs[best])])
    chosen = torch.from_numpy(np.concatenate(kept)).to(rows.device)
    reassigned = matches.clamp(max=BACKGROUND)
    reassigned[rows[chosen]] = objects[chosen]
    return reassigned


def better_component(costs: np.ndarray) -> np.ndarray:
    """Indices of the positives among one object's candidates, whose losses ``[k]`` ascend."""
    if len(costs) < 2:
        return np.arange(len(costs))
    from sklearn.exceptions import ConvergenceWarning  # takes a second to import, and only PAA needs it
    from sklearn.mixture import GaussianMixture

    values = costs[:, None]
    mixture = GaussianMixture(
        2,
        covariance_type="diag",
        weights_init=np.array([0.5, 0.5]),
        means_init=values[[0, -1]],
        precisions_init=np.ones((2, 1)),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # equal losses have one distribution, not two
        component = mixture.fit(values).predict(values)
    better = np.flatnonzero(component == 0)
    if len(better) == 0:
        return better
    return better[: mixture.score_samples(values[better]).argmax() + 1]
