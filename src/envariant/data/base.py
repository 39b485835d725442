"""Base class of data sources that can be specified by a name with settings in parentheses."""

from pathlib import Path
from typing import ClassVar, Self

from envariant.core import specs
from envariant.core.environments import EnvironmentSource
from envariant.core.specs import Spec


class SpecSource(EnvironmentSource):
    """Base class of data sources that are written as a string `NAME(setting=value, …)`.

    A subclass is a frozen dataclass whose fields are the settings. Fields that do not affect the data, such
    as the folder of a cache, are declared with `compare=False` and are not settings.
    """

    base: ClassVar[str]
    """Registered name of the source."""
    positional: ClassVar[tuple[str, ...]] = ()
    """Names of the fields that are always written first, as values without a name."""

    @classmethod
    def from_spec(cls, spec: Spec, folder: Path | None = None) -> Self:
        """Build a data source from its parsed specification.

        Args:
            spec: Name and settings of the data source.
            folder: Folder of the MNIST files. Default: the folder in the environment variable
                `ENVARIANT_MNIST`; if it is not set, the files are read from the cache or downloaded.

        Raises:
            EnvariantError: If a setting is unknown or invalid.
        """
        return cls(**specs.fill(cls, spec, cls.positional or None))

    @property
    def name(self) -> str:
        return specs.describe(self.base, self, positional=self.positional)
