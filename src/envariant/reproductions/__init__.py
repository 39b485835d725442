"""Published results, each declared in one file: what was claimed, the runs, the figures, the verdicts."""

from envariant.errors import unknown_name
from envariant.reproductions.contract import Reproduction

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
    # Imported here, because a list of names should cost nothing.
    from envariant.reproductions.sjtu_2023 import SJTU_2023

    return {SJTU_2023.name: SJTU_2023}[name]


__all__ = ["NAMES", "Reproduction", "reproduction"]
