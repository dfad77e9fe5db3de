"""``concordet benchmark``."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from concordet.errors import UsageError, unknown

# benchmark to description; the module of this name in concordet.benchmark runs it
KINDS = {
    "losses": "ranking losses, by number of logits and share of positives",
    "detectors": "training steps of every detector with several losses",
    "analyze": "the analysis of large results files",
}


def usage() -> str:
    """The text of ``concordet benchmark --help``."""
    lines = "\n".join(f"  {name:<10} {text}" for name, text in KINDS.items())
    return (
        "usage: concordet benchmark KIND ...\n\n"
        "Measures the speed of losses, training steps and analyses, compared with alternatives.\n\n"
        f"kinds:\n{lines}\n\n"
        "concordet benchmark KIND --help shows its options.\n\n"
        "example:\n  concordet benchmark losses\n"
    )


def run(words: list[str]) -> None:
    """Runs the benchmark that the first word names."""
    if not words or words[0] in ("-h", "--help"):
        print(usage(), end="")
        if not words:
            raise UsageError(f"benchmark must be one of {', '.join(KINDS)}, got none; name one")
        return
    if words[0] not in KINDS:
        raise UsageError(unknown("benchmark", words[0], KINDS))
    module = f"concordet.benchmark.{words[0]}"
    if find_spec("concordet.benchmark") is None or find_spec(module) is None:
        raise ValueError(f"the benchmark {words[0]} is missing from this installation; install concordet again")
    import_module(module).run(words[1:])
