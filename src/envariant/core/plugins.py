"""Plug-ins: classes that other installed packages register as entry points.

A package names them in its `pyproject.toml`:

    [project.entry-points."envariant.models"]
    my-model = "my_package.models:MyModel"

A plug-in is imported when it is named, or when all plug-ins are listed.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, is_dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, final

from envariant.core.errors import EnvariantError, first_line

T = TypeVar("T")


@final
@dataclass(frozen=True)
class Plugins(Generic[T]):
    """Dataclasses of one kind that other packages register.

    Attributes:
        group: The entry-point group.
        kind: What a plug-in is, such as "model"; used in error messages.
        base: Class from which every plug-in inherits.
        requirement: What a plug-in must be, in words.
        fits: Further condition on the class and the name of its entry point.
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
        """Import the plug-in of a name.

        Raises:
            EnvariantError: If it cannot be imported, or is not such a class.
        """
        entry = self._entries()[name]
        where = f"{self.kind} '{name}': {entry.value}"
        try:
            plugin: Any = entry.load()
        except Exception as error:
            # Importing runs the code of a stranger, which may raise anything.
            raise EnvariantError(f"{where} cannot be imported: {first_line(error)}") from error
        valid = isinstance(plugin, type) and issubclass(plugin, self.base) and is_dataclass(plugin)
        if not valid or not self.fits(plugin, name):
            raise EnvariantError(f"{where} must be {self.requirement}; got {plugin!r}")
        return plugin

    def load_all(self, reserved: Collection[str]) -> tuple[dict[str, type[T]], tuple[str, ...]]:
        """Import all plug-ins, except those with a reserved name.

        Returns:
            The plug-ins by name, and one line for each that failed.
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
