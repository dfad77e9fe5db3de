"""Atomic writes, JSON and YAML, and names that are not taken yet."""

from __future__ import annotations

import gc
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

STANDARD_OUTPUT = ("-", "/dev/stdout", "/dev/fd/1")
"""Names of standard output."""

_DESCRIPTOR = re.compile(r"/dev/(stderr|fd/\d+)|/proc/self/fd/\d+")

_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp(\.[^.]*)?")


def is_standard_output(path: str | Path | None) -> bool:
    """Whether an output goes to standard output instead of a file.

    Example:
        >>> is_standard_output("-"), is_standard_output("report.json")
        (True, False)
    """
    return str(path) in STANDARD_OUTPUT


def is_descriptor(path: str | Path) -> bool:
    """Whether an output is an open file of this process, such as a shell's ``>(gzip > report.json.gz)``.

    Example:
        >>> is_descriptor("/dev/stderr"), is_descriptor("/dev/fd/63"), is_descriptor("/dev/null")
        (True, True, False)
    """
    return _DESCRIPTOR.fullmatch(str(path)) is not None


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it when the block succeeds and is removed when it fails.

    The new content is flushed to the disk before it takes the name, so that a crash leaves the old file or the new one,
    never a part. A symbolic link stays a link: the file that it points to is replaced. A device or a pipe is written
    to, not replaced.

    Raises:
        OSError: the file cannot be written; the error names ``path``.

    Example:
        >>> path = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with replacing(path) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> path.read_text(), [p.name for p in path.parent.iterdir()]
        ('whole', ['a.txt'])
    """
    path = Path(path)
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise ValueError(f"{path} must be a file, got a folder; name a file in it")
    if is_standard_output(path) or is_descriptor(path) or (target.exists() and not target.is_file()):
        with _copied_into(path) as temporary:
            yield temporary
        return
    # with the suffix, by which some writers choose the format; no longer than the name itself may be
    temporary = target.with_name(f".{target.stem[:40]}.{os.getpid()}.tmp{target.suffix[:15]}")
    try:
        yield temporary
        _flush(temporary)
        if target.exists():
            temporary.chmod(target.stat().st_mode & 0o7777)
        os.replace(temporary, target)
        _flush(target.parent)
    except OSError as error:
        if error.filename in (None, str(temporary)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def _copied_into(path: Path) -> Iterator[Path]:
    """A temporary path whose content is copied into a device, a pipe or standard output when the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / (path.name if path.suffix else "output")
        yield temporary
        content = temporary.read_bytes()
    if is_standard_output(path):
        sys.stdout.flush()
        binary = getattr(sys.stdout, "buffer", None)
        if binary is None:  # a stream that takes text only
            sys.stdout.write(content.decode())
        else:
            binary.write(content)
        sys.stdout.flush()
        return
    try:
        # appending keeps what else a redirected standard error holds
        with path.open("ab" if is_descriptor(path) else "wb", buffering=0) as device:
            device.write(content)
    except OSError as error:
        error.filename = str(path)
        raise


def _flush(path: Path) -> None:
    """Waits until a file, or the entries of a folder, are on the disk."""
    try:
        # Windows flushes only what may be written, and no folder
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except PermissionError:  # a folder may be writable and not readable
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir():  # not every file system can flush a folder
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(descriptor)


