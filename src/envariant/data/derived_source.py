"""Base class of data sources that change the environments of another source."""

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass

from envariant.core.environments import DefaultSettings, EnvironmentSource


@dataclass(frozen=True)
class DerivedSource(EnvironmentSource, ABC):
    """Data source with the name, default settings and columns of another source.

    Attributes:
        source: Data source whose environments are changed.
    """

    source: EnvironmentSource

    @property
    def name(self) -> str:
        return self.source.name

    def default_settings(self, algorithm: str) -> DefaultSettings:
        return self.source.default_settings(algorithm)

    @property
    def columns(self) -> Mapping[str, slice]:
        return self.source.columns
