"""Exported files give the detections of the detector that they were made from."""

import json
import shutil
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
import torch

import concordet
from concordet.calibration import Calibrator, ClassCalibration
from concordet.calibration.maps import Identity, Isotonic, Linear, Platt, Temperature
from concordet.cli import main
from concordet.detectors import list_detectors
from concordet.detectors.parts.postprocess import PostProcess, suppress
from concordet.errors import UsageError
from concordet.export import FORMATS, export_detector, load_exported, postprocess
from concordet.export.calibration import Tables, calibrated
from concordet.export.candidates import positive
from concordet.export.graph import Calibration, input_size
from concordet.export.suppression import IN_GRAPH, detections
from tests.detections import assert_same_detections
from tests.export.models import assert_parity, images, spread

NAMES = ["a", "b", "c"]
FAST = [("ssd", "torchscript"), ("faster_rcnn", "torchscript"), ("yolact", "torchscript"), ("detr", "pt2")]
FAST += [("deformable_detr", "torchscript")]


@pytest.mark.parametrize(("name", "kind"), FAST)
def test_a_file_detects_what_the_detector_detects(name, kind, tmp_path):
    model = spread(name)
    path = tmp_path / f"model{FORMATS[kind]}"
    export_detector(model, path, class_names=NAMES)
    assert_parity(path, model, images(4))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("name", "kind"), list(product(list_detectors(), FORMATS)))
def test_every_detector_in_every_format(name, kind, tmp_path):
    model = spread(name)
    path = tmp_path / f"model{FORMATS[kind]}"
    export_detector(model, path, class_names=NAMES)
    # six stages of random weights enlarge rounding, in TorchScript too
    assert_parity(path, model, images(4), atol=1e-4 if name == "sparse_rcnn" else 1e-5)


def test_several_images_at_once(tmp_path):
    model = spread("fcos")
    export_detector(model, tmp_path / "model.torchscript", class_names=NAMES)
    module = torch.jit.load(str(tmp_path / "model.torchscript"))
    both = torch.rand(2, 3, 90, 120, generator=torch.Generator().manual_seed(1))
    boxes, labels, scores = module(both)
    for i, expected in enumerate(model(list(both))):
        count = len(expected["scores"])
        assert count
        assert (labels[i, count:] == 0).all()
        assert (scores[i, count:] == 0).all()
        torch.testing.assert_close(boxes[i, :count], expected["boxes"])
        torch.testing.assert_close(scores[i, :count], expected["scores"])


MAPS = [
    Isotonic((0.1, 0.4, 0.7), (0.2, 0.2, 0.9)),
    Isotonic((0.3,), (0.5,)),
    Linear(0.5, 0.1),
    Platt(1.3, -0.4),
    Temperature(2.0),
    Identity(),
]


@pytest.mark.parametrize("where", ["numpy", "graph"])
def test_calibration_tables_are_the_calibrator(where):
    calibrator = Calibrator("mixed", {i: ClassCalibration(str(i), m) for i, m in enumerate(MAPS, 10)}, Linear(0.3, 0.3))
    ids = [*range(10, 16), 99]  # the last one has no map of its own
    tables = Tables.of(calibrator.to_dict(), ids)
    scores = np.concatenate([[0.0, 1.0, 0.1, 0.4, 0.7, 1e-30], np.random.default_rng(0).random(50)])
    for label, ident in enumerate(ids):
        expected = calibrator.calibrate(scores, np.full(len(scores), ident))
        classes = np.full(len(scores), label)
        if where == "numpy":
            got = calibrated(tables, scores, classes)
        else:
            got = Calibration(tables)(torch.from_numpy(scores)[None], torch.from_numpy(classes)[None])[0].numpy()
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


def test_a_steep_map_is_exact_given_the_scores_of_the_file(tmp_path):
    model = spread("ssd")
    steep = Isotonic((0.50, 0.52, 0.521, 0.9), (0.1, 0.2, 0.7, 0.9))  # a slope of 500
    calibrator = Calibrator("isotonic", {i: ClassCalibration(str(i), steep) for i in (1, 2, 3)}, steep)
    files = [tmp_path / "raw.torchscript", tmp_path / "calibrated.torchscript"]
    export_detector(model, files[0], class_names=NAMES)
    export_detector(model, files[1], class_names=NAMES, calibrator=calibrator)
    for image in images(3):
        (raw,), (got,) = (load_exported(path)([image]) for path in files)
        expected = calibrator.apply(raw, labels={i: i for i in (1, 2, 3)})
        assert_same_detections(got, expected, atol=1e-6)


