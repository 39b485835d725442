"""The examples in the docstrings of `envariant.analysis` run, and every public function has one."""

import doctest
import inspect
import pkgutil
import subprocess
import sys
from importlib import import_module

import pytest

from envariant import analysis

MODULES = [f"envariant.analysis.{m.name}" for m in pkgutil.iter_modules(analysis.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    failures, _ = doctest.testmod(import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert not failures


def test_every_public_function_has_an_example_and_is_exported():
    for name in analysis.__all__:
        public = getattr(analysis, name)
        assert name in dir(analysis)
        if inspect.isfunction(public):
            assert ">>>" in (public.__doc__ or ""), name


def test_importing_all_modules_loads_no_torch_and_no_other_package():
    code = f"import sys, {', '.join(MODULES)}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    packages = {name for name in loaded.split() if name.startswith("envariant.")}
    assert "torch" not in loaded.split()
    assert {name.split(".")[1] for name in packages} == {"analysis", "core"}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = analysis.nothing
