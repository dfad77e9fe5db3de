"""Prediction: thresholds per class, class-agnostic NMS, videos, and results in other programs' forms."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import concordet
from concordet.calibration import ClassCalibration
from concordet.calibration.maps import Isotonic
from concordet.cli import main
from concordet.engine.prediction import predict
from concordet.engine.video.frames import read_video, written_frames


@pytest.fixture(scope="module")
def predictor(finished):
    return concordet.load(finished, accelerator="cpu")


@pytest.fixture(scope="module")
def samples(finished):
    return sorted((finished / "samples").iterdir())


@pytest.fixture(scope="module")
def video(samples, tmp_path_factory):
    """Seven frames, each of them one of the samples."""
    pytest.importorskip("cv2")
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    with written_frames(path, rate=10.0, size=(64, 64)) as write:
        for index in range(7):
            write(Image.open(samples[index % len(samples)]))
    return path


def test_a_threshold_of_numpy_is_named_like_a_plain_one(finished, samples):
    threshold = np.float32(0.25)
    plain, other = (predict(finished, samples[:1], threshold=t, accelerator="cpu") for t in (0.25, threshold))
    assert plain.drawn_from == other.drawn_from == "with a score of at least 0.25"
    assert plain.results == other.results


def test_calibrated_scores_keep_the_order_across_images(predictor, samples):
    """As average precision ranks them; in float32, close scores of different images may change places."""
    step = Isotonic((0.0, 1e-4, 0.99, 1.0), (0.0, 0.25, 0.25, 1.0))  # nearly flat for most scores
    classes = {i: ClassCalibration(str(i), step) for i in predictor.category_ids}
    calibrator = replace(predictor.calibrator, classes=classes)
    twin = copy.copy(predictor)
    twin.calibrator = None
    raw = twin(samples)
    twin.calibrator = calibrator
    before, labels = (torch.cat([d[name] for d in raw]) for name in ("scores", "labels"))
    after = torch.cat([d["scores"] for d in twin(samples)])
    after_labels = torch.cat([d["labels"] for d in twin(samples)])
    for label in labels.unique():
        own = before[labels == label].unique()
        assert len(after[after_labels == label].unique()) == len(own)
        assert len(own) > 100


def test_thresholds_per_class(predictor, samples):
    (everything,) = predictor(samples[0])
    middle = float(everything["scores"].median())
    (some,) = predictor(samples[0], threshold={"3": middle})
    kept = (everything["labels"] == 2) | (everything["scores"] >= middle)
    assert torch.equal(some["scores"], everything["scores"][kept])
    assert torch.equal(some["labels"], everything["labels"][kept])
    shown = predictor.visible(everything, {"3": 1.0})
    lowest = torch.tensor([1.0, float(predictor.thresholds[1])])
    assert torch.equal(shown["scores"], everything["scores"][everything["scores"] >= lowest[everything["labels"] - 1]])
    with pytest.raises(ValueError, match="class of a threshold must be one of 3, 7, got 8"):
        predictor(samples[0], threshold={"8": 0.5})


def overlapping(boxes, first, second):
    """IoU of two boxes, from the definition."""
    a, b = boxes[first].tolist(), boxes[second].tolist()
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def test_class_agnostic_nms_keeps_one_of_overlapping_boxes(finished, predictor, samples):
    agnostic = concordet.load(finished, accelerator="cpu", class_agnostic=True)
    (everything,), (kept,) = predictor(samples[0]), agnostic(samples[0])
    chosen: list[int] = []
    for index in range(len(everything["scores"])):  # greedily, in the order of scores
        if all(overlapping(everything["boxes"], other, index) <= 0.5 for other in chosen):
            chosen.append(index)
    assert 0 < len(chosen) < len(everything["scores"])
    assert torch.equal(kept["boxes"], everything["boxes"][chosen])
    assert torch.equal(kept["labels"], everything["labels"][chosen])


def test_plain_dicts_and_supervision(predictor, samples):
    (detection,) = predictor(samples[0])
    rows = predictor.to_dicts(detection)
    assert json.loads(json.dumps(rows)) == rows
    assert [row["class"] for row in rows] == [predictor.class_names[label - 1] for label in detection["labels"]]
    assert torch.tensor([row["box"] for row in rows]).equal(detection["boxes"])
    supervision = pytest.importorskip("supervision")
    converted = predictor.to_supervision(detection)
    assert isinstance(converted, supervision.Detections)
    assert np.array_equal(converted.xyxy, detection["boxes"].numpy())
    assert converted.confidence.tolist() == np.float32([row["score"] for row in rows]).tolist()
    assert (converted.class_id + 1).tolist() == detection["labels"].tolist()
    assert converted.data["class_name"].tolist() == [row["class"] for row in rows]
    none = {name: value[:0] for name, value in detection.items()}
    assert len(predictor.to_supervision(none)) == len(predictor.to_dicts(none)) == 0


def test_missing_packages_are_one_sentence(predictor, samples, monkeypatch, tmp_path):
    from importlib import import_module

    def missing(name):
        if name in ("supervision", "cv2"):
            raise ModuleNotFoundError(name=name)
        return import_module(name)

    for module in ("concordet.engine.detections", "concordet.engine.video.frames"):
        monkeypatch.setattr(f"{module}.import_module", missing)
    (detection,) = predictor(samples[0])
    with pytest.raises(ValueError, match=r"supervision; install it with: pip install 'concordet\[supervision\]'"):
        predictor.to_supervision(detection)
    (tmp_path / "clip.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match=r"opencv-python-headless; install it with: pip install 'concordet\[video\]'"):
        read_video(tmp_path / "clip.mp4")


def test_a_video_gives_results_of_its_frames_and_a_drawn_video(finished, video, tmp_path):
    from concordet.engine.video.frames import read_frames

    done = predict(finished, [video], out=tmp_path / "out.json", draw=tmp_path / "drawn", accelerator="cpu", every=3)
    assert done.images == 3
    rows = json.loads((tmp_path / "out.json").read_text())
    assert {(row["image_id"], row["frame"], row["file_name"]) for row in rows} == {
        (1, 0, "clip.mp4"),
        (2, 3, "clip.mp4"),
        (3, 6, "clip.mp4"),
    }
    (drawn,) = done.pictures
    assert drawn == tmp_path / "drawn" / "clip.mp4"
    before, after = read_video(video), read_video(drawn)
    assert (after.frames, after.size, after.rate) == (3, before.size, pytest.approx(before.rate / 3, abs=1e-3))
    assert len(list(read_frames(video))) == before.frames == 7


def test_folders_of_images_and_videos_and_a_broken_one(finished, samples, video, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.png").write_bytes(samples[0].read_bytes())
    (folder / "b.mp4").write_bytes(b"no video")
    (folder / "c.jpg").write_bytes(b"no image")
    (folder / "d.mp4").write_bytes(video.read_bytes())
    out = tmp_path / "out.json"
    assert main(["predict", str(finished), str(folder), "--out", str(out), "--accelerator", "cpu"]) == 0
    printed = capsys.readouterr()
    assert "in 8 images" in printed.out
    skipped = [line for line in printed.err.splitlines() if line.startswith("skipped: ")]
    assert len(skipped) == 2
    assert "b.mp4: the video cannot be decoded" in skipped[0]
    assert "c.jpg: the image cannot be decoded" in skipped[1]
    ids = {row["image_id"]: row["file_name"] for row in json.loads(out.read_text())}
    assert ids[1] == "a.png"
    assert set(ids.values()) == {"a.png", "d.mp4"}


def test_pictures_of_two_runs_never_mix(finished, samples, tmp_path):
    for name in ("drawn", "drawn-2", "drawn-3"):
        done = predict(finished, samples[:2], draw=tmp_path / "drawn", accelerator="cpu")
        assert {path.parent.name for path in done.pictures} == {name}
        assert len(list((tmp_path / name).iterdir())) == 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--threshold", "1.5"], "threshold must be between 0 and 1, got 1.5"),
        (["--threshold", "3=0.5,7=high"], "threshold must be between 0 and 1, got high"),
        (["--threshold", "cow=0.5"], "class of a threshold must be one of 3, 7, got cow"),
        (["--every", "0"], "every must be at least 1, got 0"),
    ],
)
def test_mistakes(words, sentence, finished, samples, tmp_path, capsys):
    assert main(["predict", str(finished), str(samples[0]), "--out", str(tmp_path / "out.json"), *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_lines_and_letters_follow_the_size_of_the_image(predictor, samples):
    """A picture ten times as large has lines ten times as wide."""
    detection = {
        "boxes": torch.tensor([[16.0, 24, 48, 56]]),
        "labels": torch.tensor([1]),
        "scores": torch.tensor([0.9]),
    }
    small = Image.new("RGB", (160, 160))
    large = Image.new("RGB", (1600, 1600))
    widths = []
    for image, factor in ((small, 1), (large, 10)):
        pixels = np.asarray(predictor.draw(image, detection | {"boxes": detection["boxes"] * factor}, threshold=0.0))
        row = pixels[int(52 * factor)].any(1)  # below the label: the left and the right side of the box
        widths.append(int(row.sum()))
    assert widths[1] >= 8 * widths[0]
