"""The README's Python runs as it stands."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_python_runs(block):
    exec(compile(block, str(README), "exec"), {})


def test_names_stand_in_the_tables():
    from concordet.detectors import list_detectors
    from concordet.losses import list_losses

    text = README.read_text()
    for name in (*list_detectors(), *list_losses()):
        assert f"`{name}`" in text, name
