"""Detection data sets in common formats, digit scenes that need no download, and transforms."""

from importlib import import_module
from pkgutil import iter_modules

from concordet.errors import requires

with requires("concordet.data", "train"):
    from concordet.data import formats
    from concordet.data.detect import DataSource, detect_format
    from concordet.data.digits.dataset import DigitScenes
    from concordet.data.file_dataset import FileDataset
    from concordet.data.formats.boxes_csv import CsvFolder
    from concordet.data.formats.cityscapes import CityscapesFolder
    from concordet.data.formats.coco import CocoFolder
    from concordet.data.formats.lvis import LvisFolder
    from concordet.data.formats.voc import VocFolder
    from concordet.data.formats.yolo import YoloFolder
    from concordet.data.records import Annotations, Record
    from concordet.data.registry import list_datasets, load_dataset, register_dataset
    from concordet.data.targets import DetectionDataset, Layout, collate, describe, to_original
    from concordet.data.transforms import eval_transforms, train_transforms

    for _module in iter_modules(formats.__path__):
        import_module(f"{formats.__name__}.{_module.name}")  # data sets register themselves

__all__ = [
    "Annotations",
    "CityscapesFolder",
    "CocoFolder",
    "CsvFolder",
    "DataSource",
    "DetectionDataset",
    "DigitScenes",
    "FileDataset",
    "Layout",
    "LvisFolder",
    "Record",
    "VocFolder",
    "YoloFolder",
    "collate",
    "describe",
    "detect_format",
    "eval_transforms",
    "list_datasets",
    "load_dataset",
    "register_dataset",
    "to_original",
    "train_transforms",
]
