"""Commands in processes of their own, forked from one that has imported what they need.

A new interpreter takes seconds to import Lightning; a fork takes none of them, and knows as little of this process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import TextIO

PRELOAD = [
    *("concordet.engine.training.fit", "concordet.engine.predictor", "concordet.detectors", "concordet.cli"),
    "concordet.ranking.compiled.counts",  # nothing happens where Numba is not installed
]


def forkserver() -> multiprocessing.context.ForkServerContext:
    """The way to start processes; whoever is first starts the server with the same modules."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


class Command:
    """``concordet WORDS`` in a process of its own, whose output is read like a file.

    Args:
        words: Command and options.
        cwd: Folder to run in.
        variables: Environment variables to set.
    """

    def __init__(self, *words: str, cwd: Path | None = None, variables: dict[str, str] | None = None) -> None:
        context = forkserver()
        (out, its_out), (err, its_err) = (context.Pipe(duplex=False) for _ in range(2))
        self.process = context.Process(target=_main, args=(words, its_out, its_err, cwd, variables or {}))
        self.process.start()
        its_out.close()
        its_err.close()
        self.stdout, self.stderr = _as_text(out), _as_text(err)

    def wait_for(self, text: str) -> None:
        """Reads what the process reports until it reports this."""
        said = []
        for line in self.stderr:
            if text in line:
                return
            said.append(line)
        raise AssertionError(f"the process ended before it reported {text}: {said[-5:]}")

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def wait(self, timeout: float = 200) -> tuple[int, str, str]:
        """Exit status (negative: the signal), and what is left of stdout and stderr."""
        out, err = self.stdout.read(), self.stderr.read()  # short enough for the pipes' buffers
        self.process.join(timeout)
        assert self.process.exitcode is not None, "the process has closed its output and does not end"
        return self.process.exitcode, out, err

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.stdout.close()
        self.stderr.close()


def run(*words: str, cwd: Path | None = None) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of ``concordet WORDS``."""
    return Command(*words, cwd=cwd).wait()


def _as_text(connection: multiprocessing.connection.Connection) -> TextIO:
    file = os.fdopen(os.dup(connection.fileno()), encoding="utf-8")
    connection.close()
    return file


def _main(words, out, err, cwd, variables) -> None:
    # a shell's background jobs, and what they start, ignore Ctrl-C: the command must not
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method(None, force=True)  # workers start as in a new interpreter
    for connection, number, name in ((out, 1, "stdout"), (err, 2, "stderr")):
        os.dup2(connection.fileno(), number)
        connection.close()
        setattr(sys, name, open(number, "w", encoding="utf-8", buffering=1, closefd=False))  # noqa: SIM115
    os.environ.update(variables)
    if cwd is not None:
        os.chdir(cwd)
    from concordet.cli import main

    sys.exit(main(list(words)))
