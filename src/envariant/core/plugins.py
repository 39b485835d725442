"""Plug-ins: classes and objects of other installed packages, registered as entry points.

A package registers plug-ins in its `pyproject.toml`:

    [project.entry-points."envariant.models"]
    my-model = "my_package.models:MyModel"

A plug-in is imported when it is used by name, or when all plug-ins are listed. A plug-in that cannot be
imported does not affect the others.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, is_dataclass
from importlib.metadata import EntryPoint, distributions
from typing import Generic, TypeVar, cast, final

from envariant.core.errors import EnvariantError, first_line, unknown_name

ALGORITHMS = "envariant.algorithms"
"""Entry-point group in which other packages register recipes, as `name = "module:recipe"`."""

T = TypeVar("T")


@final
@dataclass(frozen=True)
class Plugins(Generic[T]):
    """Registry of the plug-ins of one kind.

    Attributes:
        group: Entry-point group, such as "envariant.models".
        kind: Kind of plug-in, such as "model", for error messages.
        requirement: Description of a valid plug-in, for error messages.
        fits: Function that returns whether a plug-in is valid; its arguments are the plug-in and the name of
            the entry point.
    """

    group: str
    kind: str
    requirement: str
    fits: Callable[[object, str], bool]

    def names(self) -> tuple[str, ...]:
        """Return the names of all plug-ins, without importing them."""
        return tuple(entries_of(self.group)[0])

    def load(self, name: str, built_in: Collection[str] = ()) -> T:
        """Import a plug-in, given its registered name.

        Args:
            name: Name of the entry point.
            built_in: Names of the library's built-in objects of this kind, which the error for an unknown
                name also lists.

        Raises:
            EnvariantError: If the name is unknown, or the plug-in cannot be imported or does not meet
                `requirement`.
        """
        entries, _ = entries_of(self.group)
        if name not in entries:
            raise unknown_name(self.kind, name, (*built_in, *entries))
        where = f"{self.kind} '{name}': {entries[name].value}"
        try:
            plugin = entries[name].load()
            problem = "" if self.fits(plugin, name) else f"must be {self.requirement}; got {plugin!r}"
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            # Importing runs the code of another package, which may raise anything, also SystemExit.
            reason = first_line(error) if isinstance(error, Exception) else repr(error)
            raise EnvariantError(f"{where} cannot be imported: {reason}") from error
        if problem:
            raise EnvariantError(f"{where} {problem}")
        return cast("T", plugin)

    def load_all(self, reserved: Collection[str]) -> tuple[dict[str, T], tuple[str, ...]]:
        """Import all plug-ins, except those with a reserved name.

        Returns:
            The plug-ins by name; and one message for each plug-in that could not be loaded, or package whose
                entry points could not be read.
        """
        plugins: dict[str, T] = {}
        entries, failures = entries_of(self.group)
        for name in entries:
            try:
                if name not in reserved:
                    plugins[name] = self.load(name)
            except EnvariantError as error:
                failures.append(str(error))
        return plugins, tuple(failures)


def entries_of(group: str) -> tuple[dict[str, EntryPoint], list[str]]:
    """Return the entry points of a group by name, and a message for each package with damaged metadata."""
    entries: dict[str, EntryPoint] = {}
    # A package that is found in two ways is reported once.
    failures: dict[str, None] = {}
    for package in distributions():
        try:
            for entry in package.entry_points:
                if entry.group == group:
                    entries.setdefault(entry.name, entry)
        except Exception as error:
            place = getattr(package, "_path", "an installed package")
            failures[f"{place}: its entry points cannot be read: {first_line(error)}"] = None
    return entries, list(failures)


def is_dataclass_of(plugin: object, base: type) -> bool:
    """Return whether a plug-in is a dataclass and a subclass of `base`."""
    return isinstance(plugin, type) and issubclass(plugin, base) and is_dataclass(plugin)
