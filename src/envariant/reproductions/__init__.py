"""Reproductions of published experiments, with one module per publication."""

from importlib import import_module

from envariant.core.errors import unknown_name
from envariant.reproductions.base import Reproduction

NAMES: dict[str, str] = {
    "irm-2019": "Invariant Risk Minimization: linear structural equation models, and Colored MNIST",
    "eqrm-2022": "Quantile Risk Minimization: Colored MNIST from an ERM start",
    "domainbed-2020": "In Search of Lost Domain Generalization: ColoredMNIST and RotatedMNIST",
    "sjtu-2023": "course report on Colored MNIST, from LeNet to V-REx, with which this library began",
}


def reproduction(name: str) -> Reproduction:
    """Return the reproduction with a given name.

    Raises:
        EnvariantError: If the name is unknown; the message suggests the most similar name.
    """
    if name not in NAMES:
        raise unknown_name("reproduction", name, NAMES)
    # Imported on demand, so that listing the names is cheap.
    return import_module(f"{__name__}.{name.replace('-', '_')}").REPRODUCTION


__all__ = ["NAMES", "Reproduction", "reproduction"]
