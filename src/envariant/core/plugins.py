"""Plug-ins: classes of other installed packages, registered as entry points.

A package registers its classes in its `pyproject.toml`:

    [project.entry-points."envariant.models"]
    my-model = "my_package.models:MyModel"

A plug-in is imported when it is used by name, or when all plug-ins are listed.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, is_dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, cast, final

from envariant.core.errors import EnvariantError, first_line

T = TypeVar("T")


@final
@dataclass(frozen=True)
class Plugins(Generic[T]):
    """Registry of the plug-ins of one kind; every plug-in is a dataclass of another package.

    Attributes:
        group: Entry-point group, such as "envariant.models".
        kind: Kind of plug-in, such as "model", for error messages.
        base: Required base class of every plug-in.
        requirement: Description of a valid plug-in, for error messages.
        fits: Additional condition, a function of the class and the name of the entry point.
    """

    group: str
    kind: str
    base: type[T]
    requirement: str
    fits: Callable[[Any, str], bool] = lambda plugin, name: True

    def names(self) -> tuple[str, ...]:
        """Return the names of all plug-ins, without importing them."""
        return tuple(self._entries())

    def load(self, name: str) -> type[T]:
        """Import the plug-in registered under a name.

        Raises:
            EnvariantError: If the plug-in cannot be imported, or does not meet `requirement`.
        """
        entry = self._entries()[name]
        where = f"{self.kind} '{name}': {entry.value}"
        try:
            plugin = entry.load()
        except Exception as error:
            # Importing runs third-party code, which may raise any exception.
            raise EnvariantError(f"{where} cannot be imported: {first_line(error)}") from error
        valid = isinstance(plugin, type) and issubclass(plugin, self.base) and is_dataclass(plugin)
        if not valid or not self.fits(plugin, name):
            raise EnvariantError(f"{where} must be {self.requirement}; got {plugin!r}")
        return cast("type[T]", plugin)

    def load_all(self, reserved: Collection[str]) -> tuple[dict[str, type[T]], tuple[str, ...]]:
        """Import all plug-ins, except those with a reserved name.

        Returns:
            The plug-ins by name, and one message for each plug-in that could not be loaded.
        """
        plugins: dict[str, type[T]] = {}
        failures: list[str] = []
        for name in self.names():
            try:
                if name not in reserved:
                    plugins[name] = self.load(name)
            except EnvariantError as error:
                failures.append(str(error))
        return plugins, tuple(failures)

    def _entries(self) -> dict[str, EntryPoint]:
        return {entry.name: entry for entry in entry_points(group=self.group)}
