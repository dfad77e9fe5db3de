"""Tables and figures of the studies that compare all losses, from the results in studies/results/which_loss.

    python -m studies.which_loss                # draws the figures again
    python -m studies.which_loss runs/digits    # first copies the results of the study in runs/digits

The folders of results/which_loss are studies: ``concordet study --out FOLDER`` shows one, and trains what is missing.
"""

from __future__ import annotations

import argparse
import re
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from concordet.benchmark.results import caption
from concordet.benchmark.results import table as markdown_table
from concordet.engine.config import load_config, save_config
from concordet.measures.metrics import BY_KEY
from concordet.study import compare_study, load_study
from concordet.study.grid import Cell
from concordet.study.results import read_result, result_path
from concordet.study.statistics import StandardError
from studies.losses import save, subplots

FOLDER = Path(__file__).parent / "results" / "which_loss"
COMPARED = {
    "digits": ("atss", "retinanet"),
    "digits_box_loss": ("retinanet",),
    "digits_deformable_detr": ("deformable_detr",),
    "bccd": ("atss", "retinanet"),
}
"""The studies with a table per detector, and these detectors."""

DIGITS = ("digits", "digits_deformable_detr")
"""The studies of all losses on the same scenes."""

TUNED = ("learning_rates", "weight_decay", "averaging")
"""The studies that vary one setting, on other scenes and with another seed than the results."""

SHOWN = ("AP50", "AP90", "APs", "APm", "APl", "AP_few", "AP_many", "beta_cls")
"""Metrics in the tables beside AP, where a study has them."""

COUPLED = re.compile(r"(?P<name>.+)\((?P<weight>[\d.]+)\)")


PAPERS = (
    ("rank_sort", "ap", "better"),
    ("rank_sort", "alrp", "better"),
    ("alrp", "ap", "better"),
    ("bucketed_rank_sort", "rank_sort", "equal"),
    ("quality_focal", "focal", "better"),
    ("varifocal", "focal", "better"),
    ("harmonic", "focal", "better"),
    ("distributional_ranking", "focal", "better"),
    ("default+concordance(1)", "default", "better"),
    ("default+pse(1)", "default", "better"),
    ("default+spearman(0.1)", "default", "better"),
)
"""A loss, another one, and what the paper of the first found."""


SAME_AS_DEFAULT = {("deformable_detr", "focal")}
"""Detectors, and losses that are their default under another name and were not trained again."""


@cache
def report(name: str, losses: tuple[str, ...] | None = None) -> dict[str, Any]:
    """The comparison of a study, or of some of its losses with the first of them."""
    study = load_study(FOLDER / name)
    return compare_study(study if losses is None else replace(study, losses=losses))


def trained(name: str) -> list[str]:
    """The detectors whose reference has finished runs."""
    return [g["detector"] for g in report(name)["groups"] if g["losses"][0]["seeds"]]


def group(name: str, detector: str, losses: tuple[str, ...] | None = None) -> list[dict[str, Any]]:
    """The losses of a detector that have finished runs, the reference first, then by AP."""
    (entries,) = (g["losses"] for g in report(name, losses)["groups"] if g["detector"] == detector)
    return [entry for entry in entries if entry["seeds"]]


def difference(entry: dict[str, Any], key: str = "AP", *, interval: bool = True, mark: bool = True) -> str:
    """A difference to the reference, with its interval, as text; bold where it is significant, unless not marked."""
    row = entry["differences"].get(key)
    if row is None:
        return "–"
    metric = BY_KEY[key]
    value, low, high = (format(row[end] * metric.scale, f"+.{metric.decimals}f") for end in ("value", "low", "high"))
    text = f"{value} ({low} to {high})" if interval else value
    return f"**{text}**" if mark and row["verdict"] in ("better", "worse") else text


def spread(entry: dict[str, Any], key: str) -> str:
    """Mean and standard deviation over seeds, as text."""
    values = entry["metrics"].get(key)
    if values is None:
        return "–"
    metric = BY_KEY[key]
    mean = format(values["mean"] * metric.scale, f".{metric.decimals}f")
    return mean if values["std"] is None else f"{mean} ± {values['std'] * metric.scale:.{metric.decimals}f}"


