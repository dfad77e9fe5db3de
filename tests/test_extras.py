"""Errors about packages of extras that are not installed."""

from importlib import metadata

import pytest

from concordet.errors import MissingPackageError, requires

REQUIREMENTS = [
    "torch>=2.6",
    'hotcoco<1.4,>=1.3; extra == "measures"',
    'timm>=1.0; extra == "backbones"',
    'concordet[detectors]; extra == "backbones"',
    'concordet[cli,measures]; extra == "report"',
    'concordet[detectors,report]; extra == "train"',
]
"""Some of those in the metadata of a wheel."""


@pytest.mark.parametrize(
    ("outer", "sentence"),
    [
        ("train", "all of it needs the package hotcoco; install it with: pip install 'concordet[train]'"),
        ("report", "all of it needs the package hotcoco; install it with: pip install 'concordet[report]'"),
        ("backbones", "a part needs the package hotcoco; install it with: pip install 'concordet[measures]'"),
        ("measures", "a part needs the package hotcoco; install it with: pip install 'concordet[measures]'"),
    ],
)
def test_the_error_names_the_extra_of_the_whole_where_it_installs_that_of_the_part(outer, sentence, monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda package: REQUIREMENTS)
    with pytest.raises(MissingPackageError) as error, requires("all of it", outer), requires("a part", "measures"):
        raise ModuleNotFoundError("No module named 'hotcoco'", name="hotcoco")
    assert str(error.value) == sentence
    assert error.value.name == error.value.package == "hotcoco"


def test_a_module_of_no_extra_raises_as_it_is(monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda package: REQUIREMENTS)
    with pytest.raises(ModuleNotFoundError) as error, requires("all of it", "train"):
        raise ModuleNotFoundError("No module named 'plugin'", name="plugin")
    assert not isinstance(error.value, MissingPackageError)
