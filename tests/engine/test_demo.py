"""The demonstration, made small: twice, without losing the first."""

from pathlib import Path

from concordet.engine.config import load_config
from concordet.engine.demo import DEMO, DemoSettings, demo, summary

from ..trained import snapshot, tiny


def test_a_second_demonstration_leaves_the_first(tmp_path):
    settings = DemoSettings(config=tiny(val_every=0, optim_epochs=1))
    folders, page = demo(tmp_path / "demo", settings=settings)
    assert [f.name for f in folders] == list(DEMO.losses)
    text = page.read_text()
    assert "<html" in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    runs = summary(folders, page)["runs"]
    assert [run["loss"] for run in runs] == list(DEMO.losses.values())
    wanted = {"AP", "AP50", "AP75", "AP90", "beta_img", "beta_cls", "oLRP", "AIC", "seconds_per_iteration"}
    assert wanted <= set(runs[0]["metrics"])
    before = snapshot(tmp_path / "demo")
    _, second = demo(tmp_path / "demo", settings=DemoSettings(losses={"default": "default"}, config=settings.config))
    assert second.parent.name == "demo-2"
    assert snapshot(tmp_path / "demo") == before


def test_the_runs_differ_only_in_the_loss():
    """Same seed, same data; the first is the detector's default loss."""
    first, *others = DEMO.losses.values()
    assert first == "default"
    assert others
    assert DEMO.config.data.name == "digits"


def test_the_example_is_the_demonstration():
    example = Path(__file__).parents[2] / "examples" / "digits.yaml"
    assert load_config(example) == DEMO.config
