"""What a new user types, and what stood in the way of it once: each row has a test here or in the file it names."""

import json
import re
import shutil
import signal
from pathlib import Path

import pytest
from PIL import Image

from concordet.cli import main
from concordet.data.digits.dataset import DigitScenes

from ..data.forms import voc_one_folder

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def photographs(root, number=12):
    """Labeled photographs in one folder, as labeling programs leave them."""
    root.mkdir(parents=True)
    scenes = DigitScenes("train", number, size=96, classes=["3", "7"])
    truth = scenes.ground_truth()
    for index in range(number):
        scenes.load_image(index).resize((384, 288)).save(root / f"{index}.jpg")
        objects = "".join(
            f"<object><name>{scenes.class_names[row['category_id'] - 1]}</name><bndbox>"
            f"<xmin>{4 * x + 1:.0f}</xmin><ymin>{3 * y + 1:.0f}</ymin>"
            f"<xmax>{4 * (x + w):.0f}</xmax><ymax>{3 * (y + h):.0f}</ymax></bndbox></object>"
            for row in truth["annotations"]
            if row["image_id"] == index
            for x, y, w, h in [row["bbox"]]
        )
        (root / f"{index}.xml").write_text(
            f"<annotation><filename>{index}.jpg</filename><size><width>384</width><height>288</height></size>"
            f"{objects}</annotation>"
        )
    return root


def commands_of_the_readme():
    section = README[README.index("## Train a detector") :]
    return re.findall(
        r"^    concordet (.*?)(?:\s+#.*)?$", section[: section.index("\n`photos` is")], flags=re.MULTILINE
    )


@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_three_commands_from_photographs_to_pictures(quick, tmp_path, monkeypatch, capsys):
    """The commands of the README as they are; the quick version trains one update and draws all boxes."""
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path / "photos")
    (tmp_path / "new_photos").mkdir()
    shutil.copy(tmp_path / "photos" / "0.jpg", tmp_path / "new_photos" / "new.jpg")
    commands = commands_of_the_readme()
    assert [words.split()[0] for words in commands] == ["data", "train", "predict"]
    more = {"train": ["--optim.steps", "1", "--data.batch_size", "2"], "predict": ["--threshold", "0"]}
    for words in commands:
        assert main([*words.split(), *(more.get(words.split()[0], []) if quick else [])]) == 0
    printed = capsys.readouterr()
    assert "preset small_photos (12 images, most about 384 x 288 pixels" in printed.err
    assert "no validation split: 2 images are held out" in printed.err
    assert (tmp_path / "photos.html").read_text().count("data:image/jpeg") == 12
    with Image.open(tmp_path / "drawn" / "new.png") as drawn, Image.open("new_photos/new.jpg") as photograph:
        assert drawn.size == photograph.size
        assert drawn.convert("RGB").tobytes() != photograph.convert("RGB").tobytes()


def test_the_end_of_training_names_page_checkpoint_and_next_command(tmp_path, capsys):
    root = voc_one_folder(tmp_path / "pets")
    words = ["--image_size", "64", "--optim.steps", "1", "--data.batch_size", "2", "--out", str(tmp_path / "run")]
    assert main(["train", str(root), *words]) == 0
    out = capsys.readouterr().out
    named = dict(
        line.split(": ", 1) for line in out.splitlines() if line.startswith(("page: ", "checkpoint: ", "next: "))
    )
    assert "<html" in Path(named["page"]).read_text(encoding="utf-8")
    assert Path(named["checkpoint"]).is_file()
    command = (
        named["next"].removeprefix("concordet ").replace("PHOTOS", str(root)).replace("pictures", str(tmp_path / "p"))
    )
    assert main(command.split()) == 0
    assert len(list((tmp_path / "p").iterdir())) == 5


# --- the README -------------------------------------------------------------------------------------------------------


def test_the_readme_begins_with_what_it_is_and_a_picture():
    assert README.index("**concordet makes") < README.index("docs/images/") < README.index("## Installation")
    assert README.index("## Installation") < README.index("make demo")
    assert README.index("pip install") < README.index("make demo")


def test_the_readme_says_what_there_is_no_result_of():
    assert "There are no COCO results at full size and no trained weights" in " ".join(README.split())


def test_the_readme_explains_its_metrics_and_leaves_the_rest_out():
    assert "AP of several seeds" in README
    for name in ("s / iteration", "beta_img |", "AIC |", "oLRP |", "oLRP ↓"):
        assert name not in README


