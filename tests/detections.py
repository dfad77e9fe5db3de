"""Comparing detections as sets: the order of near ties is not part of a detector's result."""

import torch
from scipy.optimize import linear_sum_assignment


def assert_same_detections(got, expected, *, atol=1e-4, scale=1.0):
    """Raises unless two images' detections are the same set, boxes in units of ``scale`` pixels.

    Each detection of one side needs a partner of its class on the other, with score and box within ``atol``. Their
    order is not compared. Detections within ``atol`` of the lowest score may lack a partner, since which of nearly
    tied detections a limit on their number cuts off is not determined.

    Args:
        got: ``{"boxes" [n, 4], "labels" [n], "scores" [n]}`` of one image, masks optional.
        expected: the same, of the reference.
        atol: largest difference of scores, of boxes in units of ``scale``, and of the mean of masks.
        scale: size of a box unit in pixels.
    """
    distances = (got["boxes"][:, None] - expected["boxes"][None]).abs().amax(-1) / scale
    distances = torch.maximum(distances, (got["scores"][:, None] - expected["scores"][None]).abs())
    distances = torch.where(got["labels"][:, None] == expected["labels"][None], distances, torch.inf)
    if "masks" in expected:
        masks = [side["masks"].flatten(1).to(distances) for side in (got, expected)]
        distances = torch.maximum(distances, (masks[0][:, None] - masks[1][None]).abs().mean(-1))
    allowed = distances <= atol
    rows, columns = linear_sum_assignment(~allowed.numpy())
    paired = allowed[rows, columns]
    rows, columns = torch.as_tensor(rows)[paired], torch.as_tensor(columns)[paired]
    lowest = max((side["scores"].min() for side in (got, expected) if len(side["scores"])), default=torch.tensor(0.0))
    sides = (("got", got, "expected", rows, 1), ("expected", expected, "got", columns, 0))
    for name, side, other, indices, dim in sides:
        alone = torch.ones(len(side["scores"]), dtype=torch.bool)
        alone[indices] = False
        for index in (alone & (side["scores"] > lowest + atol)).nonzero().flatten().tolist():
            nearest = distances.amin(dim)[index].item() if distances.numel() else float("inf")
            raise AssertionError(
                f"{name} has a detection of class {side['labels'][index]} and score {side['scores'][index]:.6f} that "
                f"{other} lacks (the nearest differs by {nearest:.2g}, {atol:.2g} is allowed)"
            )
