"""Checks an installed concordet against what its extras promise; run by nox with the name of the extra.

Each feature either works, because the extra has what it needs, or ends with one sentence that names an extra which has
it. Runs without pytest, with nothing but what the extra installs.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

ADDED_TO_TRAIN = {"export", "video", "supervision", "wandb", "mlflow", "ray"}
EVERYTHING = {"train", "all", *ADDED_TO_TRAIN}
REPORT = {"report", *EVERYTHING}
MEASURES = {"measures", *REPORT}
DETECTORS = {"detectors", "backbones", "transformers", *EVERYTHING}
EVERY = {"core", "numba", "cli", *MEASURES, *DETECTORS}

LOSSES = """
import torch
from concordet.losses.functional import correlation_loss, rank_sort_loss
logits = torch.randn(1000, requires_grad=True)
labels = (torch.rand(1000) < 0.1).long()
sum(rank_sort_loss(logits, labels, torch.rand(1000))).backward()
positives = labels == 1
correlation_loss(logits[positives].sigmoid(), torch.rand(int(positives.sum())), coefficient="spearman").backward()
assert logits.grad.isfinite().all()
"""
COMPILED = """
import torch
from concordet.losses.functional import rank_sort_loss
from concordet.ranking.backend_torch import use_backend
labels = (torch.rand(1000) < 0.1).long()
with use_backend("numba"):
    rank_sort_loss(torch.randn(1000), labels, torch.rand(1000))
"""
BY_NAME = """
from concordet.losses import build_criterion, list_losses
for loss in ("rank_sort", "focal+spearman(0.1)", "alrp", "harmonic"):
    build_criterion(loss)
assert len(list_losses()) > 10
"""
BUILD = """
import torch
from concordet.detectors import build_detector
model = build_detector({!r}, num_classes=3, size="nano", loss="rank_sort"{})
images = [torch.rand(3, 128, 128)]
targets = [{{"boxes": torch.tensor([[10.0, 10.0, 90.0, 80.0]]), "labels": torch.tensor([2])}}]
sum(model(images, targets).values()).backward()
assert set(model.eval()(images)[0]) >= {{"boxes", "labels", "scores"}}
"""
CALIBRATE = """
from concordet.calibration import fit_calibrator
fit_calibrator("truth.json", "detections.json").apply([])
"""
EXPORT = """
from concordet.export import export_detector
import torch, concordet
from concordet.detectors import build_detector
export_detector(build_detector("fcos", num_classes=1, size="nano").eval(), "own.onnx", class_names=["thing"])
(detection,) = concordet.load("own.onnx")([torch.rand(3, 96, 128)], threshold=0.0)
assert set(detection) >= {"boxes", "labels", "scores"}
"""
VIDEO = """
from concordet.engine import predict
from pathlib import Path
from PIL import Image
from concordet.engine.video.frames import written_frames
with written_frames(Path("street.mp4"), rate=5.0, size=(128, 96)) as write:
    for gray in (0, 100, 200):
        write(Image.new("RGB", (128, 96), (gray, gray, gray)))
