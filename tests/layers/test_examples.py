"""Examples in the docstrings of layers run, and every public name has one."""

import doctest
import importlib
import pkgutil

import pytest

import pyclattn.layers

MODULES = [f"pyclattn.layers.{info.name}" for info in pkgutil.iter_modules(pyclattn.layers.__path__)]
PUBLIC = sorted(set(pyclattn.layers.__all__) - {"Heads"})  # a tuple of three arrays


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_an_example(name):
    found = doctest.DocTestFinder(recurse=False).find(getattr(pyclattn.layers, name), name)
    assert any(test.examples for test in found), name
