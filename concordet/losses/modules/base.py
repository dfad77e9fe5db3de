"""Base class of all loss modules."""

from __future__ import annotations

from typing import Any

from torch import nn


class FunctionModule(nn.Module):
    """A module whose attributes are the keyword arguments of its function."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self._names = tuple(settings)
        for name, value in settings.items():
            setattr(self, name, value)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self._settings.items() if name != "group")

    @property
    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._names}