def test_proposals_keep_their_order_in_onnx_runtime(tmp_path):
    import onnxruntime

    class Positive(torch.nn.Module):
        def forward(self, logits):
            return positive(logits)

    logits = torch.linspace(-60, 60, 4001)[torch.randperm(4001, generator=torch.Generator().manual_seed(0))]
    path = tmp_path / "positive.onnx"
    torch.onnx.export(Positive(), (logits,), str(path), input_names=["logits"], dynamo=True, verbose=False)
    (values,) = onnxruntime.InferenceSession(str(path)).run(None, {"logits": logits.numpy()})
    assert (values > 0).all()
    assert (np.diff(values[logits.argsort()]) > 0).all()


@pytest.mark.parametrize(
    "settings",
    [{}, {"class_wise": False}, {"nms": "fast"}, {"score_voting": True}, {"nms": "soft"}, {"nms": "soft_linear"}],
    ids=str,
)
def test_suppression_is_that_of_the_detectors(settings):
    generator = torch.Generator().manual_seed(0)
    options = PostProcess(detections_per_image=30, **settings)
    corners = torch.rand(2, 200, 2, generator=generator) * 40
    boxes = torch.cat([corners, corners + 5 + 30 * torch.rand(2, 200, 2, generator=generator)], 2)
    scores = torch.rand(2, 200, generator=generator)
    labels = torch.randint(0, 3, (2, 200), generator=generator)
    scores[:, 150:] = -1.0  # no candidates
    expected = [suppress(b[:150], s[:150], c[:150], options)[0] for b, s, c in zip(boxes, scores, labels, strict=True)]
    meta = {"postprocess": vars(options)}
    found = [
        {k: torch.from_numpy(v) for k, v in postprocess(b.numpy(), n.numpy(), s.numpy(), meta).items()}
        for b, n, s in zip(boxes, torch.where(scores < 0, 0, labels + 1), scores, strict=True)
    ]
    if options.nms in IN_GRAPH:
        for operator in (True, False):
            own, values, classes = detections(boxes, scores, labels, options, 3, operator=operator)
            found += [
                {"boxes": b[v >= 0], "labels": c[v >= 0] + 1, "scores": v[v >= 0]}
                for b, v, c in zip(own, values, classes, strict=True)
            ]
    for i, got in enumerate(found):
        for key, value in expected[i % 2].items():
            torch.testing.assert_close(got[key], value)


def test_candidates_become_detections_in_numpy(tmp_path):
    model = spread("fcos", nms="soft")
    calibrator = Calibrator("linear", {i: ClassCalibration(str(i), Linear(0.5 * i / 3, 0.1)) for i in (1, 2, 3)})
    meta = export_detector(model, tmp_path / "model.torchscript", class_names=NAMES, calibrator=calibrator)
    assert meta["outputs"] == "candidates"
    for image in images(3):
        (expected,) = concordet.Predictor(model, NAMES, [1, 2, 3], calibrator=calibrator)([image])
        (got,) = load_exported(tmp_path / "model.torchscript")([image])
        for key, value in expected.items():
            torch.testing.assert_close(got[key], value.to(got[key].dtype), rtol=1e-4, atol=1e-4)


def test_the_postprocessor_needs_numpy_only():
    code = "from concordet.export import postprocess; import sys; print(*{m.split('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "numpy" in loaded
    assert not {"torch", "scipy", "onnx", "sklearn"} & set(loaded)


def test_sizes_at_the_input_are_torchvisions():
    from concordet.detectors import Resize

    transform = Resize.within(240, 320).transform().eval()
    for height, width in product(range(30, 700, 41), repeat=2):
        batch, _ = transform([torch.empty(3, height, width, device="meta")])
        assert input_size(height, width, 240, 320, False) == tuple(batch.image_sizes[0])


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    assert main(["export", str(finished), "--out", str(path)]) == 0
    return path


