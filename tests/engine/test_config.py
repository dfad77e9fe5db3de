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
        ({"detectr": "fcos"}, "detectr is no setting of a run; it has accelerator"),
        ({"optim": {"rate": 1}}, r"optim\.rate is no setting"),
    ],
)
def test_unknown_settings_are_refused(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        from_dict(values)


@pytest.mark.parametrize(
    ("optim", "sentence"),
    [
        (OptimConfig(lr=0), r"optim\.lr must be above 0, not 0"),
        (OptimConfig(lr=float("nan")), r"optim\.lr must be above 0, not nan"),
        (OptimConfig(ema=1), r"optim\.ema is a decay in \[0, 1\), not 1"),
        (OptimConfig(epochs=0), r"optim\.epochs must be at least 1, not 0"),
        (OptimConfig(steps=0), r"optim\.steps must be at least 1, not 0"),
        (OptimConfig(schedule="step", epochs=9, milestones=[8, 11]), r"within the 9 of the run, not \[8, 11\]"),
        (OptimConfig(schedule="step", milestones=[8, 6]), r"in ascending order"),
        (OptimConfig(schedule="cosine", milestones=[8]), r"belong to the schedule step, not to cosine"),
        (OptimConfig(drop=0), r"optim\.drop is a factor above 0 and below 1, not 0"),
    ],
)
def test_values_out_of_range_are_refused(optim, sentence):
    with pytest.raises(UsageError, match=sentence):
        TrainConfig(optim=optim)


@pytest.mark.parametrize(("text", "sentence"), [("a: [", "is not valid YAML"), ("5", "holds no settings")])
def test_a_file_that_is_no_configuration(tmp_path, text, sentence):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        load_config(tmp_path / "config.yaml")


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(ValueError, match=r"is no run folder: it has no config\.yaml"):
        load_config(tmp_path / "config.yaml")


def test_to_dict_is_plain():
    assert to_dict(tiny())["image_size"] == [64, 64]
