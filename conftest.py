"""Fixtures of all tests, the doctests of the package included."""

import pytest


@pytest.fixture(autouse=True)
def _registered_losses_end_with_the_test():
    """Removes losses and couplings that a test or an example registers."""
    from concordet.losses.criteria import registry

    tables = (registry.BASES, registry.COUPLINGS, registry._REGISTERED)
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)
