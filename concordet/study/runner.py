"""Trains the cells of a study, several at a time, each in its own process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from concordet.engine.config import save_config
from concordet.errors import UsageError
from concordet.files import read_json, write_json, write_text
from concordet.locks import is_locked
from concordet.study.grid import Cell, Study
from concordet.study.results import read_result, result_path

State = Literal["finished", "failed", "unfinished", "new"]
STATES: Final[tuple[State, ...]] = get_args(State)


def state_of(study: Study, cell: Cell) -> State:
    """Whether a cell's run is finished, failed, unfinished (to be resumed) or new."""
    folder = study.run_folder(cell)
    if result_path(study, cell).is_file() or (folder / "evaluation.json").is_file():
        return "finished"
    if failure_file(study, cell).is_file():
        return "failed"
    return "unfinished" if folder.exists() else "new"


def failure_file(study: Study, cell: Cell) -> Path:
    """The file of a failed run's message."""
    folder = study.run_folder(cell)
    return folder.with_name(folder.name + ".failed.txt")


def start_cell(study: Study, cell: Cell, *, gpu: int | None = None) -> subprocess.Popen[bytes]:
    """Starts or resumes a cell's training with one thread; its output goes to a log next to the run folder.

    Args:
        study: The grid.
        cell: One of its cells.
        gpu: Index among the GPUs that this process sees; None without any.
    """
    folder = study.run_folder(cell)
    folder.parent.mkdir(parents=True, exist_ok=True)
    failure_file(study, cell).unlink(missing_ok=True)
    words = [sys.executable, "-m", "concordet", "train"]
    if (folder / "config.yaml").is_file():
        words += ["--resume", str(folder)]
    else:
        config = folder.with_name(folder.name + ".yaml")
        save_config(config, study.config_of(cell))
        words += ["--config", str(config), "--out", str(folder)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    if gpu is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        variables["CUDA_VISIBLE_DEVICES"] = str(gpu) if visible is None else visible.split(",")[gpu].strip()
    with folder.with_name(folder.name + ".log").open("ab") as log:
        # In a new session, Ctrl-C reaches only the study's process, which interrupts the runs itself.
        return subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, env=variables, start_new_session=True)


def finish_cell(study: Study, cell: Cell, status: int) -> State:
    """Records the exit status of a cell's process, and returns the cell's state."""
    if state_of(study, cell) == "finished" and status == 0:
        read_result(study, cell)
        return "finished"
    folder = study.run_folder(cell)
    if status < 0 or status == 130 or is_locked(folder):  # to be resumed, or another process trains it
        return "unfinished"
    log = folder.with_name(folder.name + ".log")
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
    write_text(failure_file(study, cell), (lines[-1] if lines else f"exit status {status}") + "\n")
    return "failed"


def run_cell(study: Study, index: int) -> State:
    """Trains one cell, for job arrays of a scheduler.

    Args:
        study: The grid.
        index: Number of the cell in ``study.cells()``, from 1.

    Returns:
        State of the cell: "finished", "failed", or "unfinished" if the training was stopped or another process trains
        it.

    Raises:
        UsageError: there is no such cell.
        KeyboardInterrupt: Ctrl-C, after the process has stopped.

    Example:
        >>> from pathlib import Path
        >>> from concordet.study import Study
        >>> run_cell(Study(Path("study"), ("fcos",), ("default",), seeds=(0,)), 2)
        Traceback (most recent call last):
        concordet.errors.UsageError: cell must be a number from 1 to 1, got 2; see concordet study --dry_run
    """
    check_cell(study, index)
    cell = study.cells()[index - 1]
    if state_of(study, cell) == "finished":
        return "finished"
    n_gpus = count_gpus()
    # one GPU, as in run_study: several would change the number of images per update
    process = start_cell(study, cell, gpu=(index - 1) % n_gpus if n_gpus else None)
    try:
        return finish_cell(study, cell, process.wait())
    except KeyboardInterrupt:
        stop([process])
        raise


def check_cell(study: Study, index: int) -> None:
    """Raises a UsageError where a study has no cell with this number, from 1."""
    n_cells = len(study.cells())
    if not 1 <= index <= n_cells:
        raise UsageError(f"cell must be a number from 1 to {n_cells}, got {index}; see concordet study --dry_run")


@dataclass
class Running:
    """A running process, and the index of its slot among ``jobs``."""

    cell: Cell
    process: subprocess.Popen[bytes]
    slot: int


