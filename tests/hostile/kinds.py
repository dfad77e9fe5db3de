"""Every kind of input: a small valid one, changed at random, and the command that reads it."""

import json
import shutil
import zipfile
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import yaml

from concordet.data import detect_format, load_dataset
from concordet.engine.config import to_dict

from ..data.forms import IMAGES, coco_json, csv_corners, labels, save, voc_objects, write
from ..trained import tiny
from ..trees import cityscapes_tree, lvis_tree
from .mutations import VALUES, mutate_bytes, mutate_file, mutate_json, mutate_text, mutate_tree
from .oracle import Case, command


def used(open_dataset):
    """Opens a data set and reads all of it; gives the status of a command."""
    dataset = open_dataset()
    samples = [dataset[index] for index in range(len(dataset))]
    truth = dataset.ground_truth()
    for _, target in samples:
        assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()
        assert set(target["labels"].tolist()) <= set(range(1, len(dataset.class_names) + 1))
    assert json.dumps(truth, allow_nan=False)
    assert len({annotation["id"] for annotation in truth["annotations"]}) == len(truth["annotations"])
    assert dataset.summary()["images"] == len(samples)
    return 0


def data_case(root, file, open_dataset):
    # a missing image or an empty part is named by its own file or by the folder
    return Case(root, file, partial(used, open_dataset), names=[str(root)])


def coco(root, draw, run):
    for name in IMAGES:
        save(root, name)
    content = json.loads(coco_json(IMAGES))
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h]]
    content["annotations"][0]["segmentation"] = {"size": [48, 64], "counts": [0, 100, 2972]}
    path = write(root / "boxes.json", mutate_json(json.dumps(content), draw))
    return data_case(root, path, partial(load_dataset, "coco", annotations=path, masks=draw.random() < 0.5))


def lvis(root, draw, run):
    lvis_tree(root)
    path = root / "annotations" / "lvis_v1_val.json"
    path.write_text(mutate_json(path.read_text(), draw))
    return data_case(root, path, partial(load_dataset, "lvis", root=root, split="val"))


def voc(root, draw, run):
    for name in IMAGES:
        save(root, name)
        write(root / f"{name}.xml", voc_objects(name))
    path = root / f"{draw.choice('abcde')}.xml"
    path.write_bytes(mutate_text(path.read_text(), draw).encode())
    part = draw.choice(["train", "val"])
    return data_case(root, path, lambda: detect_format(root).open(part))


def voc_list(root, draw, run):
    for name in IMAGES:
        save(root / "JPEGImages", name)
        write(root / "Annotations" / f"{name}.xml", voc_objects(name))
    path = write(root / "ImageSets" / "Main" / "train.txt", mutate_text("a\nb\nc\n", draw))
    return data_case(root, path, partial(load_dataset, "voc", root=root, split="train"))


def yolo(root, draw, run):
    for name in IMAGES:
        save(root / "train" / "images", name)
        write(root / "train" / "labels" / f"{name}.txt", labels(name, polygons=draw.random() < 0.5))
    write(root / "data.yaml", "path: .\ntrain: train/images\nval: train/images\nnc: 2\nnames: [cat, dog]\n")
    path = root / "data.yaml" if draw.random() < 0.4 else root / "train" / "labels" / f"{draw.choice('abcde')}.txt"
    path.write_bytes(mutate_text(path.read_text(), draw).encode())
    return data_case(root, path, partial(load_dataset, "yolo", root=root))


def table(root, draw, run):
    for name in IMAGES:
        save(root, name)
    path = write(root / "boxes.csv", "")
    path.write_bytes(mutate_text(csv_corners(IMAGES), draw).encode())
    return data_case(root, path, partial(load_dataset, "csv", root=root, annotations="boxes.csv"))


def cityscapes(root, draw, run):
    cityscapes_tree(root)
    path = draw.choice(sorted((root / "gtFine" / "val").rglob("*.png")))
    path.write_bytes(mutate_bytes(path.read_bytes(), draw))
    masks = draw.random() < 0.5
    return data_case(root, path, partial(load_dataset, "cityscapes", root=root, split="val", masks=masks))


SUFFIXES = [".jpg", ".png", ".bmp", ".tif", ".webp", ".gif"]


def data_images(root, draw, run):
    for name in IMAGES:
        save(root, name, draw.choice(SUFFIXES))
    write(root / "boxes.csv", csv_corners(IMAGES).replace(".jpg", ""))
    path = draw.choice([path for path in sorted(root.iterdir()) if path.suffix != ".csv"])
    path.write_bytes(mutate_bytes(path.read_bytes(), draw))
    return data_case(root, path, partial(load_dataset, "csv", root=root, annotations="boxes.csv"))


