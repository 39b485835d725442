"""Where environments come from, one file a source; `source(text)` finds one by its name."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from envariant import specs
from envariant.data.colored_digits import ColoredDigits
from envariant.data.colored_mnist import ColoredMNIST
from envariant.data.coloring import ColoredSource, Facts
from envariant.environments import EnvironmentSource
from envariant.errors import EnvariantError, unknown_name


def colored_mnist(protocol: str = "irm", **settings: Any) -> ColoredMNIST:
    """Colored MNIST in the protocol `irm`, `domainbed` or `thirds`; see `ColoredMNIST` for the settings."""
    return ColoredMNIST(protocol, **settings)


def colored_digits(**settings: Any) -> ColoredDigits:
    """Colored MNIST's construction over scikit-learn's digits; see `ColoredDigits` for the settings."""
    return ColoredDigits(**settings)


_SOURCES: dict[str, Callable[..., EnvironmentSource]] = {
    "colored-mnist": ColoredMNIST,
    "colored-mnist-grayscale": lambda *a, **k: ColoredMNIST(*a, **k, gray=True),
    "colored-digits": ColoredDigits,
    "colored-digits-grayscale": lambda *a, **k: ColoredDigits(*a, **k, gray=True),
}

NAMES: dict[str, str] = {
    "colored-mnist": "the real digits, protocols :irm (default), :domainbed and :thirds",
    "colored-mnist-grayscale": "the same with the colours added up: what the oracle sees",
    "colored-digits": "the same construction over scikit-learn's 1,797 digits: offline and tiny",
    "colored-digits-grayscale": "colored digits with the colours added up",
}


def source(text: str, *, folder: Path | None = None) -> EnvironmentSource:
    """The source that a string such as `colored-mnist:irm(label_noise=0.1)` names.

    Args:
        text: a name, a protocol after a colon, settings in brackets.
        folder: where the MNIST files are, if not to be fetched.

    Raises:
        EnvariantError: there is no such source, protocol or setting.
    """
    spec = specs.parse(text)
    name, _, protocol = spec.name.partition(":")
    if name not in _SOURCES:
        raise unknown_name("data set", name, _SOURCES)
    cls = ColoredMNIST if name.startswith(ColoredMNIST.base) else ColoredDigits
    settings = specs.fill(cls, specs.Spec(spec.name, (), spec.keywords), positional=())
    if spec.positional:
        raise EnvariantError(f"{name}: settings need a key, as in {name}(label_noise=0.1)")
    settings.pop("gray", None)
    if protocol and cls is not ColoredMNIST:
        raise EnvariantError(f"{name}: has no protocols; got ':{protocol}'")
    if cls is ColoredMNIST:
        settings = {"folder": folder} | settings | ({"protocol": protocol} if protocol else {})
    for f in dataclasses.fields(cls):
        # A single flip is typed as a number, several as a tuple.
        if f.name.endswith("flips") and isinstance(settings.get(f.name), int | float):
            settings[f.name] = (settings[f.name],)
    return _SOURCES[name](**settings)


__all__ = [
    "NAMES",
    "ColoredDigits",
    "ColoredMNIST",
    "ColoredSource",
    "Facts",
    "colored_digits",
    "colored_mnist",
    "source",
]
