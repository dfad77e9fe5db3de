"""Data sets for detection in their publishers' layouts, digit scenes that need no download, and transforms."""

from concordet.data.digits import DigitScenes
from concordet.data.targets import DetectionDataset, collate, describe, to_original
from concordet.data.transforms import eval_transforms, train_transforms

__all__ = [
    "DetectionDataset",
    "DigitScenes",
    "collate",
    "describe",
    "eval_transforms",
    "to_original",
    "train_transforms",
]
