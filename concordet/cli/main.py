"""Picks the command, and turns what goes wrong into one sentence and an exit status."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from concordet.errors import DivergedError, InterruptedRun, UsageError
from concordet.version import __version__

# command: what it does; the module of its name parses and runs it
COMMANDS = {
    "demo": "train a small detector twice, with its usual and with a coupled loss, and compare",
    "train": "train a detector with the loss of your choice",
    "evaluate": "measure a trained detector: AP, score-IoU correlations, oLRP",
    "predict": "detect objects in images, as COCO results and as pictures",
    "analyze": "measure the detections of any detector from COCO files",
    "calibrate": "fit scores to expected IoUs, and keep the order of detections",
    "compare": "put evaluated runs side by side in a table and a page",
    "benchmark": "time losses, analysis and detectors",
    "list": "name the detectors, losses, measures, data sets and recipes there are",
}

EXAMPLE = "concordet train --detector fcos --size nano --loss 'focal+concordance(0.3)' --out runs/first"


def usage() -> str:
    """The text of ``concordet --help``."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return (
        "usage: concordet [--debug] COMMAND ...\n\n"
        "Makes an object detector's confidence agree with its localisation.\n\n"
        f"commands:\n{commands}\n\n"
        "options:\n"
        "  --debug    show where an error comes from\n"
        "  --version  show the version\n"
        "  --help     show this; `concordet COMMAND --help` shows a command's options\n\n"
        f"example:\n  {EXAMPLE}\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: Words after ``concordet``; those of this process when not given.

    Returns:
        The exit status: 0, 1 (failed) or 2 (bad usage).
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help"):
        print(usage(), end="")
        return 0 if words else 2
    if words[0] == "--version":
        print(f"concordet {__version__}")
        return 0
    if words[0] not in COMMANDS:
        return complain(f"there is no command {words[0]}; choose one of {', '.join(COMMANDS)}", 2)
    try:
        import_module(f"concordet.cli.{words[0]}_command").run(words[1:])
        # what is still unwritten must fail here, not after the exit status is decided
        sys.stdout.flush()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, DivergedError) and os.environ.get("LOCAL_RANK", "0") != "0":
            return 1  # every process stops for this; the first one says so
        return complain(sentence(error), 2 if isinstance(error, UsageError) else 1)
    return 0


def complain(message: str, status: int) -> int:
    """Prints an error, and gives back the exit status."""
    print(f"concordet: error: {message}", file=sys.stderr, flush=True)
    return status


def sentence(error: BaseException) -> str:
    """What went wrong in one line, for people."""
    if isinstance(error, BrokenPipeError):
        # whoever read the output has left; Python would complain once more when it closes it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return "the output was closed before everything was written"
    if isinstance(error, KeyboardInterrupt):
        return "stopped by Ctrl-C"
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("concordet"):
        return f"this needs the package {error.name}; install it with: pip install 'concordet[all]'"
    text = " ".join(_original(str(error)).split())
    if isinstance(error, (ValueError, InterruptedRun)) and text:
        return text
    return f"{type(error).__name__}: {text} (an unexpected failure: --debug shows where it comes from)"


def _original(message: str) -> str:
    """The message of an error that a worker process of a data loader raised, without the traceback it comes with."""
    if "in DataLoader worker process" not in message:
        return message
    return message.strip().splitlines()[-1].split(": ", 1)[-1]