def losses(name: str, detector: str) -> str:
    """All losses of a detector: AP, its difference to the reference, and other metrics."""
    entries = group(name, detector)
    shown = [key for key in SHOWN if any(key in entry["metrics"] for entry in entries)]
    titles = [f"{BY_KEY[key].title} {BY_KEY[key].arrow}" for key in shown]
    head = ["loss", "seeds", "AP ↑", "difference", *titles]
    rows = [
        [
            f"`{entry['loss']}`",
            len(entry["seeds"]),
            spread(entry, "AP"),
            difference(entry) if i else "reference",
            *(spread(entry, key) for key in shown),
        ]
        for i, entry in enumerate(entries)
    ]
    return markdown_table(head, rows)


def summary(studies: tuple[str, ...] = DIGITS, n_best: int = 4) -> str:
    """AP of the reference and of the losses that are best on average, with differences; one column per detector.

    Losses with one seed are left out.
    """
    entries = {d: {e["loss"]: e for e in group(name, d)} for name in studies for d in trained(name)}
    names = load_study(FOLDER / studies[0]).losses
    seeds = {loss: min(len(e[loss]["seeds"]) if loss in e else 0 for e in entries.values()) for loss in names}
    reference, *others = (loss for loss in names if seeds[loss] > 1)
    others.sort(key=lambda loss: -sum(e[loss]["metrics"]["AP"]["mean"] for e in entries.values()))
    rows = [
        [f"`{loss}`", *(f"{spread(e[loss], 'AP')}, {difference(e[loss], interval=False)}" for e in entries.values())]
        for loss in others[:n_best]
    ]
    first = [f"`{reference}`", *(spread(e[reference], "AP") for e in entries.values())]
    return markdown_table(["AP ↑", *entries], [first, *rows])


def measured(name: str, detector: str) -> str:
    """The versions that a study was trained with, and its table of a detector."""
    study = load_study(FOLDER / name)
    cells = [c for c in study.cells() if c.detector == detector and result_path(study, c).is_file()]
    environments = [read_result(study, cell)["environment"] for cell in cells]
    where = caption([{key: str(value) for key, value in e.items()} for e in environments])
    return f"Trained with {where}.\n\n{losses(name, detector)}"


def papers(names: tuple[str, ...] = DIGITS) -> str:
    """Differences in AP between losses that a paper compared, with 95 % intervals, one column per detector."""
    columns = [(name, detector) for name in names for detector in trained(name)]

    def gain(name: str, detector: str, loss: str, other: str) -> str:
        if (detector, other) in SAME_AS_DEFAULT:
            other = "default"
        if not {loss, other} <= set(load_study(FOLDER / name).losses):
            return "–"
        entries = group(name, detector, (other, loss))
        return difference(entries[1], mark=False) if len(entries) == 2 else "–"

    rows = [
        [f"`{loss}`", f"`{other}`", claim, *(gain(*column, loss, other) for column in columns)]
        for loss, other, claim in PAPERS
    ]
    return markdown_table(
        ["loss", "compared with", "its paper", *(detector for _, detector in columns)], rows, text_columns=3
    )


def progress(names: tuple[str, ...] = DIGITS) -> str:
    """Differences in AP to the reference in the middle of the training and at its end, one column per detector."""
    columns = [(name, detector) for name in names for detector in trained(name)]
    middle = {column: _at_half(*column) for column in columns}
    losses = dict.fromkeys(e["loss"] for column in columns for e in group(*column)[1:])

    def text(column: tuple[str, str], loss: str) -> str:
        entry = next((e for e in group(*column) if e["loss"] == loss), None)
        if entry is None:
            return "–"
        end = difference(entry, interval=False, mark=False)
        return f"{100 * (middle[column][loss] - middle[column]['default']):+.1f}, {end}"

    rows = [[f"`{loss}`", *(text(column, loss) for column in columns)] for loss in losses]
    return markdown_table(["loss", *(detector for _, detector in columns)], rows)


def _at_half(name: str, detector: str) -> dict[str, float]:
    """AP of each loss at the evaluation in the middle of the training, mean over seeds."""
    half = {}
    for entry in group(name, detector):
        first, last = entry["curve"][0], entry["curve"][-1]
        assert 2 * first["update"] == last["update"], "a study with two evaluations"
        half[entry["loss"]] = first["mean"]
    return half


def seeds_table(seeds: tuple[int, ...] = (3, 5, 10), losses: tuple[int, ...] = (1, 2, 5, 10, 14)) -> str:
    """The least mean difference that Holm's method sees first, in standard deviations over seeds."""
    rows = [[n, *(f"{StandardError(1 / n, 0.0, n).half_width(0.05 / m):.1f}" for m in losses)] for n in seeds]
    return markdown_table(["seeds", *(f"{m} losses" if m > 1 else "1 loss" for m in losses)], rows)


