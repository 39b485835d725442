"""Base class of data sources that are written around another data source, as in `by-group(DATA, color)`."""

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from envariant.core import specs
from envariant.core.environments import DefaultSettings, EnvironmentSource
from envariant.core.errors import EnvariantError
from envariant.data import source as source_named
from envariant.data.base import SpecSource


@dataclass(frozen=True)
class WrappedSource(SpecSource, ABC):
    """Data source with settings of its own and the default settings and columns of another source.

    Attributes:
        source: Data source, or its name with settings.
    """

    positional: ClassVar[tuple[str, ...]] = ("source",)
    source: Any

    def __post_init__(self) -> None:
        specs.validate(self, self.base, only=self._own())
        source = source_named(self.source) if isinstance(self.source, str) else self.source
        if not isinstance(source, EnvironmentSource):
            raise EnvariantError(
                f"{self.base}: source must be a data source or its name; got {self.source!r}"
            )
        object.__setattr__(self, "source", source)

    @classmethod
    def from_spec(cls, spec: specs.Spec, folder: Path | None = None) -> Self:
        settings = specs.fill(cls, spec, cls.positional)
        settings["source"] = source_named(str(settings["source"]), folder=folder)
        return cls(**settings)

    @property
    def name(self) -> str:
        settings = {key: getattr(self, key) for key in self._own() if key not in self.positional}
        changed = {key: value for key, value in settings.items() if value != getattr(type(self), key)}
        return self._described(self.source.name, changed)

    def identity(self) -> str:
        settings = {key: getattr(self, key) for key in self._own() if key not in self.positional}
        return self._described(self.source.identity(), settings)

    def default_settings(self, algorithm: str) -> DefaultSettings:
        return self.source.default_settings(algorithm)

    @property
    def columns(self) -> Mapping[str, slice]:
        return self.source.columns

    @classmethod
    def _own(cls) -> tuple[str, ...]:
        """Return the names of the settings other than the wrapped source."""
        return tuple(field.name for field in fields(cls) if field.name != "source")

    def _described(self, source: str, settings: Mapping[str, Any]) -> str:
        others = tuple(getattr(self, key) for key in self.positional[1:])
        return str(specs.Spec(self.base, (source, *others), settings))
