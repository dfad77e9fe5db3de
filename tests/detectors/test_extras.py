"""Without the packages of an extra, one sentence says which extra to install."""

import subprocess
import sys

import pytest

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
    extras = ("detectors", "backbones", "transformers")
    fixes = {extra: f"install it with: pip install 'concordet[{extra}]'" for extra in extras}
    status, line = run(code, blocked)
    assert status == 1
    assert line.split(": ", 1)[1] == message.format(**fixes)


def test_detectors_need_neither_timm_nor_transformers():
    assert run(BUILD.format("fcos", "nano", None), "timm", "transformers", "sklearn") == (0, "")
