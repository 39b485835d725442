"""The package from outside: quick to import, open about its names, abstract or final, one way through."""

import inspect
import os
import pkgutil
import subprocess
import sys
from abc import ABC
from importlib import import_module
from pathlib import Path

import pytest

import envariant
from helpers import cpu_of_children

ROOT = Path(__file__).parent.parent
MODULES = sorted(m.name for m in pkgutil.walk_packages(envariant.__path__, "envariant."))


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_nothing_heavy():
    heavy = ("torch", "numpy", "pandas", "scipy", "sklearn", "matplotlib", "pydantic", "jaxtyping", "jinja2")
    loaded = python("import sys, envariant; print(*{m.split('.')[0] for m in sys.modules})").split()
    assert "envariant" in loaded
    assert not set(heavy) & set(loaded)


def test_importing_the_package_takes_less_than_half_a_second():
    seconds = []
    for _ in range(3):
        start = cpu_of_children()
        python("import envariant")
        seconds.append(cpu_of_children() - start)
    assert min(seconds) < 0.5


def test_every_public_name_is_there_in_a_fresh_process():
    code = "import envariant; print(*(n for n in envariant.__all__ if hasattr(envariant, n)))"
    assert python(code).split() == envariant.__all__
    assert dir(envariant) == sorted(envariant.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"^module 'envariant' has no attribute 'trian'$"):
        _ = envariant.trian


@pytest.mark.parametrize("name", [m for m in MODULES if hasattr(import_module(m), "__all__")])
def test_every_name_that_a_package_offers_is_there(name):
    module = import_module(name)
    assert [n for n in module.__all__ if not hasattr(module, n)] == []


def classes():
    for name in MODULES:
        for _, cls in inspect.getmembers(import_module(name), inspect.isclass):
            if cls.__module__ == name:
                yield cls


def test_every_class_is_abstract_or_final_and_not_both():
    found = list(classes())
    assert len(found) > 40

    def abstract(cls):
        # A base whose methods all have a default, such as `Part`, says so by naming ABC.
        return inspect.isabstract(cls) or ABC in cls.__bases__ or getattr(cls, "_is_protocol", False)

    wrong = {
        f"{cls.__module__}.{cls.__qualname__}"
        for cls in found
        if abstract(cls) == getattr(cls, "__final__", False)
    }
    assert wrong == set()


def test_no_class_extends_a_final_one():
    extended = [
        cls.__qualname__ for cls in classes() for base in cls.__mro__[1:] if base.__dict__.get("__final__")
    ]
    assert extended == []


def test_imports_go_one_way_through_the_house():
    checker = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run(
        [checker, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONUTF8": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 kept, 0 broken" in done.stdout


def test_importing_every_module_leaves_pytorch_and_numpy_as_they_were():
    code = f"""
import numpy, torch

def state():
    numbers = numpy.random.get_state()
    return (
        torch.get_rng_state().tolist(), torch.get_default_dtype(), torch.is_grad_enabled(),
        torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(), torch.initial_seed(),
        numbers[1].tolist(), numbers[2], numpy.geterr(),
    )

torch.manual_seed(7); numpy.random.seed(7)
before = state()
for name in {MODULES}:
    __import__(name)
assert state() == before
"""
    python(code)


def test_a_run_printed_on_a_terminal_waits_for_no_pictures_and_no_encoders():
    python(
        "import sys; from envariant.cli import main; "
        "main(['train', '--data', 'colored-digits', '--steps', '1', '--model', 'linear']); "
        "assert not {'matplotlib', 'sklearn', 'scipy.stats'} & set(sys.modules)"
    )
