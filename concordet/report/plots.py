"""Plots as inline SVG with CSS variables for colors, so that they follow the page's light, dark and print styles."""

from __future__ import annotations

import html
import io
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline

SLOTS: Final = 8
"""Number of colors for runs in the style sheet; further runs share them and differ by dashes."""

DASHES: Final[tuple[Any, ...]] = ("-", (0, (5, 1.6)), (0, (1.4, 1.2)), (0, (6, 1.5, 1.4, 1.5)))

# Placeholder colors: matplotlib accepts no CSS variables, so _svg replaces these in the text.
INK, MUTED, GRID, SURFACE = "#0a0001", "#0a0002", "#0a0003", "#0a0004"
_VARIABLES: Final = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)", SURFACE: "var(--card)"} | {
    f"#0b000{slot}": f"var(--run-{slot})" for slot in range(SLOTS)
}
_SETTINGS: Final[dict[Any, Any]] = {
    "svg.hashsalt": "concordet",  # the same plot gives the same text
    "svg.fonttype": "none",  # text stays text: the page's font, searchable, read aloud
    "font.size": 9,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 5,
    "ytick.major.pad": 5,
    "axes.unicode_minus": True,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True)
class Line:
    """One line of a plot: its name in the description, the index of its color, and its points."""

    name: str
    slot: int
    x: Sequence[float]
    y: Sequence[float]


def slot_color(slot: int) -> str:
    """Placeholder of a run's color; runs beyond :data:`SLOTS` share colors."""
    return f"#0b000{slot % SLOTS}"