class TestCommand:
    def test_scores_are_those_of_the_run(self, exported, finished):
        run, file = concordet.load(finished, accelerator="cpu"), concordet.load(exported)
        assert file.calibrated
        assert file.class_names == run.class_names
        torch.testing.assert_close(file.thresholds, run.thresholds)
        for sample in sorted((finished / "samples").iterdir()):
            (expected,), (got,) = run(sample), file(sample)
            assert len(expected["scores"])
            # steep pieces of the calibrator enlarge rounding
            torch.testing.assert_close(got["scores"], expected["scores"].float(), rtol=0, atol=1e-4)

    def test_predict_takes_the_file(self, exported, finished, tmp_path, capsys):
        sample = str(min((finished / "samples").iterdir()))
        assert main(["predict", str(exported), sample, "--out", str(tmp_path / "found.json")]) == 0
        assert "calibrated scores" in capsys.readouterr().out
        assert json.loads((tmp_path / "found.json").read_text())

    def test_metadata_travels_in_the_file(self, exported):
        import onnx

        meta = json.loads({p.key: p.value for p in onnx.load(exported).metadata_props}["concordet"])
        assert meta["class_names"] == ["3", "7"]
        assert meta["image_size"] == [64, 64]
        assert len(meta["thresholds"]) == 2
        assert Calibrator.from_dict(meta["calibrator"])

    def test_a_checkpoint_and_a_format_are_enough(self, finished, tmp_path, capsys):
        copied = tmp_path / "run"
        shutil.copytree(finished, copied)
        assert main(["export", str(copied), "--checkpoint", "best", "--format", "torchscript"]) == 0
        assert f"next: concordet predict {copied / 'detector.torchscript'} PHOTOS" in capsys.readouterr().out
        best = concordet.load(copied, checkpoint="best", accelerator="cpu")
        file = concordet.load(copied / "detector.torchscript")
        sample = min((finished / "samples").iterdir())
        assert_same_detections(file(sample)[0], best(sample)[0])

    @pytest.mark.parametrize("accelerator", ["gpu", "tpu"])
    def test_files_run_on_the_cpu(self, exported, accelerator):
        with pytest.raises(ValueError, match="accelerator must be"):
            concordet.load(exported, accelerator=accelerator)

    @pytest.mark.parametrize("kind", ["torchscript", "pt2"])
    def test_a_full_disk_is_a_sentence(self, kind, finished, tmp_path):
        """PyTorch would end the process, or leave a temporary file."""
        code = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
from concordet.cli import main
raise SystemExit(main(["export", {str(finished)!r}, "--out", {str(tmp_path / ("model." + kind))!r}]))
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 1, done.stderr
        assert done.stderr.splitlines()[-1].startswith("concordet: error: ")
        assert "File too large" in done.stderr
        assert not list(tmp_path.iterdir())

    def test_an_existing_file_is_kept(self, exported, finished, capsys):
        before = exported.read_bytes()
        assert main(["export", str(finished), "--out", str(exported)]) == 1
        assert "--out must be a new file, got" in capsys.readouterr().err
        assert exported.read_bytes() == before

    def test_raw_scores_are_refused_for_a_calibrated_file(self, exported):
        with pytest.raises(ValueError, match="export it with --raw_scores"):
            concordet.load(exported, raw_scores=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "model.bin"], "out must end in .onnx or .torchscript or .pt2, got model.bin"),
        (["--out", "model.onnx", "--format", "onx"], "did you mean onnx?"),
        (["--out", "model.onnx", "--format", "pt2"], "out must end in .pt2, got model.onnx"),
        ([], "an output must be given"),
    ],
)
def test_mistakes_are_sentences(words, message, capsys):
    assert main(["export", "runs/none", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r"pip install 'concordet\[export\]'"):
        export_detector(spread("ssd"), tmp_path / "model.onnx", class_names=NAMES)


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2", "model.torchscript"])
def test_other_files_are_refused(name, tmp_path):
    (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(ValueError, match="model must be a whole"):
        load_exported(tmp_path / name)


def test_an_unknown_end_is_refused():
    with pytest.raises(UsageError, match="out must end in"):
        export_detector(spread("ssd"), "model.bin", class_names=NAMES)
