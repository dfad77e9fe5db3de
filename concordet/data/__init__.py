"""Data sets for detection in their publishers' layouts, digit scenes that need no download, and transforms."""

from concordet.data.cityscapes import CityscapesFolder
from concordet.data.coco import CocoFolder
from concordet.data.digits import DigitScenes
from concordet.data.load import list_datasets, load_dataset
from concordet.data.lvis import LvisFolder
from concordet.data.records import FileDataset, Record
from concordet.data.targets import DetectionDataset, collate, describe, to_original
from concordet.data.transforms import eval_transforms, train_transforms
from concordet.data.voc import VocFolder

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
