"""Data sets for detection in their publishers' layouts, digit scenes that need no download, and transforms."""

from concordet.data.digits.dataset import DigitScenes
from concordet.data.formats.cityscapes import CityscapesFolder
from concordet.data.formats.coco import CocoFolder
from concordet.data.formats.lvis import LvisFolder
from concordet.data.formats.voc import VocFolder
from concordet.data.load import list_datasets, load_dataset
from concordet.data.records import FileDataset, Record
from concordet.data.targets import DetectionDataset, collate, describe, to_original
from concordet.data.transforms import eval_transforms, train_transforms

__all__ = [
    "CityscapesFolder",
    "CocoFolder",
    "DetectionDataset",
    "DigitScenes",
    "FileDataset",
    "LvisFolder",
    "Record",
    "VocFolder",
    "collate",
    "describe",
    "eval_transforms",
    "list_datasets",
    "load_dataset",
    "to_original",
    "train_transforms",
]
