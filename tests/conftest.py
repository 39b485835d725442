"""What holds for every test: one thread a process, and annotations that are checked as they are written."""

import os
import subprocess

# Before PyTorch is imported, because it reads this once. The tests' matrices are tiny, and two processes
# that spin waiting for each other's threads are some twenty times slower than one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from typing import Any

import pytest
from beartype import BeartypeConf, beartype
from hypothesis import settings
from jaxtyping import install_import_hook

# No test depends on the speed of the machine.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")

# These refuse wrong shapes in their own words, which the tests read.
_OWN_WORDS = {"Environment.__init__", "RandomAffine.__call__"}


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its annotations checked at every call, if they tell the shape of an array.

    What tells no shape is left alone: names and settings come from users, and are refused in words.
    """
    shaped = any("jaxtyping." in repr(hint) for hint in function.__annotations__.values())
    if not shaped or function.__qualname__ in _OWN_WORDS:
        return function
    return beartype(conf=BeartypeConf(is_pep484_tower=True))(function)


# For the whole package, while the tests run; users do not pay for it. Nothing may import the package
# before this line.
install_import_hook("envariant", "conftest.checked")


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line in this process, for a new one takes seconds to start."""

    def called(*arguments: object) -> subprocess.CompletedProcess[str]:
        from envariant.cli import main

        code = 0
        try:
            main([*map(str, arguments)])
        except SystemExit as end:
            code = int(end.code or 0)
        said = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, said.out, said.err)

    return called
