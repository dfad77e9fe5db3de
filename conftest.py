"""Fixtures of all tests, the doctests of the package included."""

import sys

import pytest


@pytest.fixture(autouse=True)
def _registered_names_end_with_the_test():
    """Removes losses, couplings and detectors that a test or an example registers."""
    from concordet.losses.criteria import registry

    tables = [registry.BASES, registry.COUPLINGS, registry._REGISTERED]
    detectors = sys.modules.get("concordet.detectors.architectures.registry")
    if detectors is not None:
        tables.append(detectors.DETECTORS)
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)