def photographs(root, draw, run):
    """``predict`` on a changed image and a whole one."""
    path = save(root / "in", "a", draw.choice(SUFFIXES))
    path.write_bytes(mutate_bytes(path.read_bytes(), draw))
    skip = draw.choice(["true", "false"])
    out = root / "out.json"
    words = ["predict", run, root / "in", "--out", out, "--skip_unreadable", skip]
    return Case(root / "in", path, command(*words), [out])


def results(root, draw, run):
    """``analyze`` and ``calibrate`` on changed annotations or detections."""
    folder = root / "in"
    folder.mkdir(parents=True)
    truth, detections = folder / "truth.json", folder / "detections.json"
    content = json.loads((run / "ground_truth.json").read_text())
    rows = json.loads((run / "detections.json").read_text())
    rows = rows[:: max(1, len(rows) // 40)]
    words = draw.choice([["analyze"]] * 3 + [["analyze", "--iou_type", "segm"], ["analyze", "--lvis"], ["calibrate"]])
    for record in (content["annotations"] + rows) * ("segm" in words):
        x, y, w, h = record["bbox"]
        record["segmentation"] = [[x, y, x + w, y, x + w, y + h]]
    for image in content["images"] * ("--lvis" in words):
        image |= {"neg_category_ids": [1], "not_exhaustive_category_ids": [2]}
    truth.write_text(json.dumps(content))
    detections.write_text(json.dumps(rows))
    path = draw.choice([truth, detections])
    mutate_file(path, draw)
    outputs = [root / "out.json", root / "out.html"]
    if words == ["analyze"] and draw.random() < 0.5:
        words += ["--compare", run / "detections.json", "--resamples", "20"]
    if words[0] == "analyze" and draw.random() < 0.5:
        words += ["--images", run / "samples"]
    words = [words[0], truth, detections, *words[1:], "--json", outputs[0], "--html", outputs[1]]
    # a record of the one file that the other lacks
    return Case(folder, path, command(*words), outputs, names=["truth.json", "detections.json"])


def text_results(root, draw, run):
    """``analyze`` of folders of text files."""
    for name in IMAGES:
        corners = [f"{cls} {x1} {y1} {x2} {y2}" for cls, x1, y1, x2, y2 in IMAGES[name]]
        write(root / "in" / "truth" / f"{name}.txt", "\n".join(corners) + "\n")
        scored = [line.replace(" ", " 0.7 ", 1) for line in corners]
        write(root / "in" / "detected" / f"{name}.txt", "\n".join(scored) + "\n")
    path = root / "in" / draw.choice(["truth", "detected"]) / f"{draw.choice('abcde')}.txt"
    path.write_bytes(mutate_text(path.read_text(), draw).encode())
    out = root / "out.json"
    words = ["analyze", root / "in" / "truth", root / "in" / "detected", "--json", out]
    return Case(root / "in", path, command(*words), [out], names=["detected", "truth"])


def calibrators(root, draw, run):
    """``calibrate --apply`` of a changed calibrator, and on changed detections."""
    folder = root / "in"
    folder.mkdir(parents=True)
    for name in ("calibrator.json", "detections.json"):
        shutil.copy(run / name, folder / name)
    path = folder / draw.choice(["calibrator.json"] * 3 + ["detections.json"])
    mutate_file(path, draw)
    out = root / "out.json"
    words = ["calibrate", "--apply", folder / "calibrator.json", folder / "detections.json", "--results", out]
    return Case(folder, path, command(*words), [out])


def configurations(root, draw, run):
    """``train`` with a changed configuration; the training itself is left out."""
    folder = root / "in"
    folder.mkdir(parents=True)
    path = folder / "run.yaml"
    content = to_dict(tiny(evaluate=False, options={"score_threshold": 0.1, "topk": 100}))
    if draw.random() < 0.8:
        text = yaml.safe_dump(mutate_tree(content, draw), sort_keys=False)
    else:
        text = mutate_text(yaml.safe_dump(content, sort_keys=False), draw)
    path.write_bytes(text.encode())
    out = root / "out"
    # what a setting stands for is refused by the name of the setting
    names = [*settings(content), "split"]
    return Case(folder, path, command("train", "--config", path, "--out", out), names=names)


def settings(tree):
    """Names of all settings."""
    for key, value in tree.items():
        yield key
        if isinstance(value, dict):
            yield from settings(value)


def checkpoints(root, draw, run):
    """``predict`` with a changed checkpoint."""
    folder = root / "in"
    image = save(folder, "a")
    path = changed_checkpoint(run / "checkpoints" / "last.ckpt", folder / "some.ckpt", draw)
    out = root / "out.json"
    return Case(folder, path, command("predict", path, image, "--out", out), [out])


def changed_checkpoint(source, target, draw):
    """Writes a checkpoint with changed bytes, fields or weights."""
    if draw.random() < 0.25:
        target.write_bytes(mutate_bytes(source.read_bytes(), draw))
        return target
    content = torch.load(source, weights_only=True)
    action = draw.choice(["description"] * 4 + ["weights"] * 4 + ["keys"])
    if action == "description":
        content["concordet"] = mutate_tree(content["concordet"], draw)
    elif action == "keys":
        key = draw.choice(list(content))
        content[key] = draw.choice(VALUES)
        if draw.random() < 0.5:
            del content[key]
    else:
        part = draw.choice(["state_dict", "ema_state_dict"])
        state = dict(content[part])
        name = draw.choice(list(state))
        value = state[name]
        state[name] = draw.choice(
            [
                *(
                    torch.full_like(value, number) if value.is_floating_point() else value
                    for number in (np.nan, np.inf)
                ),
                value.double(),
                value.to(torch.complex64),
                value[None],
                value.to_sparse() if value.ndim else value,
                torch.zeros(0),
                draw.choice(VALUES),
            ]
        )
        if draw.random() < 0.1:
            del state[name]
        content[part] = state
    torch.save(content, target)
    return target


RUN_FILES = ["config.yaml", "detections.json", "ground_truth.json", "metrics.csv", "positives.npz", "samples"]


def copied_run(run, folder):
    """A run folder without what is large and not read."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    return folder


def run_folders(root, draw, run):
    """``compare`` of a run with a changed file and a whole one."""
    folder = copied_run(run, root / "in" / "changed")
    path = folder / draw.choice(RUN_FILES + ["evaluation.json"] * 4)
    if path.name == "samples":
        path = draw.choice(sorted(path.iterdir()))
    if path.name == "positives.npz" and draw.random() < 0.7:
        changed_arrays(path, draw)
    else:
        mutate_file(path, draw)
    outputs = [root / "out.html", root / "out.json"]
    words = ["compare", folder, run, "--out", outputs[0], "--json", outputs[1]]
    return Case(root / "in", path, command(*words), outputs)


def changed_arrays(path, draw):
    """An archive of arrays whose headers or values are changed."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    name = draw.choice(list(arrays))
    shape = draw.choice(["(3000000000,)", "(-1,)", "()", "(2, 3)", "(1, 1000000000000)", "'a'"])
    kind = draw.choice(["<f8", "<f4", "|O", "<U9", "|V1000000000", "<M8[s]", "|b1"])
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    replaced = draw.choice([np.full(len(arrays[name]), number) for number in (np.nan, np.inf, -1.0, 1e308)])
    with zipfile.ZipFile(path, "w") as archive:
        for other, values in arrays.items():
            with archive.open(f"{other}.npy", "w") as file:
                if other != name:
                    np.lib.format.write_array(file, values)
                elif draw.random() < 0.5:
                    np.lib.format.write_array(file, replaced)
                else:
                    text = header.ljust(117).encode() + b"\n"
                    file.write(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(64))


def evaluated_runs(root, draw, run):
    """``evaluate`` and ``predict`` of a run with a changed configuration, evaluation or calibrator."""
    folder = copied_run(run, root / "in" / "changed")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").symlink_to(run / "checkpoints" / "last.ckpt")
    path = folder / draw.choice(["config.yaml", "config.yaml", "evaluation.json", "calibrator.json", "timing.json"])
    mutate_file(path, draw)
    out = root / "out.json"
    words = ["predict", folder, save(root / "in", "a"), "--out", out]
    return Case(root / "in", path, command(*words), [out], names=["plugins"])


def resumed_runs(root, draw, run):
    """``train --resume`` of a finished run with a changed last checkpoint and no other."""
    folder = root / "out"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("best.ckpt", "tensorboard"))
    path = folder / "checkpoints" / "last.ckpt"
    path.unlink()
    changed_checkpoint(run / "checkpoints" / "last.ckpt", path, draw)
    kept = root / "in"
    kept.mkdir()
    return Case(kept, path, command("train", "--resume", folder))


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        make: Makes a case in a new folder, from a source of random draws and a finished run.
        cases: Number of cases among the fast tests.
    """

    make: object
    cases: int

    @property
    def name(self):
        return self.make.__name__


KINDS = [
    *(Kind(make, 16) for make in (coco, lvis, voc, yolo, table)),
    *(Kind(make, 10) for make in (voc_list, cityscapes, data_images)),
    Kind(photographs, 20),
    Kind(results, 40),
    Kind(text_results, 14),
    Kind(calibrators, 16),
    Kind(configurations, 30),
    Kind(checkpoints, 26),
    Kind(run_folders, 30),
    Kind(evaluated_runs, 14),
    Kind(resumed_runs, 6),
]

MORE = 17
"""Cases among the slow tests for each among the fast ones."""
