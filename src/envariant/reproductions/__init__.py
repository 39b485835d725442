"""Reproductions of published experiments, with one module per publication."""

from importlib import import_module

from envariant.core.errors import unknown_name
from envariant.reproductions.base import Reproduction

NAMES: dict[str, str] = {
    "sjtu-2023": "course report on Colored MNIST, from LeNet to V-REx; the starting point of this library",
    "irm-2019": "Invariant Risk Minimization: linear structural equation models, and Colored MNIST",
    "and-mask-2020": "AND-mask paper: spirals with signatures, and random labels on MNIST",
    "domainbed-2020": "In Search of Lost Domain Generalization: ColoredMNIST and RotatedMNIST",
    "rex-2020": "REx paper (V-REx, MM-REx): Colored MNIST by the readme's and by the paper's settings",
    "eiil-2021": "Environment inference: linear models, and Colored MNIST with several levels of label noise",
    "unit-tests-2021": "Linear unit tests for invariance discovery: six problems, five methods",
    "eqrm-2022": "Quantile Risk Minimization: Colored MNIST from an ERM start",
    "rfc-2022": "Rich feature construction: penalties on frozen features of Colored MNIST, and its inverse",
    "label-free-choice": "Choice among many candidates without test labels, on Colored MNIST",
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
