"""``concordet benchmark``."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from concordet.errors import UsageError

# what is timed; the module of its name in concordet.benchmark parses and runs it, with a function run(words)
KINDS = {
    "losses": "every loss and back end over numbers of logits and shares of positives",
    "detectors": "a training step of every detector with every loss",
    "analyze": "the analysis of large results files",
}


def usage() -> str:
    """The text of ``concordet benchmark --help``."""
    lines = "\n".join(f"  {name:<10} {text}" for name, text in KINDS.items())
    return (
        "usage: concordet benchmark KIND ...\n\nTimes parts of concordet and what one would use instead.\n\n"
        f"kinds:\n{lines}\n\nexample:\n  concordet benchmark losses\n"
    )


def run(words: list[str]) -> None:
    """Hands over to the benchmark's own options."""
    if not words or words[0] in ("-h", "--help"):
        print(usage(), end="")
        if not words:
            raise UsageError(f"name what to time: {', '.join(KINDS)}")
        return
    if words[0] not in KINDS:
        raise UsageError(f"there is no benchmark {words[0]}; choose one of {', '.join(KINDS)}")
    module = f"concordet.benchmark.{words[0]}"
    if find_spec("concordet.benchmark") is None or find_spec(module) is None:
        raise ValueError(f"the benchmark {words[0]} is not part of this version of concordet")
    import_module(module).run(words[1:])
