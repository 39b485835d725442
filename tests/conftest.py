"""Setup for all tests: one thread per process and run-time checks of shape annotations."""

import os
import subprocess

# Set before PyTorch is imported, because PyTorch reads it once. The tests' matrices are tiny, and two
# processes whose threads wait for each other are about twenty times slower than one thread per process.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from beartype import BeartypeConf, beartype
from hypothesis import settings
from jaxtyping import install_import_hook

# No test depends on the speed of the machine.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")

# These functions validate shapes themselves; the tests check their error messages.
_VALIDATE_SHAPES = {"Environment.__init__", "RandomAffine.__call__"}


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check a function's annotations at every call if they contain array shapes.

    Functions without shape annotations are returned unchanged: they take names and settings from users and
    raise their own errors.
    """
    has_shapes = any("jaxtyping." in repr(hint) for hint in function.__annotations__.values())
    if not has_shapes or function.__qualname__ in _VALIDATE_SHAPES:
        return function
    return beartype(conf=BeartypeConf(is_pep484_tower=True))(function)


SOURCES = Path(__file__).parent.parent / "src"


def modules_with_shapes() -> list[str]:
    """Return the modules whose annotations may contain array shapes.

    The hook wraps every function of a module, which makes calls slower; other modules have nothing to check.
    """
    files = (f for f in SOURCES.rglob("*.py") if "jaxtyping" in f.read_text(encoding="utf-8"))
    return [".".join(f.relative_to(SOURCES).with_suffix("").parts) for f in files]


# During tests only. Nothing may import the package before this line.
install_import_hook(modules_with_shapes(), "conftest.checked")


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line in this process, because a new process takes seconds to start."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        from envariant.cli import main

        code = 0
        try:
            main([*map(str, arguments)])
        except SystemExit as end:
            code = int(end.code or 0)
        output = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, output.out, output.err)

    return run
