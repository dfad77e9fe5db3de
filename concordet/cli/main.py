"""Entry point: runs a command, and reports an error as one sentence and an exit status."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from concordet.cli.streams import make_streams_safe
from concordet.console import NORMAL, QUIET, VERBOSE, use_verbosity
from concordet.errors import (
    DivergedError,
    InterruptedRun,
    LostProcess,
    MissingPackageError,
    UsageError,
    requires,
    unknown,
)
from concordet.version import __version__

# command to description; the module of this name in concordet.cli.commands runs it
COMMANDS = {
    "demo": "train a small detector with its default loss and with a coupled loss, and compare them",
    "train": "train a detector with any of the losses",
    "data": "inspect a data set before training: counts, box sizes, faults, pictures",
    "convert": "convert a data set in any supported format to COCO files",
    "evaluate": "evaluate a trained detector: AP, oLRP, agreement of scores and IoUs",
    "predict": "detect objects in images and videos; write COCO results and pictures",
    "export": "export a trained detector to ONNX, TorchScript or torch.export",
    "analyze": "analyze the detections of any detector, from COCO files",
    "calibrate": "map scores to expected IoUs without changing the order of the detections",
    "study": "train several losses with several seeds, and report which is better",
    "compare": "compare evaluated runs in a table and an HTML page",
    "benchmark": "measure the speed of losses, training steps and analyses",
    "list": "list detectors, losses, measures, data sets, presets and recipes",
}

EXTRA = {**dict.fromkeys(("analyze", "calibrate", "compare"), "report"), "export": "export"}
"""The extra that a command needs, if not ``train``."""

EXAMPLE = "concordet train photos --detector fcos --size nano --loss 'focal+concordance(0.3)' --out runs/first"


def usage() -> str:
    """The text of ``concordet --help``."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return (
        "usage: concordet COMMAND ...\n\n"
        "Makes an object detector's confidence agree with its localization.\n\n"
        f"commands:\n{commands}\n\n"
        "options of every command:\n"
        "  --help         show the options of the command\n"
        "  -q, --quiet    print errors only\n"
        "  -v, --verbose  print more: progress every few seconds, and messages of libraries\n"
        "  --debug        print the traceback of an error\n\n"
        "other options:\n"
        "  --version      print the version\n\n"
        "exit status:\n"
        "  0    done\n"
        "  1    failed: a file, the data, a package or a device is missing or at fault\n"
        "  2    bad usage: an option is unknown or missing, its value cannot be, or options contradict each other\n"
        "  130  stopped by Ctrl-C or SIGTERM\n\n"
        f"example:\n  {EXAMPLE}\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: Words after ``concordet``; by default those of this process.

    Returns:
        The exit status: 0, 1 (failed), 2 (bad usage) or 130 (stopped by Ctrl-C or SIGTERM).
    """
    make_streams_safe()
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    level = verbosity_of(words)
    words = [word for word in words if word not in ("--debug", *_QUIET, *_VERBOSE)]
    if any("\0" in word for word in words):
        return complain(
            f"arguments must have no null byte, got {next(w for w in words if chr(0) in w)!r}; correct it", 2
        )
    if not words or words[0] in ("-h", "--help"):
        print(usage(), end="")
        return 0 if words else 2
    if words[0] == "--version":
        print(f"concordet {__version__}")
        return 0
    if words[0] not in COMMANDS:
        return complain(unknown("command", words[0], COMMANDS), 2)
    before = _stop_on_sigterm()
    try:
        with use_verbosity(level), requires(f"concordet {words[0]}", EXTRA.get(words[0], "train")):
            import_module(f"concordet.cli.commands.{words[0]}").run(words[1:])
        # errors of buffered output must be raised here, where they change the exit status
        sys.stdout.flush()
    except BrokenPipeError:
        # otherwise Python would report the closed output when it exits; like other programs before head, say nothing
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, DivergedError) and os.environ.get("LOCAL_RANK", "0") != "0":
            return 1  # all processes stop; only the first one prints the error
        return complain(sentence(error), exit_status(error))
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
    return 0


_QUIET, _VERBOSE = ("-q", "--quiet"), ("-v", "--verbose")


def verbosity_of(words: Sequence[str]) -> int:
    """Verbosity from a command's arguments; the last of several options counts.

    Example:
        >>> verbosity_of(["list", "-q"]), verbosity_of(["list"]), verbosity_of(["list", "-q", "--verbose"])
        (-1, 0, 1)
    """
    level = NORMAL
    for word in words:
        level = QUIET if word in _QUIET else VERBOSE if word in _VERBOSE else level
    return level


def _stop_on_sigterm() -> Any:
    """Makes SIGTERM act like Ctrl-C; returns the previous handler, or None in a thread, where signals cannot be set."""
    if threading.current_thread() is not threading.main_thread():
        return None

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    return signal.signal(signal.SIGTERM, stop) or signal.SIG_DFL


def exit_status(error: BaseException) -> int:
    """The exit status for an error.

    Example:
        >>> exit_status(UsageError("x")), exit_status(KeyboardInterrupt()), exit_status(OSError())
        (2, 130, 1)
    """
    if isinstance(error, UsageError):
        return 2
    stopped = isinstance(error, KeyboardInterrupt) or _is_stopped_worker(error)
    if stopped or (isinstance(error, InterruptedRun) and not isinstance(error, LostProcess)):
        return 130
    return 1


def _is_stopped_worker(error: BaseException) -> bool:
    """Whether a data loader reports that SIGTERM reached its processes before it reached this one."""
    return "DataLoader worker" in str(error) and "killed by signal: Terminated" in str(error)


def complain(message: str, status: int) -> int:
    """Prints an error; returns ``status``."""
    print(f"concordet: error: {message}", file=sys.stderr, flush=True)
    return status


def sentence(error: BaseException) -> str:
    """The error as one line for the user."""
    if isinstance(error, KeyboardInterrupt) or _is_stopped_worker(error):
        return "stopped"
    text = " ".join(_original(str(error)).split())
    if isinstance(error, OSError):
        if error.strerror:
            return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        return text or type(error).__name__
    if isinstance(error, MissingPackageError):
        return text
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("concordet"):
        return f"this needs the package {error.name}; install it"
    if isinstance(error, UnicodeError):
        return f"a text file must be in UTF-8, got other bytes ({text}); --debug shows which file"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or _CPU_MEMORY in text:
        return "out of memory; use a smaller --data.batch_size, or smaller images"
    if "DataLoader worker" in text and "killed by signal" in text:
        return "a process that loads images was killed, probably for lack of memory; use fewer --data.workers"
    if text and (isinstance(error, (ValueError, InterruptedRun)) or type(error).__name__ in _NAMED):
        return text
    return f"{type(error).__name__}: {text} (unexpected error: --debug prints the traceback)"


_NAMED = ("DecompressionBombError", "DataLoaderError", "ParseError", "Error")
"""Classes of errors with self-explanatory messages, by name as their libraries (Pillow, XML, CSV) are not imported."""


_CPU_MEMORY = "DefaultCPUAllocator: can't allocate memory"
"""Part of PyTorch's message, which is a plain RuntimeError on a CPU."""


def _original(message: str) -> str:
    """The message without the traceback that a data loader adds to errors of its worker processes."""
    if "in DataLoader worker process" not in message:
        return message
    return message.strip().splitlines()[-1].split(": ", 1)[-1]
