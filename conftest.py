"""Fixtures of all tests, the doctests of the package included."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def _registered_names_restored() -> Iterator[None]:
    """Removes losses, couplings, detectors and data sets that are registered inside."""
    from concordet.data import registry as data_sets
    from concordet.losses.criteria import registry

    tables = [registry.BASES, registry.COUPLINGS, registry._REGISTERED, data_sets._DATASETS]
    detectors = sys.modules.get("concordet.detectors.architectures.registry")
    if detectors is not None:
        tables.append(detectors.DETECTORS)
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.fixture(autouse=True, scope="module")
def _registered_names_end_with_the_module():
    """What fixtures of a module register."""
    with _registered_names_restored():
        yield


@pytest.fixture(autouse=True)
def _registered_names_end_with_the_test(_registered_names_end_with_the_module):
    """What a test or an example registers."""
    with _registered_names_restored():
        yield
