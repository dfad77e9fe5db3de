"""Checkpoints carry what rebuilds the detector, run no code, and say what is wrong with them."""

import shutil

import pytest
import torch

from concordet.engine import load_detector
from concordet.engine.checkpoint import checkpoint_path, is_ours, read_checkpoint, run_of
from concordet.engine.predictor import load

from ..trained import CLASSES


def test_a_checkpoint_says_what_it_is(finished):
    content = torch.load(finished / "checkpoints" / "best.ckpt", weights_only=True)
    meta = content["concordet"]
    assert meta["class_names"] == CLASSES
    assert meta["category_ids"] == [1, 2]
    assert (meta["detector"], meta["size"], meta["loss"], meta["num_classes"]) == ("fcos", "nano", "default", 2)
    assert meta["options"] == {"image_size": [64, 64]}


def test_a_detector_is_restored(finished):
    model, meta = load_detector(finished)
    assert not model.training
    image = torch.rand(3, 48, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        (first,) = model([image])
        again, _ = load_detector(finished / "checkpoints" / "last.ckpt")
        (second,) = again([image])
    assert torch.equal(first["boxes"], second["boxes"])
    assert first["labels"].min() >= 1
    assert first["labels"].max() <= meta["num_classes"]


def broken(tmp_path, name, content):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    return path


class Evil:
    def __reduce__(self):
        return (print, ("code in a checkpoint ran",))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "must be a whole file that `concordet train` wrote"),
        (b"hello, I am a text file", "must be a whole file that `concordet train` wrote"),
        ({"model": {"weight": torch.zeros(1)}}, "must be one that `concordet train` wrote, got .* of another program"),
        ([1, 2], "must be one that `concordet train` wrote, got .* of another program"),
        ({"state_dict": Evil()}, "must be a whole file that `concordet train` wrote"),
    ],
    ids=["empty", "text", "somebody else's", "list", "code"],
)
def test_other_files_are_refused(tmp_path, capsys, content, sentence):
    path = broken(tmp_path, "some.ckpt", content)
    with pytest.raises(ValueError, match=sentence):
        load_detector(path)
    assert not is_ours(path)
    assert "ran" not in capsys.readouterr().out


def test_a_missing_file_and_a_folder_without_one(tmp_path):
    with pytest.raises(ValueError, match=r"checkpoint must be a file, got .*none\.ckpt"):
        load_detector(tmp_path / "none.ckpt")
    with pytest.raises(ValueError, match=r"checkpoint must be a file, got .*checkpoints/last\.ckpt"):
        load_detector(tmp_path)
    assert checkpoint_path(tmp_path, "best") == tmp_path / "checkpoints" / "best.ckpt"


def test_a_cut_checkpoint(finished, tmp_path):
    whole = (finished / "checkpoints" / "last.ckpt").read_bytes()
    with pytest.raises(ValueError, match="must be a whole file"):
        read_checkpoint(broken(tmp_path, "cut.ckpt", whole[: len(whole) // 2]))


def test_weights_that_do_not_fit_what_the_file_says(finished, tmp_path):
    content = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    content["concordet"] |= {"num_classes": 5, "class_names": list("abcde"), "category_ids": [1, 2, 3, 4, 5]}
    with pytest.raises(ValueError, match=r"are not those of this detector: \d+ tensors differ, the first is head"):
        load_detector(broken(tmp_path, "other.ckpt", content))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(finished, tmp_path, value):
    content = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    name = next(iter(content["ema_state_dict"]))
    content["ema_state_dict"][name].view(-1)[0] = value
    with pytest.raises(ValueError, match=rf"spoilt\.ckpt must be finite, got others in {name.removeprefix('model.')}"):
        load_detector(broken(tmp_path, "spoilt.ckpt", content))


@pytest.mark.parametrize(("key", "value"), [("num_classes", None), ("class_names", "3 7"), ("options", [])])
def test_descriptions_of_wrong_types(finished, tmp_path, key, value):
    content = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    content["concordet"][key] = value
    with pytest.raises(ValueError, match=rf"other\.ckpt must hold {key}"):
        load_detector(broken(tmp_path, "other.ckpt", content))


def test_a_file_beside_a_copied_checkpoint_is_not_its_configuration(finished, tmp_path):
    copy = tmp_path / "models" / "mine.ckpt"
    copy.parent.mkdir()
    shutil.copy(finished / "checkpoints" / "last.ckpt", copy)
    for folder in (copy.parent, tmp_path):
        (folder / "config.yaml").write_text("server: 1\n")
    assert load(copy, accelerator="cpu").class_names
    assert run_of(copy) is None
    assert run_of(finished / "checkpoints" / "last.ckpt") == run_of(finished).absolute()
