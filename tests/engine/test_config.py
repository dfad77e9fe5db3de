"""Settings: typed, checked, the same after writing and reading."""

import pytest

from concordet.engine.config import OptimConfig, TrainConfig, flat, from_dict, load_config, save_config, to_dict
from concordet.errors import UsageError

from ..trained import tiny


def test_a_saved_configuration_comes_back(tmp_path):
    config = tiny(loss="focal+concordance(0.3)", optim_steps=7, seed=3)
    save_config(tmp_path / "config.yaml", config)
    assert load_config(tmp_path / "config.yaml") == config
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_settings_by_dotted_name():
    settings = flat(tiny())
    assert settings["optim.lr"] == 1e-3
    assert settings["data.train_options"]["length"] == 12
    assert settings["image_size"] == [64, 64]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"detectr": "fcos"}, r"setting must be one of .*, got detectr; did you mean detector\?"),
        ({"optim": 3}, r"optim must be a mapping of settings, got 3"),
        ({"optim": {"lr": "fast"}}, r"optim\.lr must be a number, got 'fast'; see concordet train --help"),
        ({"optim": {"lr": float("nan")}}, r"optim\.lr must be a number, got nan"),
        ({"seed": 2**64}, "seed must be a whole number, got 1844674"),
        (
            {"options": {"num_classes": 3}},
            "options must be those of the detector, got num_classes; the data decides it",
        ),
        ({"options": {"size": "nano"}}, "options must be those of the detector, got size; write size beside options"),
        ({"seed": True}, "seed must be a whole number, got True"),
        ({"image_size": [64]}, r"image_size must be a whole number, two whole numbers or null, got \[64\]"),
        ({"size": ["nano"]}, r"size must be full or nano, got \['nano'\]"),
        ({"data": {"train_options": [1]}}, r"data\.train_options must be a mapping, got \[1\]"),
        ({"plugins": [None]}, r"plugins must be a list of texts, a text or null, got \[None\]"),
        ({"optim": {"milestones": [None]}}, r"optim\.milestones must be a list of numbers or null, got \[None\]"),
        (
            {"optim": {"rate": 1}},
            r"got optim\.rate; choose one of accumulate, backbone_lr_factor",
        ),
    ],
)
def test_unknown_settings_are_refused(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        from_dict(values)


@pytest.mark.parametrize(
    ("optim", "sentence"),
    [
        (OptimConfig(lr=0), r"optim\.lr must be above 0, got 0"),
        (OptimConfig(lr=float("nan")), r"optim\.lr must be above 0, got nan"),
        (OptimConfig(ema=1), r"optim\.ema must be at least 0 and below 1, got 1"),
        (OptimConfig(epochs=0), r"optim\.epochs must be at least 1, got 0"),
        (OptimConfig(steps=0), r"optim\.steps must be at least 1, got 0"),
        (OptimConfig(schedule="step", epochs=9, milestones=[8, 11]), r"within the 9 of the run, got \[8, 11\]"),
        (OptimConfig(schedule="step", milestones=[8, 6]), r"must be ascending epochs within the 12"),
        (
            OptimConfig(schedule="cosine", milestones=[8]),
            r"optim\.schedule must be step with optim\.milestones, got cosine",
        ),
        (OptimConfig(drop=0), r"optim\.drop must be above 0 and below 1, got 0"),
    ],
)
def test_values_out_of_range_are_refused(optim, sentence):
    with pytest.raises(UsageError, match=sentence):
        TrainConfig(optim=optim)


@pytest.mark.parametrize(("text", "sentence"), [("a: [", "is not valid YAML"), ("5", "must hold settings")])
def test_a_file_that_is_no_configuration(tmp_path, text, sentence):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        load_config(tmp_path / "config.yaml")


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(ValueError, match=r"run must be a folder with config\.yaml, got .* without it"):
        load_config(tmp_path / "config.yaml")


def test_to_dict_is_plain():
    assert to_dict(tiny())["image_size"] == [64, 64]


def test_one_number_is_an_image_size(tmp_path):
    save_config(tmp_path / "config.yaml", TrainConfig(image_size=320))
    assert load_config(tmp_path / "config.yaml").image_size == 320


@pytest.mark.parametrize("size", [0, -5, (64, 10**6)])
def test_impossible_image_sizes_are_refused(size):
    with pytest.raises(UsageError, match="image_size must be between 1 and 16384 pixels, got"):
        TrainConfig(image_size=size)


def test_settings_of_older_versions_are_read(tmp_path):
    save_config(tmp_path / "config.yaml", tiny(optim_backbone_lr_factor=0.1))
    text = (tmp_path / "config.yaml").read_text()
    assert "backbone_lr_factor: 0.1" in text
    (tmp_path / "config.yaml").write_text(text.replace("backbone_lr_factor", "backbone_lr"))
    assert load_config(tmp_path / "config.yaml").optim.backbone_lr_factor == 0.1


def test_nested_aliases_are_refused(tmp_path):
    """Ten levels of ten are ten thousand million values in 400 bytes."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="must hold at most 100000 values"):
        load_config(tmp_path / "config.yaml")
