"""Sources that are written as text: a name with settings in parentheses."""

from pathlib import Path
from typing import ClassVar, Self

from envariant.core import specs
from envariant.core.environments import EnvironmentSource
from envariant.core.specs import Spec


class SpecSource(EnvironmentSource):
    """Environment source written `base(setting=value, …)`.

    A subclass is a frozen dataclass. Its fields are the settings, except those with `compare=False`, such as
    the folder of a cache, which do not change the data.
    """

    base: ClassVar[str]
    """Name under which the source is registered."""
    positional: ClassVar[tuple[str, ...]] = ()
    """Fields that are always written, first and without a key."""

    @classmethod
    def from_spec(cls, spec: Spec, folder: Path | None = None) -> Self:
        """Build the source that a text names; `folder` holds the MNIST files, None finds or fetches them.

        Raises:
            EnvariantError: If a setting is unknown or invalid.
        """
        return cls(**specs.fill(cls, spec, cls.positional or None))

    @property
    def name(self) -> str:
        return specs.describe(self.base, self, positional=self.positional)
