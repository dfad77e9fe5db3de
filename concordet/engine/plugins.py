"""Import of users' Python files and modules that register losses, couplings and detectors."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from concordet.errors import UsageError


def import_plugins(names: Iterable[str] | None) -> None:
    """Imports Python files (``NAME.py``) and modules, each once per process.

    Plugins are executed: names come from the command line and from a run's ``config.yaml``, never from a checkpoint.

    Raises:
        UsageError: there is no such file or module.
        ValueError: its code raises an error, which the message names.
    """
    for name in names or ():
        try:
            _import_file(Path(name)) if _is_file_name(name) else _import_module(name)
        except UsageError:
            raise
        except Exception as error:
            raise ValueError(
                f"plugins must be Python files or modules that can be imported, got {name}: "
                f"{type(error).__name__}: {error}; correct it"
            ) from error


def absolute(names: Iterable[str] | None) -> list[str] | None:
    """The same plugins with absolute file names, so that a run can find them from another folder."""
    if names is None:
        return None
    return [str(Path(name).absolute()) if _is_file_name(name) else name for name in names]


def _is_file_name(name: str) -> bool:
    return name.endswith(".py") or "/" in name


def _import_file(path: Path) -> None:
    path = path.resolve()
    if not path.is_file():
        raise UsageError(f"plugins must be Python files or modules, got {path}, which does not exist; check the name")
    name = f"concordet_plugin_{path.stem}_{abs(hash(str(path)))}"
    if name in sys.modules:
        return
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"plugins must be Python files ending in .py or modules, got {path}; rename it")
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _import_module(name: str) -> None:
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise UsageError(
            f"plugins must be Python files or modules, got {name}, which does not exist; write FILE.py for a file"
        ) from error
    finally:
        sys.path.remove(here)
