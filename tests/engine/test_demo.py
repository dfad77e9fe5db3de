"""The demonstration, made small: twice, without losing the first."""

from pathlib import Path

from concordet.engine.config import load_config
from concordet.engine.demo import DEMO, UNCALIBRATED, DemoSettings, demo, summary, write_uncalibrated
from concordet.engine.evaluation import evaluate_run
from concordet.files import read_json

from ..trained import snapshot, tiny


def test_a_second_demonstration_leaves_the_first(tmp_path):
    settings = DemoSettings(config=tiny(val_every=0, optim_epochs=1))
    folders, page = demo(tmp_path / "demo", settings=settings)
    assert [f.name for f in folders] == ["default", UNCALIBRATED, "coupled"]
    text = page.read_text()
    assert "<html" in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    runs = summary(folders, page)["runs"]
    assert [run["loss"] for run in runs] == ["default", *DEMO.losses.values()]
    wanted = {"AP", "AP50", "AP75", "AP90", "beta_img", "beta_cls", "oLRP", "AIC", "seconds_per_iteration"}
    assert wanted <= set(runs[0]["metrics"])
    before = snapshot(tmp_path / "demo")
    _, second = demo(tmp_path / "demo", settings=DemoSettings(losses={"default": "default"}, config=settings.config))
    assert second.parent.name == "demo-2"
    assert snapshot(tmp_path / "demo") == before


def test_the_uncalibrated_run_is_an_evaluation_of_raw_scores(finished, tmp_path):
    out = write_uncalibrated(finished, tmp_path / "raw")
    evaluate_run(finished, out=tmp_path / "expected", raw_scores=True, accelerator="cpu")
    got, expected = (read_json(folder / "evaluation.json") for folder in (out, tmp_path / "expected"))
    assert got["metrics"] == expected["metrics"]
    assert got["per_class"] == expected["per_class"]
    assert got["scores"] == expected["scores"] == "not calibrated"
    assert got["metrics"]["AP"] == read_json(finished / "evaluation.json")["metrics"]["AP"]


def test_the_runs_differ_only_in_the_loss():
    """Same seed, same data; the first is the detector's default loss."""
    first, *others = DEMO.losses.values()
    assert first == "default"
    assert others
    assert DEMO.config.data.name == "digits"


def test_the_example_is_the_demonstration():
    example = Path(__file__).parents[2] / "examples" / "digits.yaml"
    assert load_config(example) == DEMO.config
