"""What every command must do with every input: a valid output, or one sentence that names the file; nothing else."""

import contextlib
import io
import json
import math
import re
import resource
import signal
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from concordet.cli import main
from concordet.cli.main import complain, exit_status, sentence

from ..trained import snapshot

SECONDS = 60
"""Processor time after which a case counts as one that hangs; most take less than a second.

The longest, 13 s, is a configuration that is cut off before the options of its data: 4,500 scenes are then drawn.
"""

BLOCKED = 1200
"""Seconds after which a case counts as one that waits for something; a busy machine takes a tenth of them."""

MEMORY = 6 << 30
"""Bytes of addresses that a case may take beside what the process has."""

LOW_LEVEL = r"invalid literal|could not convert|embedded null byte$|Errno|unexpected failure|object has no attribute|"
LOW_LEVEL += (
    r"not subscriptable|unhashable|codec can't|unsupported operand|not iterable|\bTraceback\b|DataLoader worker"
)
"""Words of messages that were not written for people."""

NUMBERS = re.compile(r'\b(?:x|y|cx|cy|r|d|x1|x2|y1|y2|points|width|height|data-value)="[^"]*\b(?:nan|inf)\b', re.I)
"""Attributes of plots with a number that is not finite."""


@dataclass
class Case:
    """One hostile input and what is done with it.

    Attributes:
        inputs: Folder that must not change.
        file: The file that was changed: a refusal names it.
        run: Does the work; gives the exit status, or raises.
        outputs: Files that exist and are valid after status 0, and do not exist after another.
        names: What a refusal may name instead of the file.
    """

    inputs: Path
    file: Path
    run: Callable[[], int]
    outputs: Sequence[Path] = ()
    names: Sequence[str] = field(default=())


class Hang(BaseException):
    """A case takes too long."""


def judge(case: Case) -> int:
    """Runs a case, and checks everything that must hold; the exit status."""
    before = snapshot(case.inputs)
    printed, said = io.StringIO(), io.StringIO()
    with warnings.catch_warnings(), time_limit(SECONDS), memory_limit(MEMORY):
        warnings.simplefilter("error")
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
            try:
                status = case.run()
            except Exception as error:
                status = complain(sentence(error), exit_status(error))
    assert snapshot(case.inputs) == before, "an input was changed"
    lines = said.getvalue().strip().splitlines()
    assert status in (0, 1, 2), lines
    assert not [line for line in lines if "Warning" in line or line.startswith("Traceback")], lines
    if status:
        refused(lines, case)
        assert not [path for path in case.outputs if path.exists()]
    else:
        for path in case.outputs:
            valid(path)
    return status


def refused(lines: list[str], case: Case) -> None:
    """Checks the sentence of a refusal."""
    errors = [line for line in lines if line.startswith("concordet: error: ")]
    assert len(errors) == 1, lines
    assert lines[-1] == errors[0], lines
    text = errors[0]
    assert len(text) < 1200, text
    assert any(name in text for name in (case.file.name, *case.names)), text
    assert not re.search(LOW_LEVEL, text), text


def valid(path: Path) -> None:
    """Checks an output: strict JSON of finite numbers, or a page whose plots have only finite numbers."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".html":
        assert text.rstrip().endswith("</html>")
        assert not (found := NUMBERS.search(text)), found
    else:
        finite(json.loads(text, parse_constant=lambda name: math.nan))


def finite(value: object) -> None:
    """Checks that every number of nested lists and dicts is finite."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            finite(item)
    else:
        assert not isinstance(value, float) or math.isfinite(value)


@contextlib.contextmanager
def time_limit(seconds: float):
    """Raises :class:`Hang` in a block that computes longer, or that waits for :data:`BLOCKED` seconds."""

    def stop(number, frame):
        raise Hang(f"longer than {seconds} s of processor time, or {BLOCKED} s")

    timers = {signal.SIGPROF: (signal.ITIMER_PROF, seconds), signal.SIGALRM: (signal.ITIMER_REAL, BLOCKED)}
    before = {number: signal.signal(number, stop) for number in timers}
    for timer, limit in timers.values():
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


@contextlib.contextmanager
def memory_limit(more: int):
    """Lets a block take only so many bytes of addresses more than the process has."""
    statistics = Path("/proc/self/statm")
    pages = int(statistics.read_text(encoding="ascii").split()[0]) if statistics.is_file() else None
    limits = resource.getrlimit(resource.RLIMIT_AS)
    if pages is not None:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def command(*words: object) -> Callable[[], int]:
    """Runs a command of ``concordet`` in this process."""
    return lambda: main([str(word) for word in words])