def remove_temporaries(folder: str | Path) -> list[Path]:
    """Removes temporary files that killed processes of this machine have left in a folder.

    Returns:
        The files removed.
    """
    removed = []
    for path in Path(folder).glob(".*.tmp*"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and path.is_file() and not _is_running(int(match[1])):
            path.unlink(missing_ok=True)
            removed.append(path)
    return removed


def _is_running(process: int) -> bool:
    """Whether a process with this number exists; on Windows, where asking would send it Ctrl-C, always true."""
    if sys.platform == "win32":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def plain(value: Any) -> Any:
    """``value`` for strict JSON: NaN and infinities become None, tuples lists, NumPy and torch scalars numbers."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_text(path: str | Path, text: str) -> Path:
    """Writes a text file in UTF-8, whole or not at all; the folder must exist.

    Raises:
        OSError: the file cannot be written; the error names it.
    """
    with replacing(path) as temporary:
        # names of files that are not in UTF-8, as Python reads them
        temporary.write_text(text, encoding="utf-8", errors="replace")
    return Path(path)


def write_json(path: str | Path, value: Any, *, indent: int | None = 1) -> None:
    """Writes ``value`` as JSON, whole or not at all; the folder must exist, and ``-`` is standard output."""
    write_text(path, json.dumps(plain(value), indent=indent, allow_nan=False) + "\n")


def read_text(path: str | Path) -> str:
    """The content of a text file in UTF-8, with or without a byte order mark; lines end with a newline.

    Raises:
        ValueError: there is no such file, or it cannot be read as text; the message names it.
    """
    return _decoded(read_bytes(Path(path)), path).replace("\r\n", "\n").replace("\r", "\n")


def _read_all(file: BinaryIO) -> bytes:
    return file.read()


def read_bytes(path: Path, read: Callable[[BinaryIO], bytes] = _read_all) -> bytes:
    """The content of a file; ValueError if it cannot be read, which names it."""
    try:
        with path.open("rb") as file:
            return read(file)
    except OSError as error:
        raise ValueError(f"{path} must be a readable file, got: {error.strerror}; check the name") from error
    except ValueError as error:  # null byte in the name
        raise ValueError(f"{str(path)!r} must be the name of a file, got: {error}; check the name") from error


def _decoded(content: bytes, path: str | Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} must be text in UTF-8, got other bytes at {error.start}; name another file"
        ) from error


def read_json(path: str | Path, *, read: Callable[[BinaryIO], bytes] = _read_all) -> Any:
    """The content of a JSON file.

    Args:
        path: JSON file.
        read: Reads the open file, for example without what is not needed.

    Raises:
        ValueError: there is no such file, or it is not valid JSON; the message names the file and the position.
    """
    return parse_json(read_bytes(Path(path), read), path)


def parse_json(content: bytes, path: str | Path) -> Any:
    """The content of a JSON file from its bytes; ``path`` is for errors, which are those of :func:`read_json`."""
    text = _decoded(content, path)
    try:
        with no_garbage_collection():
            return json.loads(text)
    except ValueError as error:  # not only JSONDecodeError: integers with too many digits
        raise ValueError(
            f"{path} must be valid JSON, got a fault ({error}); write it again or name another file"
        ) from error
    except RecursionError as error:
        raise ValueError(f"{path} must be valid JSON, got one that is nested too deeply; name another file") from error


MAX_VALUES = 100_000
"""Largest number of values in a YAML file, aliases expanded."""


def read_yaml(path: str | Path) -> Any:
    """The content of a YAML file.

    Raises:
        ValueError: there is no such file, or as :func:`parse_yaml`.
    """
    return parse_yaml(read_text(path), path)


def parse_yaml(text: str, path: str | Path) -> Any:
    """The content of a YAML file from its text.

    Args:
        text: Text of the file.
        path: Path of the file, for errors.

    Raises:
        ValueError: it is not valid YAML, or it has too many values once its aliases are expanded.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def flatten_mapping(self, node: Any) -> None:
            super().flatten_mapping(node)
            if len(node.value) > MAX_VALUES:  # merge keys repeat what aliases stand for
                raise yaml.YAMLError(f"more than {MAX_VALUES} values in a mapping")

    try:
        content = yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: integers with too many digits, impossible dates
        said = " ".join(str(error).split())
        raise ValueError(f"{path} is not valid YAML ({said[:300]}); correct it") from error
    except (RecursionError, TypeError) as error:  # TypeError: a list or a mapping as the key of a set
        raise ValueError(f"{path} is not valid YAML (it is nested too deeply); correct it") from error
    if _count(content, {}) > MAX_VALUES:
        raise ValueError(f"{path} must hold at most {MAX_VALUES} values, got more; write them without aliases")
    return content


def _count(value: Any, known: dict[int, float]) -> float:
    """Number of values within a value, with every repetition by an alias; infinity where one contains itself."""
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in known:
        known[id(value)] = math.inf  # met again before it is counted, a value contains itself
        known[id(value)] = 1 + sum(
            _count(item, known) for item in (value.values() if isinstance(value, dict) else value)
        )
    return known[id(value)]


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Pauses the cyclic garbage collector, which takes longer than creating millions of small objects does."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def check_new(path: str | Path, fix: str) -> None:
    """Raises a ValueError that ends with ``fix`` if ``path`` is an existing file or a folder that is not empty."""
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"output must be new, got {path}, which already exists; {fix}")


def new_folder(path: str | Path, fix: str) -> Path:
    """Makes a folder, or takes an existing one that is empty.

    Raises:
        ValueError: it exists and is not empty (the message ends with ``fix``), or it cannot be made or written to.
    """
    path = Path(path)
    check_new(path, fix)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"the folder {path} cannot be made ({error.strerror}); name another one") from error
    return writable(path)


def writable(folder: str | Path) -> Path:
    """``folder``, after checking that a file can be made in it.

    Raises:
        ValueError: it is missing, not a folder, or not writable.
    """
    folder = Path(folder)
    probe = folder / f".writable.{os.getpid()}.tmp"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"nothing can be written to {folder} ({error.strerror}); name another folder") from error
    return folder


def free_name(path: str | Path) -> Path:
    """``path``, or the first of ``name-2``, ``name-3``, ... that does not exist yet.

    Example:
        >>> free_name("/nowhere/report.html").name
        'report.html'
    """
    path = Path(path)
    candidate, number = path, 2
    while candidate.exists():
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
    return candidate