def test_the_readme_names_checkpoints_in_one_way_and_prediction_in_python():
    assert "best.ckpt" not in README
    assert "concordet.load(" in README
    for name in ("YOLO", "Roboflow", "concordet list losses", "docs/data.md"):
        assert name in README


@pytest.mark.parametrize(
    "sentence",
    [
        "You have a training code",
        "takes a loss whole",
        "needs torch alone",
        "gives each box a score and a place",
        "cure this",
        "has the same on arrays",
        "costs no parameter",
        "its AIC says nothing",
        "Names add up",
        "in models that you already have",
        "says what AP the same boxes would have",
        "the auxiliary heads that couplings replace",
        "is done again",
        "may be given anew",
    ],
)
def test_sentences_that_made_a_reader_stumble_are_gone(sentence):
    for text in (README, (ROOT / "docs" / "training.md").read_text(encoding="utf-8")):
        assert sentence not in " ".join(text.split())


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ({"images": 1, "objects": 1, "classes": 1}, "1 image, 1 object, 1 class"),
        (
            {"images": 2, "objects": 0, "degenerate_boxes_dropped": 1, "images_without_objects": 1},
            "2 images, 0 objects, 1 degenerate box dropped, 1 image without objects",
        ),
    ],
)
def test_one_is_singular(counts, text):
    from concordet.data import describe

    assert describe(counts) == text


# --- getting data in --------------------------------------------------------------------------------------------------


