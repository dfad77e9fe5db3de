"""A user's file registers a loss and a coupling, and every command knows them."""

import json
import shutil
import sys

import pytest
import torch

from concordet.cli import main
from concordet.engine import UsageError, load_config
from concordet.engine.plugins import absolute, import_plugins

from ..processes import run as run_command
from ..trained import tiny, words

PLUGIN = '''
"""Squared error of the scores, and a coupling."""

import torch

from concordet.losses import register_coupling, register_loss


@register_loss("plugin_squares")
def plugin_squares(assigned, ious, *, factor=1.0):
    targets = torch.zeros_like(assigned.logits)
    targets[assigned.positive, assigned.labels[assigned.positive]] = 1
    return factor * (assigned.logits.sigmoid() - targets).square().sum() / assigned.normalizer


@register_coupling("plugin_gap", weight=0.5)
def plugin_gap(assigned, ious):
    return (assigned.scores() - ious).abs().sum() / assigned.normalizer
'''


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    path = tmp_path_factory.mktemp("plugin") / "my_losses.py"
    path.write_text(PLUGIN)
    return path


@pytest.fixture(scope="module")
def run(plugin):
    """A run of one update with the user's loss, a built-in coupling and the user's."""
    out = plugin.parent / "run"
    loss = "plugin_squares(factor=2)+concordance(0.3)+plugin_gap"
    config = tiny(loss=loss, plugins=[plugin.name], optim_steps=1, val_every=0, evaluate=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(plugin.parent)
        assert main(["train", *words(config), "--out", str(out)]) == 0
    return out


def test_train_has_the_users_terms(run, plugin):
    header = (run / "metrics.csv").read_text().splitlines()[0]
    for term in ("train/concordance", "train/plugin_gap", "train/box"):
        assert term in header
    assert load_config(run / "config.yaml").plugins == [str(plugin)]
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 1


@pytest.mark.parametrize("command", ["evaluate", "predict", "resume"])
def test_another_process_imports_the_plugin_again(run, command, tmp_path, plugin):
    words = {
        "evaluate": ["evaluate", str(run), "--workers", "0", "--out", str(tmp_path / "evaluation")],
        "predict": ["predict", str(run), str(tmp_path), "--out", str(tmp_path / "results.json")],
        "resume": ["train", "--resume", str(run)],
    }[command]
    from PIL import Image

    Image.new("RGB", (64, 64)).save(tmp_path / "image.png")
    status, _, said = run_command(*words)
    assert status == 0, said


def test_a_plugin_that_has_moved_can_be_named(run, tmp_path, plugin, monkeypatch):
    from PIL import Image

    from concordet.losses.criteria import registry

    for table in (registry.BASES, registry.COUPLINGS):
        for name in [name for name in table if name.startswith("plugin_")]:
            monkeypatch.delitem(table, name)
    Image.new("RGB", (64, 64)).save(tmp_path / "image.png")
    moved = tmp_path / "moved.py"
    moved.write_text(PLUGIN)
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    config = (copied / "config.yaml").read_text()
    (copied / "config.yaml").write_text(config.replace(str(plugin), str(tmp_path / "gone.py")))
    predict = ["predict", str(copied), str(tmp_path / "image.png"), "--out", str(tmp_path / "found.json")]
    for command in (["evaluate", str(copied)], predict):
        assert main(command) == 2
        assert main([*command, "--plugins", str(moved)]) == 0


def test_a_lone_checkpoint_needs_the_option(run, tmp_path, plugin):
    """A checkpoint never runs code: the plugin is named on the command line."""
    from PIL import Image

    (tmp_path / "lone").mkdir()
    lone = tmp_path / "lone" / "copy.ckpt"
    lone.write_bytes((run / "checkpoints" / "last.ckpt").read_bytes())
    Image.new("RGB", (64, 64)).save(tmp_path / "image.png")
    command = ["predict", str(lone), str(tmp_path / "image.png"), "--out", "-"]
    status, _, said = run_command(*command, cwd=tmp_path)
    assert status == 1
    assert "plugin_squares" in said
    status, results, said = run_command(*command, "--plugins", str(plugin), cwd=tmp_path)
    assert status == 0, said
    assert isinstance(json.loads(results), list)


def test_files_and_modules(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plugin_module.py").write_text("loaded = True")
    import_plugins(["plugin_module"])
    assert sys.modules["plugin_module"].loaded
    assert absolute(["plugin_module", "plugin_module.py"]) == ["plugin_module", str(tmp_path / "plugin_module.py")]
    import_plugins(None)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("none.py", UsageError, r"got .*none\.py, which does not exist"),
        ("no_such_module", UsageError, "got no_such_module, which does not exist; write FILE.py for a file"),
        ("broken.py", ValueError, r"got broken\.py: NameError: name 'nothing' is not defined"),
    ],
)
def test_plugins_that_cannot_be_imported(tmp_path, monkeypatch, name, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("nothing")
    with pytest.raises(error, match=message):
        import_plugins([name])
