"""Trains the cells of a study on a Ray cluster whose machines share the study's folder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from concordet.errors import UsageError, requires
from concordet.files import write_text
from concordet.study.grid import Cell, Study, load_study
from concordet.study.results import read_result
from concordet.study.runner import State, count_states, failure_file, state_of, unfinished

_ONE_THREAD = {"env_vars": {"OMP_NUM_THREADS": "1"}}


def run_study_on_ray(
    study: Study,
    *,
    address: str = "auto",
    retry_failed: bool = False,
    report: Callable[[str, Cell, State], None] | None = None,
) -> dict[State, int]:
    """Trains all cells that are not finished, each as a task of one processor and, if the cluster has any, one GPU.

    If a worker is killed or a machine leaves, its task starts again and resumes the run.

    Args:
        study: The grid; all machines of the cluster must have access to its folder under the same path.
        address: Address of the cluster; "auto" is the one that this machine belongs to.
        retry_failed: Whether to train failed cells again.
        report: Called with "start" or "end", the cell and its state.

    Returns:
        Number of cells by state.

    Raises:
        MissingPackageError: Ray is not installed.
        UsageError: there is no cluster at this address.
        KeyboardInterrupt: Ctrl-C, after the tasks have stopped; the study continues where it was.

    Example:
        >>> from concordet.study import load_study
        >>> run_study_on_ray(load_study("/shared/study"), address="ray://head:10001")  # doctest: +SKIP
        {'finished': 20, 'failed': 0, 'unfinished': 0, 'new': 0}
    """
    with requires("a study on a Ray cluster", "ray"):
        import ray
    study.save()
    report = report or (lambda event, cell, state: None)
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"address must be that of a running Ray cluster, got {address}: {str(error).splitlines()[0]}; "
            "start one with: ray start --head"
        ) from error
    try:
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=-1, runtime_env=_ONE_THREAD)(_train_cell)
        running: dict[Any, Cell] = {}
        for cell in unfinished(study, retry_failed=retry_failed):
            report("start", cell, state_of(study, cell))
            running[task.remote(str(study.folder.resolve()), cell.name)] = cell
        try:
            while running:
                (done, *_), _ = ray.wait(list(running), num_returns=1)
                cell = running.pop(done)
                ray.get(done)
                report("end", cell, state_of(study, cell))
        except KeyboardInterrupt:
            for reference in running:
                ray.cancel(reference)
            raise
    finally:
        ray.shutdown()
    return count_states(study)


def _train_cell(folder: str, name: str) -> None:
    """Trains or resumes one cell in this process, so that killing Ray's worker also ends the training."""
    from concordet.engine.training.fit import train

    study = load_study(Path(folder))
    cell = next(cell for cell in study.cells() if cell.name == name)
    run = study.run_folder(cell)
    run.parent.mkdir(parents=True, exist_ok=True)
    failure_file(study, cell).unlink(missing_ok=True)
    with (
        run.with_name(run.name + ".log").open("a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            train(study.config_of(cell), run, resume=(run / "config.yaml").is_file())
            read_result(study, cell)
        except Exception as error:  # recorded as a failure of this cell; the others continue
            write_text(failure_file(study, cell), f"concordet: error: {error}\n")
