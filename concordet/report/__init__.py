"""HTML reports and pictures: compare runs, show an analysis, draw detections.

The metrics (:data:`METRICS`, :func:`comparison_rows`) need the extra ``measures``; matplotlib and Jinja2 (``pip install
"concordet[report]"``) are imported when a page is written, Pillow when something is drawn.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from concordet.errors import requires

with requires("concordet.report", "report"):
    from concordet.measures.metrics import MASK_METRICS, METRICS, Metric, metrics_of
    from concordet.measures.runs import comparison_rows

if TYPE_CHECKING:
    from concordet.report.analysis import write_analysis
    from concordet.report.calibration import write_calibration
    from concordet.report.comparison import write_comparison
    from concordet.report.draw import draw_detections
    from concordet.report.study import write_study

__all__ = [
    "MASK_METRICS",
    "METRICS",
    "Metric",
    "comparison_rows",
    "draw_detections",
    "metrics_of",
    "write_analysis",
    "write_calibration",
    "write_comparison",
    "write_study",
]

_MODULES = {
    "write_analysis": "analysis",
    "write_calibration": "calibration",
    "write_comparison": "comparison",
    "draw_detections": "draw",
    "write_study": "study",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with requires(f"concordet.report.{name}", "report"):
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
