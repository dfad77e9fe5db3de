"""Calls functions in new Python processes, so that their peak memory and imports are measured from zero."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def call_in_new_process(function: str, what: str, **arguments: Any) -> Any:
    """The result of a function that a new Python process calls.

    Args:
        function: Module and function, such as ``"os.path:basename"``; it may print lines of its own.
        what: What is measured, for the error message.
        **arguments: Its keyword arguments; these and the result must be plain JSON.

    Raises:
        RuntimeError: The function raised an error.

    Example:
        >>> call_in_new_process("os.path:basename", "a name", p="/tmp/a.txt")
        'a.txt'
    """
    module, name = function.split(":")
    code = f"import json,sys;from {module} import {name};print(json.dumps({name}(**json.loads(sys.argv[1]))))"
    done = subprocess.run([sys.executable, "-c", code, json.dumps(arguments)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the measurement of {what} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])
