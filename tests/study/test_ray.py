"""Studies on a Ray cluster: two workers on this machine, one of which is killed in between."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from concordet.errors import UsageError
from concordet.study import Study, compare_study, run_study, run_study_on_ray
from concordet.study.ray_launcher import _train_cell

from ..trained import tiny

ray = pytest.importorskip("ray", reason="needs the package ray")


@pytest.fixture
def cluster(monkeypatch):
    """A cluster of two nodes with one processor each."""
    from ray.cluster_utils import Cluster

    root = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])))
    local = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        local.add_node(num_cpus=1)
    yield local
    local.shutdown()


def kill_a_worker(folder: Path, killed: threading.Event) -> None:
    """Kills the process of the first run that has a checkpoint, as a crash does."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if any(folder.glob("runs/*/checkpoints/last.ckpt")):
            for process in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    if b"ray::_train_cell" in process.read_bytes():
                        os.kill(int(process.parent.name), signal.SIGKILL)
                        killed.set()
                        return
                except (OSError, ProcessLookupError):
                    continue
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_worker_changes_nothing(cluster, tmp_path):
    grid = Study(tmp_path / "ray", ("fcos",), ("default", "focal"), (1, 2), config=tiny(optim_epochs=20), resamples=20)
    killed = threading.Event()
    killer = threading.Thread(target=kill_a_worker, args=(grid.folder, killed))
    killer.start()
    events = []
    states = run_study_on_ray(grid, address=cluster.address, report=lambda *event: events.append(event))
    killer.join()
    assert killed.is_set()
    assert states == {"finished": 4, "failed": 0, "unfinished": 0, "new": 0}
    assert sorted(e[0] for e in events) == ["end"] * 4 + ["start"] * 4
    alone = Study(tmp_path / "alone", ("fcos",), ("default", "focal"), (1, 2), config=grid.config, resamples=20)
    run_study(alone, jobs=2)
    first, second = (compare_study(g)["groups"][0]["losses"] for g in (grid, alone))
    assert [e["metrics"]["AP"] for e in first] == [e["metrics"]["AP"] for e in second]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_failure_is_recorded(cluster, tmp_path):
    grid = Study(tmp_path / "ray", ("fcos",), ("default",), (1,), config=tiny(), resamples=20)
    folder = grid.run_folder(grid.cells()[0])
    folder.mkdir(parents=True)
    (folder / "somebody.txt").write_text("else's")
    assert run_study_on_ray(grid, address=cluster.address)["failed"] == 1
    (failure,) = compare_study(grid)["failures"]
    assert failure["reason"].startswith("concordet: error: ")
    assert json.loads((grid.folder / "study.json").read_text())["losses"] == ["default"]


def test_without_a_cluster_there_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # where it looks for clusters of this machine
    grid = Study(tmp_path / "ray", ("fcos",), ("default",), (1,), config=tiny())
    with pytest.raises(UsageError, match="address must be that of a running Ray cluster"):
        run_study_on_ray(grid)


def test_a_task_trains_the_run_that_it_names(tmp_path):
    """The saved study may have other losses before it, or get them while tasks wait."""
    Study(tmp_path / "study", ("fcos",), ("default", "focal"), (1,), config=tiny(optim_epochs=1), resamples=2).save()
    (cell,) = Study(tmp_path / "study", ("fcos",), ("focal",), (1,)).cells()
    _train_cell(str(tmp_path / "study"), cell.name)
    assert [path.stem for path in (tmp_path / "study" / "results").iterdir()] == [cell.name]