def weights(name: str = "weights") -> str:
    """Differences in AP of couplings at each weight, by detector, and their mean."""
    detectors = trained(name)
    table: dict[str, dict[str, list[float]]] = {}
    for detector in detectors:
        for entry in group(name, detector)[1:]:
            match = COUPLED.fullmatch(entry["loss"])
            if match and "AP" in entry["differences"]:
                value = 100 * entry["differences"]["AP"]["value"]
                table.setdefault(match["name"], {}).setdefault(match["weight"], []).append(value)
    columns = sorted({w for of_name in table.values() for w in of_name}, key=float)

    def text(values: list[float]) -> str:
        if len(values) < len(detectors):
            return "–"
        each = ", ".join(f"{v:+.1f}" for v in values)
        return f"{sum(values) / len(values):+.1f} ({each})" if len(values) > 1 else each

    rows = [[f"`{loss}`", *(text(of_name.get(w, [])) for w in columns)] for loss, of_name in sorted(table.items())]
    return markdown_table(["coupling", *(f"weight {w}" for w in columns)], rows)


def repeated(name: str = "digits", again: str = "digits_repeated") -> str:
    """AP of runs, and of the same runs when they were trained again."""
    first, second = load_study(FOLDER / name), load_study(FOLDER / again)
    rows = []
    for cell in second.cells():
        before, after = (100 * read_result(study, cell)["metrics"]["AP"] for study in (first, second))
        rows.append([f"`{cell.loss}`", f"{before:.1f}", f"{after:.1f}", f"{after - before:+.1f}"])
    return markdown_table(["AP ↑", "in the tables", "again", "difference"], rows)


def settings(name: str) -> str:
    """AP of each detector and loss at each value of the setting that a study varies."""
    study = load_study(FOLDER / name)
    (setting,) = study.vary
    aps = {
        (g["detector"], e["loss"], g["variant"]): spread(e, "AP") for g in report(name)["groups"] for e in g["losses"]
    }
    columns = [Cell("", "", ((setting, value),), 0).variant for value in study.vary[setting]]
    rows = [
        [detector, f"`{loss}`", *(aps[detector, loss, column] for column in columns)]
        for detector in study.detectors
        for loss in study.losses
    ]
    return markdown_table(["AP ↑", "loss", *(f"`{column}`" for column in columns)], rows, text_columns=2)


def draw(name: str) -> Path:
    """One panel per detector: difference in AP with its interval for each loss."""
    detectors = trained(name)
    entries = {d: [e for e in group(name, d)[1:] if "AP" in e["differences"]] for d in detectors}
    height = 0.9 + 0.27 * max(len(e) for e in entries.values())
    figure, axes = subplots(1, len(detectors), 4.6 * len(detectors), height)
    for axis, detector in zip(axes, detectors, strict=True):
        axis.axvline(0, color="0.5", linewidth=1, linestyle="--")
        for y, entry in enumerate(reversed(entries[detector])):
            row = entry["differences"]["AP"]
            color = {"better": "tab:green", "worse": "tab:red"}.get(row["verdict"], "0.35")
            axis.plot([100 * row["low"], 100 * row["high"]], [y, y], color=color, linewidth=1.6)
            axis.plot([100 * row["value"]], [y], color=color, marker="o", markersize=4.5)
        axis.set_yticks(range(len(entries[detector])), [e["loss"] for e in reversed(entries[detector])], fontsize=8)
        axis.set_title(f"{detector}: AP of default {spread(group(name, detector)[0], 'AP')}", fontsize=9)
        axis.set_xlabel("difference in points of AP", fontsize=8)
    path = FOLDER / f"{name}.svg"
    save(figure, path)
    return path


def copy(folder: Path) -> str:
    """Copies a study's definition and results, without its runs; returns its name."""
    target = FOLDER / folder.name
    (target / "results").mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "study.json", target / "study.json")
    config = load_config(folder / "config.yaml")
    if config.data.path is not None:  # without the folders of this machine
        config = replace(config, data=replace(config.data, path=Path(config.data.path).name))
    save_config(target / "config.yaml", config)
    for path in (folder / "results").glob("*.json"):
        shutil.copy(path, target / "results" / path.name)
    return folder.name


def main() -> None:
    """Copies results if asked, and draws the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", type=Path, nargs="*", help="folders of studies to copy results from")
    for folder in parser.parse_args().studies:
        print(f"copied {copy(folder)}")
    for name, detectors in COMPARED.items():
        if len(detectors) > 1:
            print(f"drawn: {draw(name)}")


if __name__ == "__main__":
    main()
