"""Folders that only one process writes to."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path


@contextmanager
def locked(folder: str | Path, fix: str, *, patience: float = 0.0) -> Iterator[None]:
    """Keeps other processes out of a folder while the block runs.

    The lock is the operating system's: it ends with the process, however that ends. A process that holds it may enter
    again.

    Args:
        folder: An existing folder.
        fix: What to do where the folder is in use, for the message.
        patience: Seconds to wait for a process that holds the lock, for blocks that take a moment.

    Raises:
        ValueError: another process holds the lock.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, locked(folder, "name another folder"):
        ...     print("nobody else writes here")
        nobody else writes here
    """
    end = time.monotonic() + patience
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(_locked(folder, fix))
                break
            except ValueError:
                if time.monotonic() >= end:
                    raise
                time.sleep(0.02)
        yield


@contextmanager
def _locked(folder: str | Path, fix: str) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    name = os.path.realpath(folder)
    if name in _held:
        yield
        return
    path = Path(folder) / ".lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            # not flock, whose lock is inherited by worker processes, which may outlive a killed run
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            owner = os.read(descriptor, 100).decode(errors="replace")
            raise ValueError(
                f"{folder} must not be in use, got one that {owner or 'a process'} writes to; {fix}"
            ) from error
        except OSError:  # a file system without locks
            yield
            return
        if not _is_open_as(descriptor, path):  # another process has just ended its lock and removed the file
            raise ValueError(f"{folder} must not be in use, got one that a process writes to; {fix}")
        os.truncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()}".encode())
        _held.add(name)
        try:
            yield
        finally:
            _held.discard(name)
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


_held: set[str] = set()
"""Folders that this process has locked: a second lock on one would end the first when it is released."""


def _is_open_as(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def is_locked(folder: str | Path) -> bool:
    """Whether another process is in a :func:`locked` block of this folder.

    Not for a process that holds the lock itself: systems release it when any descriptor of its file is closed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     print(is_locked(folder))
        False
    """
    try:
        import fcntl

        file = (Path(folder) / ".lock").open("r+b")
    except (ImportError, OSError):  # Windows, or no lock
        return False
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return True
        except OSError:  # a file system without locks
            return False
    return False
