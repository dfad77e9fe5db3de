"""What Windows lacks: modules, and calls that do something else there. Nothing here needs Windows."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from concordet import files, locks
from concordet.benchmark import memory
from concordet.study import runner

PACKAGE = Path(__file__).parent.parent / "concordet"
UNIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
UNIX_CALLS = {
    *("fchmod", "fork", "forkpty", "geteuid", "getloadavg", "getuid", "killpg", "mkfifo", "nice", "sched_getaffinity"),
    *("setsid", "statvfs", "uname", "wait3", "SIGALRM", "SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGXFSZ", "alarm"),
}


def unguarded(source: str) -> list[str]:
    """Unix modules imported outside of ``try ... except ImportError``, and Unix calls without ``hasattr``."""
    tree = ast.parse(source)
    guarded = {
        node
        for guard in ast.walk(tree)
        if isinstance(guard, ast.Try) and any("ImportError" in ast.unparse(h.type) for h in guard.handlers if h.type)
        for part in guard.body
        for node in ast.walk(part)
    }
    checked = {
        node
        for choice in ast.walk(tree)
        if isinstance(choice, (ast.IfExp, ast.If)) and "hasattr" in ast.unparse(choice.test)
        for node in ast.walk(choice)
    }
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and node not in guarded:
            names += [alias.name for alias in node.names if alias.name in UNIX_MODULES]
        elif isinstance(node, ast.ImportFrom) and node not in guarded and node.module in UNIX_MODULES:
            names.append(node.module)
        elif isinstance(node, ast.Attribute) and node.attr in UNIX_CALLS and node not in checked:
            names.append(ast.unparse(node))
    return names


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_package_needs_nothing_of_unix_only(path):
    assert unguarded(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import resource", ["resource"]),
        ("def f():\n    from fcntl import lockf", ["fcntl"]),
        ("try:\n    import fcntl\nexcept ImportError:\n    fcntl = None", []),
        ("try:\n    import fcntl\nexcept OSError:\n    pass", ["fcntl"]),
        ("import os\nos.fork()", ["os.fork"]),
        ("import os\nx = os.getloadavg() if hasattr(os, 'getloadavg') else 0", []),
    ],
)
def test_unguarded_uses_are_seen(source, names):
    assert unguarded(source) == names


def test_peak_memory_is_0_where_the_system_does_not_say(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "STATUS", tmp_path / "none")
    assert memory.peak_mb() > 1  # by the module resource
    monkeypatch.setitem(sys.modules, "resource", None)
    assert memory.peak_mb() == 0


def test_a_folder_is_not_locked_without_the_module_of_locks(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with locks.locked(tmp_path, "name another"), locks.locked(tmp_path, "name another"):
        pass


def test_processor_time_of_ended_processes_is_counted():
    before = runner._children_seconds()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"], check=True)
    assert runner._children_seconds() - before >= 0.28  # in steps of a hundredth of a second


def test_files_are_flushed_by_descriptors_that_may_write(monkeypatch, tmp_path):
    """Windows refuses to flush others, which would end every command that writes a file."""
    flags, opened = {}, os.open

    def spy(path, flag, *more):
        descriptor = opened(path, flag, *more)
        flags[descriptor] = flag
        return descriptor

    flushed = []
    monkeypatch.setattr(os, "open", spy)
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(flags[descriptor] & os.O_ACCMODE))
    files.write_text(tmp_path / "a.txt", "whole")
    assert flushed == [os.O_RDWR, os.O_RDONLY]  # the file, and its folder, which cannot be opened there


def test_asking_whether_a_process_runs_sends_it_nothing_on_windows(monkeypatch, tmp_path):
    """There, ``os.kill(number, 0)`` is Ctrl-C."""
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "kill", lambda *call: pytest.fail(f"os.kill{call}"))
    left = tmp_path / ".a.123456.tmp.json"
    left.touch()
    assert files.remove_temporaries(tmp_path) == []
    assert left.exists()
