"""The exported modules: from images to detections with calibrated scores, or to candidates."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from concordet.detectors import Detector
from concordet.detectors.parts.resize import IMAGENET_MEAN, IMAGENET_STD
from concordet.export.calibration import HIGHEST, LOWEST, Tables
from concordet.export.candidates import candidates_of
from concordet.export.suppression import detections

Outputs = tuple[Tensor, Tensor, Tensor]


class Calibration(nn.Module):
    """Calibrated scores ``[b, k]`` from scores ``[b, k]`` in [0, 1] and classes ``[b, k]`` 0..c-1."""

    knots: Tensor
    values: Tensor
    linear: Tensor
    logistic: Tensor
    tilt: Tensor

    def __init__(self, tables: Tables) -> None:
        super().__init__()
        for name, value in vars(tables).items():
            self.register_buffer(name, torch.from_numpy(value))

    def forward(self, scores: Tensor, classes: Tensor) -> Tensor:
        """See :func:`concordet.export.calibration.calibrated`."""
        s = scores.double()
        odds = (s.log() - (1 - s).log()).clamp(LOWEST, HIGHEST)
        knots, values = self.knots[classes], self.values[classes]  # [b, k, m]
        last = self.knots.shape[1] - 1
        left = ((knots <= s[..., None]).sum(-1, keepdim=True) - 1).clamp(0, last)
        right = (left + 1).clamp(max=last)
        low, high = knots.gather(-1, left), knots.gather(-1, right)
        width = torch.where(high > low, high - low, 1.0)
        share = ((s[..., None] - low) / width).clamp(0.0, 1.0)
        start = values.gather(-1, left)
        between = (start + share * (values.gather(-1, right) - start)).squeeze(-1)
        slope, intercept = self.linear[classes].unbind(-1)
        odds_slope, odds_intercept, logistic = self.logistic[classes].unbind(-1)
        increasing = between + slope * s + intercept + logistic * (odds_slope * odds + odds_intercept).sigmoid()
        tilt = self.tilt[classes]
        result = (1 - tilt) * increasing.clamp(0.0, 1.0) + tilt * (odds - LOWEST) / (HIGHEST - LOWEST)
        return result.to(scores.dtype)


class Core(nn.Module):
    """The part of a detector from normalized images to detections in pixels of the original images.

    Args:
        model: Detector in evaluation mode.
        tables: Calibration of its scores; None for no calibration.
        raw: Whether to return candidates, for :func:`concordet.export.postprocess`, instead of detections.
        operator: Whether suppression uses the operator of this package instead of torchvision's.
    """

    def __init__(self, model: Detector, *, tables: Tables | None, raw: bool, operator: bool) -> None:
        super().__init__()
        self.candidates: nn.Module = candidates_of(model, operator=operator)
        self.calibration: Calibration | None = None if tables is None or raw else Calibration(tables)
        self.postprocess = model.postprocess
        self.num_classes: int = model.num_classes
        self.raw = raw
        self.operator = operator

    def forward(self, pixels: Tensor, size: Tensor, original: Tensor) -> Outputs:
        """``boxes`` ``[b, k, 4]``, ``labels`` ``[b, k]`` from 1 and ``scores`` ``[b, k]``, all 0 where there is none.

        Args:
            pixels: ``[b, 3, H, W]`` normalized images, padded to the network's strides.
            size: ``[2]`` height and width of the images without padding.
            original: ``[2]`` height and width of the images before they were resized.
        """
        boxes, scores, classes = self.candidates(pixels, size)
        if not self.raw:
            boxes, scores, classes = detections(
                boxes, scores, classes, self.postprocess, self.num_classes, operator=self.operator
            )
        exists = scores >= 0
        scores, labels = scores.clamp(min=0.0), classes + 1
        boxes = boxes * (original / size).flip(0).repeat(2)
        if self.calibration is not None:
            # maps differ between classes, so the order of an image's detections may change
            scores = self.calibration(scores, classes).masked_fill(~exists, -1.0)
            scores, order = scores.topk(self.postprocess.detections_per_image, dim=1)
            exists, labels = exists.gather(1, order), labels.gather(1, order)
            boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
        none = ~exists
        return boxes.masked_fill(none[..., None], 0.0), labels.masked_fill(none, 0), scores.masked_fill(none, 0.0)


def input_size(height: int, width: int, shorter: int, longer: int, exact: bool) -> tuple[int, int]:
    """Height and width of an image at the network's input, as torchvision's transform computes them."""
    if exact:
        return shorter, longer
    if torch.jit.is_scripting():
        fixed = min(shorter / min(height, width), longer / max(height, width))
        return int(height * fixed), int(width * fixed)
    scale = torch.sym_min(shorter / torch.sym_min(height, width), longer / torch.sym_max(height, width))
    return torch.sym_int(height * scale), torch.sym_int(width * scale)


class Whole(nn.Module):
    """A detector from images to detections, including resizing, normalization and padding.

    Args:
        core: :class:`Core`, or its trace.
        size: (shorter, longer) or (height, width) of the network's input.
        exact: Whether images are stretched to this size.
        multiple: Number that the sides of the padded input are multiples of.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, core: nn.Module, size: tuple[int, int], *, exact: bool, multiple: int) -> None:
        super().__init__()
        self.core = core
        self.shorter: int
        self.longer: int
        self.exact: bool
        self.multiple: int
        self.shorter, self.longer, self.exact, self.multiple = size[0], size[1], exact, multiple
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None])

    def forward(self, images: Tensor) -> Outputs:
        """Outputs of :class:`Core` for ``images`` ``[b, 3, h, w]`` in [0, 1]."""
        height, width = images.shape[-2:]
        rows, columns = input_size(height, width, self.shorter, self.longer, self.exact)
        pixels = F.interpolate((images - self.mean) / self.std, (rows, columns), mode="bilinear")
        down = (rows + self.multiple - 1) // self.multiple * self.multiple
        right = (columns + self.multiple - 1) // self.multiple * self.multiple
        pixels = F.pad(pixels, (0, right - columns, 0, down - rows))
        return self.core(pixels, pair(rows, columns), pair(height, width))


def pair(height: int, width: int) -> Tensor:
    """``[2]`` float32 tensor of two numbers that may be symbolic while a graph is traced."""
    return torch.stack(
        [torch.scalar_tensor(height, dtype=torch.float32), torch.scalar_tensor(width, dtype=torch.float32)]
    )
