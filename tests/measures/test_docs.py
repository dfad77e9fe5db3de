from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "measures.md"


def test_examples_of_the_page_run_and_print_what_it_says(capsys):
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    sentence, metrics, *rest = capsys.readouterr().out.splitlines()
    assert f"# {sentence}\n" in PAGE.read_text(encoding="utf-8")
    assert f"# {metrics}\n" in PAGE.read_text(encoding="utf-8")
    assert rest[:2] == ["0.5", "{7: 0.5}"]
    assert float(rest[2]) == pytest.approx(1 / 6)
    curve, ends = "[0.9, 0.7, 0.6, 0.5] [0.25, 0.5, 0.75, 1.0]", "[0.601, 0.601]"
    assert rest[3:] == ["0.3", "0.312", "0.3333333333333333", "0.08", curve, ends, "0.151"]


def test_every_metric_of_the_report_is_explained():
    from concordet.measures import analyze

    report = analyze({"annotations": []}, []).to_dict()
    text = PAGE.read_text(encoding="utf-8")
    counts = {"n_images", "n_objects", "n_detections", "n_kept", "per_class", "calibration"}
    for name in report:
        stem = re.sub(r"_(upper|lower)$", "", name)
        assert name in counts or f"`{name}`" in text or f"`{stem}`" in text, name
