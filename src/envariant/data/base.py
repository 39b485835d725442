"""Sources that are written as text: a name with settings in parentheses."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Self, cast

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

    @classmethod
    def from_spec(cls, spec: Spec, folder: Path | None = None) -> Self:
        """Build the source that a text names.

        Args:
            spec: The parsed text.
            folder: Folder of the MNIST files, for sources made of them; None finds or fetches them.

        Raises:
            EnvariantError: If a setting is unknown or invalid.
        """
        del folder
        return cls(**specs.fill(cls, spec))

    @property
    def name(self) -> str:
        settings = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(cast("Any", self))
            if field.compare and field.init and getattr(self, field.name) != field.default
        }
        return str(Spec(self.base, (), settings))