def test_digits_are_not_trained_on_by_mistake(tmp_path, capsys):
    assert main(["train", "--size", "nano", "--out", str(tmp_path / "run")]) == 2
    assert "the data must be named, got none" in capsys.readouterr().err
    assert main(["train", "--data.root", str(tmp_path), "--out", str(tmp_path / "run")]) == 2
    assert "the data must be named" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--loss", "ranksort"], "did you mean rank_sort?"),
        (["--loss", "rank-sort"], "did you mean rank_sort?"),
        (["--loss", "focal+concordence"], "did you mean concordance?"),
        (["--detector", "atts"], "did you mean atss?"),
    ],
)
def test_near_misses_are_named(words, sentence, tmp_path, capsys):
    root = str(voc_one_folder(tmp_path / "pets"))
    assert main(["train", root, *words, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert sentence in error
    assert "unexpected" not in error


def test_nano_detectors_take_no_weights_of_full_size_networks(tmp_path, capsys, monkeypatch):
    def download(*args, **kwargs):
        raise AssertionError("nothing is downloaded for a network that cannot take it")

    monkeypatch.setattr("torchvision.models.WeightsEnum.get_state_dict", download)
    root = str(voc_one_folder(tmp_path / "pets"))
    words = ["--size", "nano", "--weights", "ResNet50_Weights.IMAGENET1K_V1", "--out", str(tmp_path / "run")]
    assert main(["train", root, *words]) == 2
    assert "weights must be a checkpoint of the same detector where size is nano" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", [["--image_size", "64"], ["--image_size", "48", "64"], ["--image_size", "[48, 64]"]])
def test_image_sizes_as_people_write_them(words, tmp_path, capsys):
    root = str(voc_one_folder(tmp_path / "pets"))
    assert main(["train", root, *words, "--print_config"]) == 0
    assert re.search(r"image_size: ?(64|\n- 48\n- 64)", capsys.readouterr().out)


def test_a_wrong_folder_is_one_plain_sentence(tmp_path, capsys):
    assert main(["train", str(tmp_path / "none"), "--out", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert "must be a folder or an annotation file" in error
    assert "FileNotFoundError" not in error


# --- watching and interrupting ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """Lines of a run that is evaluated in the second of three epochs and at its end."""
    import contextlib
    import io

    folder = tmp_path_factory.mktemp("watched")
    root = voc_one_folder(folder / "pets")
    words = ["--image_size", "64", "--data.batch_size", "2", "--optim.epochs", "3", "--val_every", "2"]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert main(["train", str(root), *words, "--out", str(folder / "run")]) == 0
    return folder / "run", out.getvalue(), err.getvalue()


def test_lines_have_epochs_updates_loss_and_ap_when_it_was_measured(watched):
    _, out, err = watched
    lines = [line for line in err.splitlines() if ": epoch " in line]
    assert [re.search(r"epoch (\d)/3, update (\d+)/(\d+), loss [\d.]+", line)[1] for line in lines] == ["1", "2", "3"]
    assert ["AP" in line for line in lines] == [False, True, True]
    assert ["left" in line for line in lines] == [True, True, False]
    assert not re.search(r"AP 0\.\d\d\d", err + out)


def test_best_is_never_worse_than_last(watched, tmp_path):
    run, _, _ = watched
    values = {}
    for name in ("best", "last"):
        out = tmp_path / name
        words = ["--checkpoint", name, "--out", str(out), "--workers", "0", "--accelerator", "cpu", "-q"]
        assert main(["evaluate", str(run), *words]) == 0
        values[name] = json.loads((out / "evaluation.json").read_text())["metrics"]["AP"]
    assert values["best"] >= values["last"]


def test_a_checkpoint_is_evaluated_like_a_run(watched, tmp_path, capsys):
    run, _, _ = watched
    words = ["--out", str(tmp_path / "out"), "--workers", "0", "--accelerator", "cpu"]
    assert main(["evaluate", str(run / "checkpoints" / "best.ckpt"), *words]) == 0


def test_resuming_says_where_it_goes_on(watched, tmp_path, capsys):
    copied = tmp_path / "run"
    shutil.copytree(watched[0], copied)
    assert main(["train", "--resume", str(copied)]) == 0
    assert f"{copied}: all 6 updates are done" in capsys.readouterr().err


def test_more_epochs_are_another_run_from_the_weights_of_this_one(watched, tmp_path, capsys):
    assert main(["train", "--resume", str(watched[0]), "--optim.epochs", "4"]) == 2
    error = capsys.readouterr().err
    assert f"optim.epochs must be 3, with which the run in {watched[0]} was started, got 4" in error
    assert f"start another run from its weights with --out NEW --weights {watched[0]}" in error


def test_work_on_images_is_counted_where_there_is_no_bar(capsys, monkeypatch):
    from concordet.engine.evaluation import progress

    monkeypatch.setattr("concordet.engine.evaluation.seconds_between_lines", lambda: 0.0)
    monkeypatch.setattr("concordet.engine.evaluation.shows_bars", lambda: False)
    assert list(progress("abc", "detecting")) == ["a", "b", "c"]
    lines = capsys.readouterr().err.splitlines()
    assert [line.rpartition(",")[0] for line in lines] == [f"detecting: {done} of 3" for done in range(3)]
    assert all(line.endswith(" left") for line in lines)


def test_prediction_says_from_which_score_it_draws(watched, tmp_path, capsys):
    image = str(tmp_path / "new.png")
    Image.new("RGB", (64, 48)).save(image)
    for more, words in (
        ([], "above the threshold of their class"),
        (["--threshold", "1"], "with a score of at least 1"),
    ):
        assert main(["predict", str(watched[0]), image, "--draw", str(tmp_path / "drawn"), *more]) == 0
        out = capsys.readouterr().out
        assert "in 1 image, " in out
        assert re.search(rf"\d+ detections? drawn {words}", out)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_have_the_status_of_a_shell(number, monkeypatch, capsys):
    import os

    monkeypatch.setattr("concordet.cli.commands.list.run", lambda words: os.kill(os.getpid(), number))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in background jobs
    try:
        assert main(["list"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "stopped" in capsys.readouterr().err


# --- own code ---------------------------------------------------------------------------------------------------------


def test_a_wrapped_model_is_answered_with_what_to_do():
    import torch
    from torchvision.models.detection import fcos_resnet50_fpn

    from concordet.detectors import install

    model = torch.nn.DataParallel(fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3))
    with pytest.raises(ValueError, match="module"):
        install(model, "rank_sort")


def test_the_guide_to_existing_models_names_the_package_of_the_trainer():
    guide = " ".join((ROOT / "docs" / "install.md").read_text(encoding="utf-8").split())
    assert "the `Trainer` also needs the package `accelerate`" in guide


def test_bool_labels_are_labels():
    import torch

    from concordet.losses.functional import ap_loss

    logits, labels = torch.tensor([2.0, 1.0, 0.5]), torch.tensor([False, True, False])
    assert ap_loss(logits, labels) == ap_loss(logits, labels.long())


def test_qualities_of_positives_only_and_out_of_range_are_refused():
    import torch

    from concordet.losses.functional import rank_sort_loss

    logits, labels = torch.tensor([2.0, 1.0, 0.5]), torch.tensor([0, 1, 0])
    with pytest.raises(ValueError, match="one value per logit"):
        rank_sort_loss(logits, labels, torch.tensor([0.5]))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        rank_sort_loss(logits, labels, torch.tensor([0.0, 3.0, 0.0]))