def line_plot(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str = "",
    y_from_zero: bool = False,
    markers: bool = False,
    bands: Sequence[tuple[Line, Line]] = (),
    mark: float | None = None,
    points: Sequence[tuple[float, float]] = (),
    shares: bool = False,
    x_end: float | None = None,
) -> Markup:
    """Lines with common axes, drawn over bands between pairs of further lines.

    Args:
        lines: Lines in drawing order.
        title: Beginning of the description for screen readers.
        x_label, y_label: Labels of the axes.
        y_from_zero: Whether the y axis starts at 0.
        markers: Whether to mark every point.
        bands: Pairs of lines to fill between.
        mark: x of a dashed vertical line.
        points: Points to mark with a ring.
        shares: Whether y is a fraction, so that its axis ends at 0 and 1.
        x_end: End of the x axis, which then starts at 0.
    """
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _figure(shares=shares)
        if mark is not None:
            axes.axvline(mark, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        for low, high in bands:
            axes.fill_between(low.x, low.y, high.y, color=slot_color(low.slot), alpha=0.16, linewidth=0)
        for line in lines:
            axes.plot(
                line.x,
                line.y,
                color=slot_color(line.slot),
                linestyle=DASHES[line.slot % len(DASHES)],
                marker="o" if markers or len(line.x) == 1 else None,
                markersize=3.2,
            )
        for x, y in points:
            axes.plot([x], [y], color=INK, marker="o", markersize=6, markerfacecolor="none", markeredgewidth=1.6)
        if y_from_zero:
            axes.set_ylim(bottom=0)
        axes.margins(x=0.02)
        if shares:
            axes.set_ylim(-0.02, 1.02)
        if x_end is not None:
            axes.set_xlim(-0.02 * x_end, 1.02 * x_end)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.locator_params(nbins=5)
        return _svg(figure, f"{title}: {', '.join(_describe(line) for line in lines)}")


def density_plot(scores: Any, ious: Any, *, slot: int, title: str, bins: int = 32) -> Markup:
    """Two-dimensional histogram of predictions by score and IoU, with the diagonal on which both agree.

    The line is the mean IoU of each score bin with at least five predictions. If all scores are low, as ranking
    losses make them, the axis of scores ends at the highest one.
    """
    scores, ious = np.asarray(scores, float), np.asarray(ious, float)
    top = axis_end(scores)
    counts, x_edges, y_edges = np.histogram2d(scores, ious, bins=bins, range=((0, top), (0, 1)))
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _figure(height=3.3, shares=True)
        levels = np.ceil(6 * np.log1p(counts) / np.log1p(max(counts.max(), 1))).astype(int)
        for level in range(1, 7):
            cells = [
                _cell(x_edges[i], y_edges[j], top / bins, 1 / bins)
                for i, j in zip(*np.nonzero(levels == level), strict=True)
            ]
            if cells:
                outline = Outline.make_compound_path(*cells)
                patch = PathPatch(outline, facecolor=slot_color(slot), alpha=0.06 + 0.155 * level, linewidth=0)
                patch.set_gid(f"density{level}")
                axes.add_patch(patch)
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        middles, means = _mean_by_bin(scores / top, ious)
        axes.plot(np.array(middles) * top, means, color=INK, linewidth=1.6, marker="o", markersize=2.6)
        _unit_square(axes, top)
        axes.set_xlabel("score")
        axes.set_ylabel("IoU with the object")
        return _svg(figure, f"{title}: IoU against score of {len(scores)} predictions, with the diagonal")


def calibration_plot(bins: Sequence[tuple[float, float, int]], *, slot: int, title: str) -> Markup:
    """Mean IoU of detections by score, from bins of (mean score, mean IoU, number), with the diagonal.

    If all scores are low, the axis of scores ends at the highest one.
    """
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _figure(height=3.3, shares=True)
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        if bins:
            x, y, sizes = (np.array(column, float) for column in zip(*bins, strict=True))
            axes.vlines(x, x, y, color=slot_color(slot), alpha=0.4, linewidth=2)
            axes.plot(x, y, color=slot_color(slot), linewidth=1.2)
            axes.scatter(x, y, s=14 + 70 * sizes / sizes.max(), color=slot_color(slot), zorder=3)
        _unit_square(axes, axis_end([score for score, *_ in bins]))
        axes.set_xlabel("score")
        axes.set_ylabel("mean IoU")
        return _svg(figure, f"{title}: mean IoU of detections by score, with the diagonal")


def forest_plot(
    rows: Sequence[tuple[str, float, float, float]], *, significant: Sequence[bool], title: str, x_label: str
) -> Markup:
    """Differences with their intervals, one row each from top to bottom, and a line at 0.

    Args:
        rows: Name, value, lower and upper end of each.
        significant: Whether each is; its point is filled, those of the others are hollow.
        title: Beginning of the description for screen readers.
        x_label: Label of the axis.
    """
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _figure(height=0.7 + 0.28 * len(rows))
        axes.axvline(0, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        heights = np.arange(len(rows))[::-1]
        for height, (_, value, low, high), filled in zip(heights, rows, significant, strict=True):
            axes.plot([low, high], [height, height], color=slot_color(0), linewidth=1.6)
            inner = slot_color(0) if filled else SURFACE
            axes.plot([value], [height], color=slot_color(0), marker="o", markersize=5, markerfacecolor=inner)
        axes.set_yticks(heights, [name for name, *_ in rows])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.grid(False, axis="y")
        axes.set_xlabel(x_label)
        described = ", ".join(
            f"{name} {value:+.1f} ({low:+.1f} to {high:+.1f}{', significant' * filled})"
            for (name, value, low, high), filled in zip(rows, significant, strict=True)
        )
        return _svg(figure, f"{title}: {described}")


def thin(x: Sequence[float], y: Sequence[float], *, points: int = 120) -> tuple[list[float], list[float]]:
    """Means of consecutive chunks of points, so that long noisy curves become short and readable.

    Example:
        >>> thin([0, 1, 2, 3], [1.0, 3.0, 5.0, 7.0], points=2)
        ([0.5, 2.5], [2.0, 6.0])
    """
    if len(x) <= points:
        return list(x), list(y)
    pieces = np.array_split(np.arange(len(x)), points)
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    return [float(xs[p].mean()) for p in pieces], [float(ys[p].mean()) for p in pieces]


def _figure(*, height: float = 2.6, shares: bool = False) -> tuple[Figure, Axes]:
    # Tick labels of fractions have a known width; a layout that measures labels takes as long as drawing.
    if shares:
        figure = Figure(figsize=(3.9, height))
        figure.subplots_adjust(left=0.14, right=0.97, bottom=0.45 / height, top=1 - 0.1 / height)
    else:
        figure = Figure(figsize=(3.9, height), layout="constrained")
    return figure, figure.subplots()


def axis_end(scores: Sequence[float] | np.ndarray) -> float:
    """End of an axis of scores: 1, or a round number above the highest score where that is below a half.

    Example:
        >>> axis_end([0.2, 0.9]), axis_end([0.01, 0.031])
        (1.0, 0.035)
    """
    highest = float(max(scores)) if len(scores) else 1.0
    if not 0 < highest < 0.5:
        return 1.0
    unit = 10.0 ** np.floor(np.log10(highest))
    return float(np.ceil(highest / unit * 2) / 2 * unit)


def _unit_square(axes: Axes, width: float = 1.0) -> None:
    axes.set_xlim(0, width)
    axes.set_ylim(0, 1)
    axes.set_xticks(np.linspace(0, width, 6))
    axes.set_yticks(np.linspace(0, 1, 6))


def _cell(x: float, y: float, width: float, height: float) -> Outline:
    return Outline([(x, y), (x + width, y), (x + width, y + height), (x, y + height), (x, y)], closed=True)


def _mean_by_bin(
    x: np.ndarray, y: np.ndarray, *, bins: int = 16, min_count: int = 5
) -> tuple[list[float], list[float]]:
    index = np.clip((x * bins).astype(int), 0, bins - 1)
    full = [b for b in range(bins) if (index == b).sum() >= min_count]
    return [float(x[index == b].mean()) for b in full], [float(y[index == b].mean()) for b in full]


def _describe(line: Line) -> str:
    return f"{line.name} from {line.y[0]:.3g} to {line.y[-1]:.3g}" if len(line.y) else f"{line.name} empty"


def _svg(figure: Figure, description: str) -> Markup:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"| transform="rotate\(-0 [^"]*\)"', "", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    # Coordinates need no more than hundredths of a point; only tags are rounded, as text between them is labels.
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d+\.\d\d)\d+", r"\1", tag[0]), text)
    text = re.sub(r'id="density\d"', 'class="density"', text)
    used = set(re.findall(r"#([\w.-]+)", text))
    # identifiers must be unique in the page
    prefix = f"p{zlib.crc32((description + text).encode('utf-8', 'replace')):08x}-"
    text = re.sub(r' id="([^"]*)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r"(url\(#|href=\"#)", rf"\1{prefix}", text)
    text = re.sub(r"\s*\n\s*", " ", text)
    for stand_in, variable in _VARIABLES.items():
        text = text.replace(stand_in, variable)
    width, height = (72 * inches for inches in figure.get_size_inches())
    opening = (
        f'<svg class="plot" role="img" aria-label="{html.escape(description)}" viewBox="0 0 {width:g} {height:g}">'
    )
    return Markup(re.sub(r"<svg[^>]*>", lambda _: opening, text, count=1).strip())
