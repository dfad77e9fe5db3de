"""``concordet benchmark``."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from concordet.errors import UsageError, unknown

# what is timed; the function run(words) of the module concordet.benchmark.KIND parses and runs it
KINDS = {
    "losses": "every loss and back end over numbers of logits and shares of positives",
    "detectors": "a training step of every detector with every loss",
    "analyze": "the analysis of large results files",
}


def usage() -> str:
    """The text of ``concordet benchmark --help``."""
    lines = "\n".join(f"  {name:<10} {text}" for name, text in KINDS.items())
    return (
        "usage: concordet benchmark KIND ...\n\n"
        "Times losses, training steps and analyses, and the alternatives to them.\n\n"
        f"kinds:\n{lines}\n\nexample:\n  concordet benchmark losses\n"
    )


def run(words: list[str]) -> None:
    """Hands over to the benchmark's own options."""
    if not words or words[0] in ("-h", "--help"):
        print(usage(), end="")
        if not words:
            raise UsageError(f"benchmark must be one of {', '.join(KINDS)}, got none; name one")
        return
    if words[0] not in KINDS:
        raise UsageError(unknown("benchmark", words[0], KINDS))
    module = f"concordet.benchmark.{words[0]}"
    if find_spec("concordet.benchmark") is None or find_spec(module) is None:
        raise ValueError(
            f"the benchmark {words[0]} must be installed, got a version of concordet without it; install it again"
        )
    import_module(module).run(words[1:])
