"""Base class of data sources that can be written as a name with settings in parentheses."""

from pathlib import Path
from typing import ClassVar, Self

from envariant.core import specs
from envariant.core.environments import EnvironmentSource
from envariant.core.specs import Spec


class SpecSource(EnvironmentSource):
    """Base class of environment sources written as `base(setting=value, …)`.

    A subclass is a frozen dataclass whose fields are the settings. Fields that do not change the data, such
    as the folder of a cache, are declared with `compare=False` and are not settings.
    """

    base: ClassVar[str]
    """Registered name of the source."""
    positional: ClassVar[tuple[str, ...]] = ()
    """Names of the fields that are always written first, as values without a name."""

    @classmethod
    def from_spec(cls, spec: Spec, folder: Path | None = None) -> Self:
        """Build a source from its parsed text.

        Args:
            spec: Name and settings of the source, parsed from text.
            folder: Folder of the MNIST files. Default: `ENVARIANT_MNIST`, else the cache or a download.

        Raises:
            EnvariantError: If a setting is unknown or invalid.
        """
        return cls(**specs.fill(cls, spec, cls.positional or None))

    @property
    def name(self) -> str:
        return specs.describe(self.base, self, positional=self.positional)
