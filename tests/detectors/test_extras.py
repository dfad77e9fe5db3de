"""Without the packages of an extra, one sentence says which extra to install."""

import subprocess
import sys

import pytest

from concordet.errors import requires

BUILD = 'from concordet.detectors import build_detector; build_detector({!r}, num_classes=3, size="{}", backbone={})'


def run(code, *blocked):
    """The last line of the errors of a program that cannot import these packages."""
    program = f"import sys; sys.modules.update(dict.fromkeys({blocked}))\n{code}"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    return result.returncode, (result.stderr.splitlines() or [""])[-1]


@pytest.mark.parametrize(
    ("code", "blocked", "message"),
    [
        ("import concordet.detectors", "torchvision", "concordet.detectors needs the package torchvision; {detectors}"),
        (
            "from concordet.detectors import install",
            "scipy",
            "concordet.detectors needs the package scipy; {detectors}",
        ),
        ("import concordet.measures", "numpy", "concordet.measures needs the package numpy; {measures}"),
        (
            "from concordet.report import write_analysis",
            "jinja2",
            "concordet.report.write_analysis needs the package jinja2; {report}",
        ),
        (
            "from concordet.engine import train",
            "lightning",
            "concordet.engine.train needs the package lightning; {train}",
        ),
        ("import concordet.data", "PIL", "concordet.data needs the package pillow; {train}"),
        (BUILD.format("fcos", "full", "'timm/a'"), "timm", "backbone 'a' needs the package timm; {backbones}"),
        (
            BUILD.format("detr", "nano", None),
            "transformers",
            "this detector needs the package transformers (5.5 or newer); {transformers}",
        ),
        (
            BUILD.format("co_detr", "nano", None),
            "transformers",
            "this detector needs the package transformers (5.5 or newer); {transformers}",
        ),
    ],
)
def test_a_missing_package_is_named_with_its_extra(code, blocked, message):
    extras = ("detectors", "backbones", "transformers", "measures", "report", "train")
    fixes = {extra: f"install it with: pip install 'concordet[{extra}]'" for extra in extras}
    status, line = run(code, blocked)
    assert status == 1
    assert line.split(": ", 1)[1] == message.format(**fixes)


def test_detectors_need_neither_timm_nor_transformers():
    assert run(BUILD.format("fcos", "nano", None), "timm", "transformers", "sklearn") == (0, "")


@pytest.mark.parametrize(
    ("words", "blocked", "extra"),
    [
        (["analyze", "--help"], "jsonargparse", "report"),
        (["train", "--help"], "jsonargparse", "train"),
        (["train", "--data.name", "digits", "--out", "/nowhere/run"], "lightning", "train"),
        (["list", "detectors"], "torchvision", "train"),  # the extra detectors has no command line
    ],
)
def test_commands_name_the_extra_too(words, blocked, extra):
    code = f"from concordet.cli import main; sys.exit(main({words}))"
    status, line = run(code, blocked)
    assert status == 1
    assert line.startswith("concordet: error: ")
    assert line.endswith(f"needs the package {blocked}; install it with: pip install 'concordet[{extra}]'")


def test_other_modules_that_are_missing_are_not_ours():
    with pytest.raises(ModuleNotFoundError, match="no_such_module") as error, requires("a plugin", "train"):
        raise ModuleNotFoundError("No module named 'no_such_module'", name="no_such_module")
    assert type(error.value) is ModuleNotFoundError


@pytest.mark.parametrize(
    ("names", "blocked"),
    [
        (
            ["concordet.measures", "concordet.calibration", "concordet.study"],
            ("torchvision", "sklearn", "PIL", "matplotlib", "jinja2", "lightning", "jsonargparse", "yaml", "rich"),
        ),
        (
            ["concordet.report", "concordet.cli.commands.analyze", "concordet.cli.commands.compare"],
            ("torchvision", "sklearn", "transformers", "timm", "lightning", "tensorboard"),
        ),
    ],
    ids=["measures", "report"],
)
def test_packages_import_with_the_extra_that_they_need(names, blocked):
    assert run(f"import {', '.join(names)}", *blocked) == (0, "")


def test_losses_need_torch_only():
    code = (
        "import torch\nfrom concordet.losses import build_criterion\n"
        "from concordet.losses.functional import soft_rank\n"
        "build_criterion('focal+spearman(0.1)')\n"
        "assert soft_rank(torch.tensor([5.0, 1.0, 2.0]), strength=1.0).tolist() == [3, 1, 2]"
    )
    blocked = ("scipy", "numpy", "torchvision", "sklearn", "PIL", "matplotlib", "lightning", "jsonargparse", "yaml")
    assert run(code, *blocked)[0] == 0
