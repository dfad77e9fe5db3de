"""Fixtures of all tests, the doctests of the package included, and how many processes run them."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread per worker, set before the libraries are imported
    for _library in ("OMP", "RAYON"):
        os.environ.setdefault(f"{_library}_NUM_THREADS", "1")


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_xdist_auto_num_workers() -> int:
    """``-n auto``: a worker per core that this process may use, at most four."""
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 4)


@contextmanager
def _registered_names_restored() -> Iterator[None]:
    """Removes losses, couplings, detectors and data sets that are registered inside."""
    from concordet.data import registry as data_sets
    from concordet.losses.criteria import registry

    tables = [registry.BASES, registry.COUPLINGS, registry._REGISTERED, data_sets._DATASETS]
    detectors = sys.modules.get("concordet.detectors.architectures.registry")
    if detectors is not None:
        tables.append(detectors.DETECTORS)
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.fixture(autouse=True, scope="module")
def _registered_names_end_with_the_module():
    """What fixtures of a module register."""
    with _registered_names_restored():
        yield


@pytest.fixture(autouse=True)
def _registered_names_end_with_the_test(_registered_names_end_with_the_module):
    """What a test or an example registers."""
    with _registered_names_restored():
        yield


@pytest.fixture(scope="session")
def _folder_of_examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``photos`` (digit scenes, a table of boxes) and ``pets-coco``, ``pets-voc`` and so on."""
    from concordet.data import DigitScenes
    from tests.data import forms

    folder = tmp_path_factory.mktemp("examples")
    (folder / "photos").mkdir()
    rows = ["filename,class,xmin,ymin,xmax,ymax"]
    scenes = DigitScenes(split="val", length=4, size=64, classes=["3", "7"])
    for index, annotation in enumerate(scenes.ground_truth()["images"]):
        scenes.load_image(index).save(folder / "photos" / f"{index}.png")
        objects = [a for a in scenes.ground_truth()["annotations"] if a["image_id"] == annotation["id"]]
        for x, y, width, height in (a["bbox"] for a in objects):
            rows.append(f"{index}.png,digit,{x},{y},{x + width},{y + height}")
    (folder / "photos" / "boxes.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    for name, write in (
        ("coco", forms.coco_published),
        ("voc", forms.voc_published),
        ("yolo", forms.yolo_parts_inside),
    ):
        write(folder / f"pets-{name}")
    return folder


@pytest.fixture(scope="session")
def _run_of_examples(_folder_of_examples: Path) -> Path:
    """The run ``runs/first`` in that folder: a nano FCOS after two updates."""
    from concordet.engine import DataConfig, OptimConfig, TrainConfig, train

    scenes = {"length": 8, "size": 64, "classes": ["3", "7"]}
    data = DataConfig(name="digits", train_options=scenes, val_options=scenes, batch_size=4, workers=0)
    config = TrainConfig(size="nano", image_size=64, data=data, optim=OptimConfig(epochs=1), accelerator="cpu")
    return train(config, _folder_of_examples / "runs" / "first")


@pytest.fixture(autouse=True)
def _examples_have_a_folder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples that read or write files do so in a folder of their own, which has photographs and a run."""
    if isinstance(request.node, pytest.DoctestItem):
        text = "".join(example.source for example in request.node.dtest.examples)
        if "runs/first" in text:
            request.getfixturevalue("_run_of_examples")
        if any(word in text for word in ("runs/", "photos", "pets-", ".yaml", ".html", ".torchscript")):
            monkeypatch.chdir(request.getfixturevalue("_folder_of_examples"))