def run_study(
    study: Study,
    *,
    jobs: int = 1,
    retry_failed: bool = False,
    report: Callable[[str, Cell, State], None] | None = None,
    poll: float = 0.2,
) -> dict[State, int]:
    """Trains all cells that are not finished.

    Finished runs are kept, unfinished ones resume, failures are recorded and do not stop the others. Runs that another
    process is training, such as one that outlived a killed study, are waited for.

    Args:
        study: The grid.
        jobs: Number of parallel processes, each with one thread; if there are GPUs, processes use them in turn.
        retry_failed: Whether to train failed cells again.
        report: Called with "start" or "end", the cell and its state, and with "wait" where only runs of other processes
            are left.
        poll: Seconds between checks of the processes.

    Returns:
        Number of cells by state.

    Raises:
        KeyboardInterrupt: Ctrl-C, after the processes have stopped; the study continues where it was.

    Example:
        >>> from concordet.engine import load_config
        >>> from concordet.study import Study, compare_study
        >>> config = load_config(Path("run.yaml"))  # doctest: +SKIP
        >>> study = Study(Path("study"), ("fcos",), ("default", "ap"), (0, 1), config=config)  # doctest: +SKIP
        >>> run_study(study, jobs=2)  # doctest: +SKIP
        {'finished': 4, 'failed': 0, 'unfinished': 0, 'new': 0}
        >>> report = compare_study(study)  # doctest: +SKIP
    """
    if jobs < 1:
        raise UsageError(f"jobs must be at least 1, got {jobs}; choose another number")
    study.save()
    report = report or (lambda event, cell, state: None)
    waiting = unfinished(study, retry_failed=retry_failed)
    n_gpus = count_gpus()
    free, running = list(range(jobs)), list[Running]()
    before, start, waited = _children_seconds(), time.monotonic(), False
    try:
        while waiting or running:
            while free and (cell := next((c for c in waiting if not is_locked(study.run_folder(c))), None)):
                waiting.remove(cell)
                report("start", cell, state := state_of(study, cell))
                if state == "finished":  # by another process
                    report("end", cell, finish_cell(study, cell, 0))
                    continue
                slot = free.pop(0)
                gpu = slot % n_gpus if n_gpus else None
                running.append(Running(cell, start_cell(study, cell, gpu=gpu), slot))
            if waiting and not running and not waited:
                waited = True
                report("wait", waiting[0], state_of(study, waiting[0]))
            for item in [r for r in running if r.process.poll() is not None]:
                running.remove(item)
                free.append(item.slot)
                report("end", item.cell, finish_cell(study, item.cell, item.process.returncode))
            time.sleep(poll if running or waiting else 0)
    finally:
        stop(item.process for item in running)
        _add_times(study, before, time.monotonic() - start)
    return count_states(study)


def unfinished(study: Study, *, retry_failed: bool) -> list[Cell]:
    """Cells to train, in the order of the grid."""
    done = ("finished",) if retry_failed else ("finished", "failed")
    return [cell for cell in study.cells() if state_of(study, cell) not in done]


def count_states(study: Study) -> dict[State, int]:
    """Number of cells by state."""
    states = [state_of(study, cell) for cell in study.cells()]
    return {state: states.count(state) for state in STATES}


def stop(processes: Iterable[subprocess.Popen[bytes]], patience: float = 30.0) -> None:
    """Asks processes to save a checkpoint and stop, and kills those that do not stop in time."""
    alive = [p for p in processes if p.poll() is None]
    for process in alive:
        if sys.platform != "win32":  # there, Ctrl-C reaches all processes of a console, and none can be sent to one
            process.send_signal(signal.SIGTERM)  # acts like Ctrl-C, which background jobs of a shell ignore
    for process in alive:
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def count_gpus() -> int:
    """Number of GPUs for runs."""
    import torch

    return torch.cuda.device_count()


def estimate_seconds(study: Study, *, retry_failed: bool = False) -> tuple[float, str] | None:
    """Seconds that training of the remaining cells takes one after the other, and the basis of the estimate.

    None if no run of the study is finished.
    """
    finished = [cell for cell in study.cells() if state_of(study, cell) == "finished"]
    taken = [t for cell in finished if (t := _seconds(study, cell)) is not None]
    if not taken:
        return None
    left = len(unfinished(study, retry_failed=retry_failed))
    return left * sum(taken) / len(taken), f"the mean of {len(taken)} finished runs"


def _seconds(study: Study, cell: Cell) -> float | None:
    path = study.run_folder(cell) / "timing.json"
    if not path.is_file():
        return None
    timing = read_json(path)
    seconds = timing["seconds_per_iteration"] + (timing.get("seconds_waiting_for_data") or 0.0)
    return float(seconds * timing["updates"] * study.config_of(cell).optim.accumulate)


def _children_seconds() -> float:
    """Processor time of the processes that this one has started and that have ended; 0 on Windows."""
    times = os.times()
    return times.children_user + times.children_system


def _add_times(study: Study, before: float, wall: float) -> None:
    """Adds the processor time of the runs and the elapsed time to the study's ``times.json``."""
    path = study.folder / "times.json"
    times = read_json(path) if path.is_file() else {"runs_s": 0.0, "wall_s": 0.0}
    times["runs_s"] += _children_seconds() - before
    times["wall_s"] += wall
    write_json(path, times)