assert predict("run", [Path("street.mp4")], accelerator="cpu").images == 3
"""
SUPERVISION = """
from concordet.engine import Predictor
import torch
from concordet.detectors import build_detector
model = build_detector("fcos", num_classes=1, size="nano")
predictor = Predictor(model, ["thing"], [1], device=torch.device("cpu"))
(detection,) = predictor([torch.rand(3, 96, 128)], threshold=0.0)
assert len(predictor.to_supervision(detection)) == len(detection["boxes"])
"""
RAY = """
import os
os.environ.pop("TMPDIR", None)  # nox's is too long for the names of Ray's sockets
from pathlib import Path
from concordet.study import Study, run_study_on_ray
from concordet.engine import load_config, train  # what the run below was trained with
study = Study(Path("study"), ("fcos",), ("default",), (1,), config=load_config(Path("run/config.yaml")))
assert run_study_on_ray(study, address="local")["finished"] == 1
"""
TRAIN = [
    *("train", "--data.name", "digits", "--size", "nano", "--optim.steps", "2", "--accelerator", "cpu"),
    *("--data.batch_size", "2", "--data.train_options", "{length: 4}", "--data.val_options", "{length: 4}"),
]
TIMM = ", backbone='timm/resnet18', weights=None"

# what it is; a Python program or the words of a command; extras with which it works; those that it may name otherwise
FEATURES: list[tuple[str, str | list[str], set[str], str]] = [
    ("losses", LOSSES, EVERY, ""),
    ("losses by Numba", COMPILED, {"numba"}, "numba"),
    ("losses by name", BY_NAME, EVERY, ""),
    ("errors", "import concordet.errors, concordet.boxes, concordet.assigned, concordet.distributed", EVERY, ""),
    ("help", ["--help"], EVERY, ""),
    ("version", ["--version"], EVERY, ""),
    ("measures", "import concordet.measures as m; m.analyze('truth.json', 'detections.json')", MEASURES, "measures"),
    ("calibration", CALIBRATE, MEASURES, "measures"),
    ("pages", "from concordet.report import write_analysis", REPORT, "report"),
    ("analyze", ["analyze", "truth.json", "detections.json", "--json", "a.json", "--html", "a.html"], REPORT, "report"),
    (
        "calibrate",
        ["calibrate", "truth.json", "detections.json", "--out", "cal.json", "--html", "c.html"],
        REPORT,
        "report",
    ),
    ("compare", ["compare", "--help"], REPORT | {"cli"}, "report"),
    ("list losses", ["list", "losses"], REPORT | {"cli"}, "train"),
    ("detectors", BUILD.format("fcos", ""), DETECTORS, "detectors"),
    ("PAA", BUILD.format("paa", ""), DETECTORS, "detectors"),
    ("timm", BUILD.format("fcos", TIMM).replace("nano", "full"), {"backbones", "all"}, "backbones detectors"),
    ("DETR", BUILD.format("detr", ""), {"transformers", "all"}, "transformers detectors"),
    ("data", "import concordet.data", DETECTORS, "train"),
    ("engine", "from concordet.engine import train", EVERYTHING, "train"),
    ("load", "import concordet; concordet.load", EVERYTHING, "train"),
    ("study", "import concordet.study", MEASURES, "train"),
    ("list detectors", ["list", "detectors"], EVERYTHING, "train"),
    ("train", [*TRAIN, "--out", "run"], EVERYTHING, "train"),
    ("predict", ["predict", "--help"], EVERYTHING | REPORT | {"cli"}, "train"),
    ("export", ["export", "run", "--out", "run.onnx"], {"export", "all"}, "export"),
    ("ONNX", EXPORT, {"export", "all"}, "export"),
    ("video", VIDEO, {"video", "all"}, "video train"),
    ("supervision", SUPERVISION, {"supervision"}, "supervision train"),
    ("wandb", [*TRAIN, "--out", "wandb", "--logger", "wandb"], {"wandb"}, "wandb train"),
    ("mlflow", [*TRAIN, "--out", "mlflow", "--logger", "mlflow"], {"mlflow"}, "mlflow train"),
    ("Ray", RAY, {"ray"}, "ray train"),
]


def write_files() -> None:
    """A ground truth and detections, for the commands that read files."""
    images = [{"id": i, "width": 100, "height": 100, "file_name": f"{i}.png"} for i in range(1, 9)]
    boxes = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": [10, 10, 20 + i, 20], "area": 400 + 20 * i, "iscrowd": 0}
        for i in range(1, 9)
    ]
    truth = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "minus – sign −"}]}
    detections = [
        {"image_id": i, "category_id": 1, "bbox": [11, 10, 22, 20 + i], "score": round(i / 9, 3)} for i in range(1, 9)
    ]
    Path("truth.json").write_text(json.dumps(truth), encoding="utf-8")
    Path("detections.json").write_text(json.dumps(detections), encoding="utf-8")


def run(action: str | list[str]) -> tuple[int, str]:
    """Exit status and errors of a program, run here to import torch once, or of a command, run in a pipe.

    The pipe's encoding has no minus sign and no dash, like those of old locales.
    """
    if isinstance(action, str):
        try:
            exec(compile(action, "<feature>", "exec"), {"__name__": "feature"})
        except Exception:
            return 1, traceback.format_exc().strip()
        return 0, ""
    settings = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": "", "WANDB_MODE": "offline"}
    words = [sys.executable, "-m", "concordet", *action]
    done = subprocess.run(words, capture_output=True, text=True, env=settings, check=False)
    return done.returncode, done.stderr.strip()


def main(extra: str) -> int:
    """Runs every feature, for an extra that adds to ``train`` only what it adds; the last line printed counts them."""
    features = FEATURES
    if extra in ADDED_TO_TRAIN:
        features = [f for f in FEATURES if f[0] == "train" or ("train" in f[2]) != (extra in f[2])]
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_files()
        for name, action, extras, named in features:
            status, errors = run(action)
            last = (errors.splitlines() or [""])[-1]
            if extra in extras:
                good = status == 0
            else:
                fixes = tuple(f"install it with: pip install 'concordet[{one}]'" for one in named.split())
                good = status == 1 and last.endswith(fixes)
                good = good and (isinstance(action, str) or "Traceback" not in errors)
            print(f"{'ok  ' if good else 'FAIL'} {name}: {status} {last}", flush=True)
            if not good:
                faults.append(name)
                print(errors)
        os.chdir("/")
    version = importlib.metadata.version("concordet")
    print(f"{len(features) - len(faults)} features as promised by concordet {version}, {len(faults)} not")
    return min(len(faults), 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
