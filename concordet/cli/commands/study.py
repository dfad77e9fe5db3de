"""``concordet study``."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from concordet.cli.options import Parser
from concordet.errors import UsageError, counted


def parser() -> Parser:
    """The options."""
    options = Parser(
        "study",
        "Trains every combination of detectors, losses and seeds, and reports which loss is better, with intervals.",
        "concordet study photos --losses default rank_sort --seeds 5 --jobs 2 --out studies/x",
        "concordet study --config run.yaml --losses default rank_sort --detectors atss retinanet --out studies/y",
        "concordet study --out studies/x                # continues the study, or shows its result",
        "concordet study --out studies/x --cell 7       # trains one run: for a job array of a cluster",
        "concordet study --out studies/x --report       # compares the runs that are finished so far",
    )
    options.add_argument(
        "path",
        type=str | None,
        nargs="?",
        help="Folder or annotation file with the data, as for train; without --config, the preset for it is used.",
    )
    options.add_argument("--out", type=str | None, help="Folder of the study.")
    options.add_argument(
        "--config",
        type=str | None,
        help="YAML file with the settings of all runs, such as a run's config.yaml, or the name of a recipe.",
    )
    options.add_argument("--losses", nargs="+", help="Names of losses; the first is the reference.")
    options.add_argument("--reference", type=str | None, help="Loss that the others are compared with.")
    options.add_argument("--detectors", nargs="+", help="Names of detectors; by default the configuration's.")
    options.add_argument("--seeds", type=int | None, help="Number of seeds; by default 3.")
    options.add_argument("--first_seed", type=int | None, help="Lowest seed; by default 1.")
    options.add_argument("--vary", nargs="+", help="Settings with several values, such as optim.lr=0.01,0.02.")
    options.add_argument("--jobs", type=int, default=1, help="Number of simultaneous runs, with one CPU thread each.")
    options.add_argument(
        "--launcher",
        type=Literal["local", "ray"],
        default="local",
        help="Where to train: on this machine, or on a Ray cluster whose machines share the folder of the study.",
    )
    options.add_argument("--address", default="auto", help="Address of the Ray cluster.")
    options.add_argument("--cell", type=int | None, help="Train only the run with this number, from 1.")
    options.add_argument(
        "--dry_run", action="store_true", help="List the runs and the estimated time left; train nothing."
    )
    options.add_argument(
        "--report", action="store_true", help="Compare the finished runs, even while others train; train nothing."
    )
    options.add_argument("--retry_failed", action="store_true", help="Train failed runs again.")
    options.add_argument("--resamples", type=int | None, help="Bootstrap samples for the intervals; by default 400.")
    options.add_argument(
        "--html", type=str | None, help="HTML page to write; by default study.html in the study's folder."
    )
    options.add_argument("--json", type=str | None, help="JSON file for the comparison; - is standard output.")
    options.add_force()
    return options


def run(words: list[str]) -> None:
    """Parses and runs."""
    from concordet.cli.outputs import check_outputs, messages
    from concordet.files import write_json
    from concordet.study import compare_study, run_cell
    from concordet.study.runner import check_cell, count_states, failure_file, state_of
    from concordet.study.statistics import sentence

    options = parser().parse_args(words)
    if options.out is None:
        raise UsageError("out must be the folder of the study, got none; add for example --out studies/first")
    inputs = (options.path, options.config)
    check_outputs({"--html": options.html, "--json": options.json}, inputs, force=options.force)
    if options.jobs < 1:
        raise UsageError(f"jobs must be at least 1, got {options.jobs}; choose another number")
    if options.jobs > 1 and options.launcher == "ray":
        raise UsageError(f"jobs must be left out with --launcher ray, which fills its cluster, got {options.jobs}")
    for name in ("html", "json"):
        part = "--cell" if options.cell is not None else "--dry_run" if options.dry_run and name == "html" else None
        if part is not None and getattr(options, name) is not None:
            raise UsageError(f"{name} must be left out with {part}, which compares nothing; write it with --report")
    study = study_of(options)
    if options.cell is not None:
        check_cell(study, options.cell)
    compared = study if options.reference is None else study.compared_with(options.reference)
    if not options.report:
        _check_data(study)
    if options.dry_run:
        plan = _plan(study, retry_failed=options.retry_failed)
        with messages(options.json):
            _show(plan, options.jobs)
        if options.json is not None:
            write_json(options.json, plan)
        return
    with messages(options.json):
        if options.cell is not None:
            study.save()
            cell = study.cells()[options.cell - 1]
            state = run_cell(study, options.cell)
            print(f"{cell.name}: {state}")
            if state == "failed":
                reason = failure_file(study, cell).read_text(encoding="utf-8").strip()
                reason = reason.removeprefix("concordet: error: ")
                raise ValueError(f"the run {cell.name} failed: {reason}; see its log in {study.folder}/runs")
            if state != "finished":
                raise ValueError(
                    f"the run {cell.name} must end to be compared, got one that was stopped or that another process "
                    "trains; the same command continues it"
                )
            return
        states = count_states(study) if options.report else _train(study, options)
        print(", ".join(f"{count} {state}" for state, count in states.items() if count))
        if not any(state_of(study, cell) == "finished" for cell in study.cells()):
            raise ValueError(f"no run of this study has finished; see {study.folder}/runs")
        report = compare_study(compared)
        page = Path(options.html) if options.html else study.folder / "study.html"
        from concordet.report import write_study

        write_study(report, page, title=study.folder.name, summary=sentence(report))
        write_json(study.folder / "comparison.json", report)
        _print(report)
        print(f"page: {page}")
    if options.json is not None:
        write_json(options.json, report)


def _train(study: Any, options: Any) -> Any:
    """Trains the runs that are not finished; the number of runs by state."""
    from concordet.study import run_study, run_study_on_ray

    display = _Display(study)
    with display:
        if options.launcher == "ray":
            return run_study_on_ray(
                study, address=options.address, retry_failed=options.retry_failed, report=display.report
            )
        return run_study(study, jobs=options.jobs, retry_failed=options.retry_failed, report=display.report)


def study_of(options: Any) -> Any:
    """The study of the options; one that is saved in the folder is continued, with what the options add."""
    from concordet.engine.config import TrainConfig
    from concordet.study import Study, load_study
    from concordet.study.grid import NAME, check_folder, parse_vary

    folder = Path(options.out)
    check_folder(folder)
    saved = load_study(folder) if options.report or (folder / NAME).is_file() else None
    if saved is None and options.losses is None:
        raise UsageError(f"losses must be named for a new study in {folder}, got none; for example --losses default ap")
    n_seeds = 3 if options.seeds is None else options.seeds
    if n_seeds < 1:
        raise UsageError(f"seeds must be at least 1, got {n_seeds}; 3 is the default")
    first = 1 if options.first_seed is None else options.first_seed
    seeds = tuple(range(first, first + n_seeds))
    config = _config(options)
    vary = None if options.vary is None else parse_vary(options.vary)
    if saved is None:
        config = config or TrainConfig()
        detectors = tuple(options.detectors or [config.detector])
        study = Study(folder, detectors, tuple(options.losses), seeds, vary or {}, config)
        if options.resamples is not None:
            study = replace(study, resamples=options.resamples)
    else:
        asked = {"config": config, "vary": vary, "resamples": options.resamples}
        saved.check_settings(**{name: value for name, value in asked.items() if value is not None})
        named = (options.seeds, options.first_seed) != (None, None)
        study = saved.extended(options.detectors or (), options.losses or (), seeds if named else ())
    _check_names(study)
    return study


def _config(options: Any) -> Any:
    """The settings of all runs, from --config and the path of the data; None without either."""
    from concordet.cli.commands.train import OWN
    from concordet.console import note
    from concordet.data import detect_format
    from concordet.engine.config import from_dict, read_settings, rename_settings
    from concordet.engine.presets import preset_config, preset_for, preset_summary
    from concordet.engine.recipes import config_path

    values: dict[str, Any] = {}
    path, preset = options.path, None
    if options.config is not None:
        values = read_settings(config_path(options.config))
        rename_settings(values)
        own = {name: values.pop(name, None) for name in OWN}  # of files that train --print_config wrote
        path, preset = path or own["path"], values.get("preset")
    elif path is None:
        return None
    if path is not None and isinstance(data := values.get("data") or {}, dict):
        data = values["data"] = {**data, "path": path}  # before all runs fail for the same reason
        note(detect_format(path, data.get("name"), allow_outside=data.get("allow_outside", False)).sentence())
    if options.config is None:
        preset, reason = preset_for(path)
        note(f"preset {preset} ({reason}): {preset_summary(preset)}; --config or --vary set others")
    try:
        return from_dict(values) if preset is None else preset_config(preset, **values)
    except UsageError:
        raise
    except ValueError as error:
        raise ValueError(f"{options.config}: {error}") from error


def _check_names(study: Any) -> None:
    """Raises if a name is unknown, before anything is trained."""
    from concordet.detectors import list_detectors
    from concordet.engine.plugins import import_plugins
    from concordet.errors import unknown
    from concordet.losses import build_criterion

    import_plugins(study.config.plugins)
    for detector in study.detectors:
        if detector not in list_detectors():
            raise UsageError(unknown("detector", detector, list_detectors()))
    try:
        for loss in study.losses:
            build_criterion(loss)
        for cell in study.cells():
            study.config_of(cell)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _check_data(study: Any) -> None:
    """Raises before all runs fail for the same reason."""
    from concordet.engine.data import check_named

    data = study.config.data
    check_named(data)
    if data.path is not None and not Path(data.path).exists():
        raise UsageError(
            f"data.path must be a folder or file, got {data.path}, which does not exist; correct it in "
            f"{study.folder / 'config.yaml'}"
        )


def _plan(study: Any, *, retry_failed: bool) -> dict[str, Any]:
    """The runs of a study with their states, and the estimated training time of those that are left."""
    from concordet.study.runner import estimate_seconds, state_of

    cells = [
        {"cell": number, "name": cell.name, "state": state_of(study, cell)}
        for number, cell in enumerate(study.cells(), 1)
    ]
    seconds, basis = estimate_seconds(study, retry_failed=retry_failed) or (None, None)
    return {"cells": cells, "seconds_left": seconds, "estimated_from": basis}


def _show(plan: dict[str, Any], jobs: int) -> None:
    from concordet.engine.evaluation import duration

    cells, seconds = plan["cells"], plan["seconds_left"]
    width = len(str(len(cells)))
    for cell in cells:
        print(f"{cell['cell']:>{width}}  {cell['state']:<10}  {cell['name']}")
    if seconds is None:
        print(f"{len(cells)} runs; the time can be estimated once one is finished (train one with --cell 1)")
    else:
        with_jobs = f" with {jobs} jobs" if jobs > 1 else ""
        left = f"about {duration(seconds / jobs)} of training left{with_jobs}"
        print(f"{len(cells)} runs; {left}, from {plan['estimated_from']}")


class _Display:
    """Progress of all runs: a bar on a terminal, otherwise a line per finished run."""

    def __init__(self, study: Any) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from concordet.study.runner import state_of

        console = Console(stderr=True)
        self.total = len(study.cells())
        self.done = sum(state_of(study, cell) == "finished" for cell in study.cells())
        self.first, self.start = self.done, time.monotonic()
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
        )
        self.task = self.progress.add_task("runs", total=self.total, completed=self.done)
        self.running: list[str] = []

    def __enter__(self) -> _Display:
        if self.console.is_terminal:
            self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def report(self, event: str, cell: Any, state: str) -> None:
        """Updates the display when a run starts or ends, or is waited for."""
        if event == "wait":
            self.console.print(f"waiting for {cell.name}, which another process trains", highlight=False)
            return
        if event == "start":
            self.running.append(cell.name)
        else:
            self.running.remove(cell.name)
            self.done += state in ("finished", "failed")
        self.progress.update(self.task, completed=self.done, description=f"training {', '.join(self.running[:2])}"[:60])
        if event == "end" and (not self.console.is_terminal or state == "failed"):
            from concordet.engine.evaluation import duration

            new = max(self.done - self.first, 1)
            left = (time.monotonic() - self.start) / new * (self.total - self.done)
            self.console.print(
                f"{self.done} of {self.total}: {cell.name} {state}, {duration(left)} left", highlight=False
            )


def _print(report: dict[str, Any]) -> None:
    from rich.table import Column, Table

    from concordet.cli.tables import wide_console
    from concordet.study.statistics import sentence

    print(sentence(report))
    console = wide_console()
    for group in report["groups"]:
        name = group["detector"] + (f", {group['variant']}" if group["variant"] else "")
        counts = {len(entry["seeds"]) for entry in group["losses"]}
        differ = len(counts) > 1
        if not differ:  # without their column, most names and intervals fit 80 columns
            name += f", {counted(max(counts), 'seed')}"
        table = Table(Column("loss", overflow="fold"), title=f"{name}, compared with {report['reference']}")
        for heading in (*["seeds"] * differ, "AP", f"difference ({100 * report['confidence']:g} %)", "verdict"):
            table.add_column(heading)
        for entry in group["losses"]:
            ap = entry["metrics"].get("AP")
            spread = "" if ap is None or ap["std"] is None else f" ± {100 * ap['std']:.1f}"
            row = entry["differences"].get("AP")
            gain = verdict = ""
            if row is not None:
                ends = f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}"
                gain, verdict = f"{100 * row['value']:+.1f} ({ends})", row["verdict"]
            value = "–" if ap is None else f"{100 * ap['mean']:.1f}{spread}"
            table.add_row(entry["loss"], *[str(len(entry["seeds"]))] * differ, value, gain, verdict)
        console.print(table)
    for failure in report["failures"]:
        print(f"failed: {failure['cell']}: {failure['reason']}")
