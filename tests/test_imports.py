"""Tests of the package as a whole: import cost, public names, class hierarchy, import direction."""

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

ROOT = Path(__file__).parent.parent
MODULES = sorted(m.name for m in pkgutil.walk_packages(envariant.__path__, "envariant."))


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def modules_loaded_by(code: str) -> set[str]:
    """Return the modules that `code` loads beyond those of a bare interpreter."""
    report = "; import sys; print(*sys.modules)"
    return set(python(code + report).split()) - set(python("pass" + report).split())


@pytest.fixture(scope="module")
def imported():
    """Resolve all public names and import all modules in a new process; return the resolved names.

    The process fails if the imports change the global state of PyTorch or NumPy.
    """
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
import envariant
names = [name for name in envariant.__all__ if hasattr(envariant, name)]
for name in {MODULES}:
    __import__(name)
assert state() == before
print("names:", *names)
"""
    return python(code).rpartition("names:")[2].split()


def test_importing_the_package_loads_only_the_standard_library():
    """Import time depends on the modules loaded; benchmarks/engine.py measures it."""
    loaded = modules_loaded_by("import envariant")
    assert {m for m in loaded if m.startswith("envariant")} == {"envariant"}
    assert {m.split(".")[0] for m in loaded} <= {"envariant", *sys.stdlib_module_names}


def test_every_public_name_resolves_in_a_new_process(imported):
    assert imported == envariant.__all__
    assert dir(envariant) == sorted(envariant.__all__)


def test_unknown_name_raises_attribute_error():
    with pytest.raises(AttributeError, match=r"^module 'envariant' has no attribute 'trian'$"):
        _ = envariant.trian


@pytest.mark.parametrize("name", [m for m in MODULES if hasattr(import_module(m), "__all__")])
def test_every_exported_name_exists(name):
    module = import_module(name)
    assert [n for n in module.__all__ if not hasattr(module, n)] == []


def classes():
    for name in MODULES:
        for _, cls in inspect.getmembers(import_module(name), inspect.isclass):
            if cls.__module__ == name:
                yield cls


def test_every_class_is_either_abstract_or_final():
    every_class = list(classes())
    assert len(every_class) > 40

    def abstract(cls):
        # A base class whose methods all have defaults, such as `Part`, derives from ABC directly.
        return inspect.isabstract(cls) or ABC in cls.__bases__ or getattr(cls, "_is_protocol", False)

    wrong = {
        f"{cls.__module__}.{cls.__qualname__}"
        for cls in every_class
        if abstract(cls) == getattr(cls, "__final__", False)
    }
    assert wrong == set()


def test_no_class_extends_a_final_class():
    extended = [
        cls.__qualname__ for cls in classes() for base in cls.__mro__[1:] if base.__dict__.get("__final__")
    ]
    assert extended == []


def test_imports_point_downward():
    checker = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run(
        [checker, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONUTF8": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 kept, 0 broken" in done.stdout


def test_importing_every_module_leaves_global_state_of_pytorch_and_numpy_unchanged(imported):
    assert imported, "the process of the fixture compares the states"


def loaded_by_command(*words):
    """Return the top-level packages and `scipy.stats` that a command leaves loaded in a new process."""
    printed = python(
        f"""
import sys
from envariant.cli import main
try:
    main({list(words)})
except SystemExit as end:
    assert not end.code, end.code
print("loaded:", *sys.modules)
"""
    )
    names = printed.rpartition("loaded:")[2].split()
    return {name if name == "scipy.stats" else name.partition(".")[0] for name in names}


def test_training_without_a_report_loads_only_what_it_needs():
    loaded = loaded_by_command("train", "--data", "colored-digits", "--steps", "1", "--model", "linear")
    assert "torch" in loaded
    assert not {"matplotlib", "pandas", "sklearn", "scipy.stats"} & loaded


@pytest.mark.parametrize("words", [["algorithms"], ["algorithms", "irm"], ["runs", "list", "study"]])
def test_commands_that_only_print_load_no_large_package(words, tmp_path):
    if "study" in words:
        envariant.train("colored-digits", steps=1, model="linear", out=tmp_path / "study")
        words = [str(tmp_path / word) if word == "study" else word for word in words]
    assert not {"torch", "pandas", "sklearn", "scipy", "matplotlib"} & loaded_by_command(*words)
