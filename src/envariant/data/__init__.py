"""Where environments come from, one file a source; `source(text)` finds one by its name."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from envariant.core import specs
from envariant.core.environments import EnvironmentSource
from envariant.core.errors import EnvariantError, unknown_name
from envariant.data.colored.channels import ColorChannels
from envariant.data.colored.construction import ColoredSource, Facts
from envariant.data.colored.digits import ColoredDigits
from envariant.data.colored.mnist_protocols import ColoredMNIST
from envariant.data.images.base import ImageSource
from envariant.data.images.folders import ImageFolders
from envariant.data.images.wilds import MetadataImages, Wilds


def colored_mnist(protocol: str = "irm", **settings: Any) -> ColoredMNIST:
    """Colored MNIST in the protocol `irm`, `domainbed` or `thirds`; see `ColoredMNIST` for the settings."""
    return ColoredMNIST(protocol, **settings)


def colored_digits(**settings: Any) -> ColoredDigits:
    """Colored MNIST's construction over scikit-learn's digits; see `ColoredDigits` for the settings."""
    return ColoredDigits(**settings)


_GRAY = "-grayscale"
_SOURCES: dict[str, type[ColoredMNIST] | type[ColoredDigits] | type[ColorChannels]] = {
    cls.base: cls for cls in (ColoredMNIST, ColoredDigits, ColorChannels)
}

NAMES: dict[str, str] = {
    "colored-mnist": "the real digits, protocols :irm (default), :domainbed and :thirds",
    "colored-mnist-grayscale": "the same with the colors added up: what the oracle sees",
    "colored-mnist-channels": "the real digits with the color channels as environments, as the report did",
    "colored-digits": "the same construction over scikit-learn's 1,797 digits: offline and tiny",
    "colored-digits-grayscale": "colored digits with the colors added up",
}


def _images(cls: type[ImageSource], spec: specs.Spec) -> ImageSource:
    # A single name is typed as a word, several as a tuple; a year is a name here, and no number.
    test = spec.keywords.get("test", ())
    names = tuple(map(str, test if isinstance(test, tuple) else (test,)))
    return cls(
        **specs.fill(cls, specs.Spec(spec.name, spec.positional, {**spec.keywords, "test": names}), ("root",))
    )


def _table(spec: specs.Spec) -> EnvironmentSource:
    # Encoders come with much of scikit-learn, which nobody else has to wait for.
    from envariant.data.tables import source as table_source

    return table_source.source(*spec.positional, **spec.keywords)


_OWN: dict[str, Callable[[specs.Spec], EnvironmentSource]] = {
    "table": _table,
    **{cls.base: partial(_images, cls) for cls in (ImageFolders, MetadataImages, Wilds)},
}
"""Sources of files of one's own, by name: each is made of what stands in the brackets."""


def source(text: str, *, folder: Path | None = None) -> EnvironmentSource:
    """The source that a string such as `colored-mnist:irm(label_noise=0.1)` names.

    Args:
        text: a name, a protocol after a colon, settings in brackets.
        folder: where the MNIST files are, if not to be fetched.

    Raises:
        EnvariantError: there is no such source, protocol or setting.
    """
    spec = specs.parse(text)
    if spec.name in _OWN:
        return _OWN[spec.name](spec)
    name, _, protocol = spec.name.partition(":")
    if name not in NAMES:
        raise unknown_name("data set", name, (*NAMES, *_OWN))
    cls = _SOURCES[name.removesuffix(_GRAY)]
    # A single flip is typed as a number, several as a tuple.
    keywords = {
        key: (value,) if key.endswith("flips") and isinstance(value, int | float) else value
        for key, value in spec.keywords.items()
    }
    spec = specs.Spec(spec.name, spec.positional, keywords)
    # What the name says already is no setting, nor is where the files lie.
    settings = specs.fill(cls, spec, positional=(), hidden=("protocol", "gray", "folder"))
    gray = name.endswith(_GRAY)
    if protocol and cls is not ColoredMNIST:
        raise EnvariantError(f"{name}: has no protocols; got ':{protocol}'")
    if cls is ColoredDigits:
        return ColoredDigits(**settings, gray=gray)
    if cls is ColorChannels:
        return ColorChannels(**settings, folder=folder)
    return ColoredMNIST(protocol or "irm", **settings, gray=gray, folder=folder)


__all__ = [
    "NAMES",
    "ColorChannels",
    "ColoredDigits",
    "ColoredMNIST",
    "ColoredSource",
    "Facts",
    "ImageFolders",
    "MetadataImages",
    "Wilds",
    "colored_digits",
    "colored_mnist",
    "source",
]
