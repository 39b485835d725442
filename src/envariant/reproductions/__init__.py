"""Published results, each declared in one file: what was claimed, the runs, the figures, the verdicts."""

from importlib import import_module

from envariant.core.errors import unknown_name
from envariant.reproductions.base import Reproduction

NAMES: dict[str, str] = {
    "sjtu-2023": "the course report from which this library began: Colored MNIST, LeNet to V-REx",
}


def reproduction(name: str) -> Reproduction:
    """The reproduction of that name.

    Raises:
        EnvariantError: there is none; the message suggests the nearest.
    """
    if name not in NAMES:
        raise unknown_name("reproduction", name, NAMES)
    # Imported when asked for, because a list of names should cost nothing.
    return import_module(f"{__name__}.{name.replace('-', '_')}").REPRODUCTION


__all__ = ["NAMES", "Reproduction", "reproduction"]
