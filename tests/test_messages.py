"""Error messages have one grammar: `<name> must be <what>, got <value>; <what to do>`, or a fault and its fix."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "concordet"

MUST = re.compile(r"\bmust\b.*\bgot\b", re.DOTALL)
FIX = re.compile(r"; [^;]+$", re.DOTALL)
"""What to do, behind the only or last semicolon: `{file}: the data set is empty; name another split`."""

PROTOCOL = {"AttributeError", "IndexError", "SystemExit"}
"""Exceptions whose text Python's protocols have."""

OTHERS = {
    "{}: {}": "another message behind the file's name",
    "{}{}{}{}": "another message with the file's name",
    "{}, got {}": "the first half is a message that must be",
    "{} {} (from 0): segmentation {}": "the rest is a fault of mask_fault",
    "the measurement of {} failed: {}": "another process's message",
    "digit scenes need scikit-learn's handwritten digits: pip install 'concordet[train]'": "a missing extra",
    "a value of another type": "a reason in file_dataset's message",
    "a bbox of another length, or an unknown id": "a reason in file_dataset's message",
    "an iscrowd that is neither 0 nor 1": "a reason in file_dataset's message",
    "more than {} values in a mapping": "a reason in read_yaml's message",
    "its sides are {} and {} pixels, more than {} to 1": "a reason in open_image's message",
    "its pixels are floating point numbers, whose range is not known": "a reason in open_image's message",
}
"""Messages of other forms, with why."""


def text(node: ast.expr) -> str | None:
    """The text of a string, an f-string (with {} for its values) or their sum; None where it is made elsewhere."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        halves = text(node.left), text(node.right)
        return None if None in halves else "".join(halves)
    return None


def raised(path: Path) -> list[tuple[str, str]]:
    """(exception, message) of every raise of a file whose message stands there."""
    messages = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            name = ast.unparse(node.exc.func).split(".")[-1]
            if (message := text(node.exc.args[0])) is not None and name not in PROTOCOL:
                messages.append((name, message))
    return messages


FILES = {str(p.relative_to(PACKAGE)): messages for p in sorted(PACKAGE.rglob("*.py")) if (messages := raised(p))}


def faults(message: str) -> list[str]:
    """What a message has against the grammar."""
    checks = {
        "neither `must ..., got ...` nor a fix behind `;`": MUST.search(message) or FIX.search(message),
        "ends with a full stop": not message.rstrip().endswith("."),
        "more than one sentence": not re.search(r"[.!?] [A-Z]", message),
        "other words than `must` and `got`": not re.search(r"\b(?:should|expected|has to be|needs to be)\b", message),
    }
    return [fault for fault, holds in checks.items() if not holds]


@pytest.mark.parametrize("file", FILES)
def test_messages_have_the_grammar(file):
    against = {message: faults(message) for _, message in FILES[file] if message not in OTHERS}
    assert {message: found for message, found in against.items() if found} == {}


def test_the_exceptions_are_raised():
    assert set(OTHERS) <= {message for messages in FILES.values() for _, message in messages}


@pytest.mark.parametrize(
    ("message", "n_faults"),
    [
        ("tau must be an IoU in [0, 1), got {}", 0),
        ("{}: the data set is empty; name another split", 0),
        ("expected one value, got {}", 2),
        ("tau must be an IoU, got {}.", 1),
        ("{} is wrong", 1),
        ("tau must be positive, got {}. Correct it", 1),
    ],
)
def test_the_grammar_sees_what_it_should(message, n_faults):
    assert len(faults(message)) == n_faults


def test_the_sources_have_hundreds_of_messages():
    assert sum(map(len, FILES.values())) > 300
