"""Plug-ins: classes and objects that other installed packages register as entry points.

A package names them in its `pyproject.toml`:

    [project.entry-points."envariant.models"]
    my-model = "my_package.models:MyModel"

A plug-in is imported when it is named, or when all plug-ins are listed.
"""

from collections.abc import Callable, Collection
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from envariant.core.errors import EnvariantError

T = TypeVar("T")


def plugin_names(group: str) -> tuple[str, ...]:
    """Return the names of all plug-ins of a group, without importing them."""
    return tuple(_entry_points(group))


def load_plugin(group: str, kind: str, name: str, accepts: Callable[[Any], bool], requirement: str) -> Any:
    """Import a plug-in.

    Args:
        group: The entry-point group.
        kind: What the plug-in is, such as "model"; used in error messages.
        name: One of `plugin_names(group)`.
        accepts: Function that returns whether the imported object can be used.
        requirement: What `accepts` requires, in words.

    Raises:
        EnvariantError: If the plug-in cannot be imported or is not accepted.
    """
    entry = _entry_points(group)[name]
    try:
        plugin = entry.load()
    except Exception as error:
        # Importing runs the code of a stranger, which may raise anything.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EnvariantError(f"{kind} '{name}': {entry.value} cannot be imported: {reason}") from error
    if not accepts(plugin):
        raise EnvariantError(f"{kind} '{name}': {entry.value} must be {requirement}; got {plugin!r}")
    return plugin


def load_plugins(
    group: str, load: Callable[[str], T], reserved: Collection[str]
) -> tuple[dict[str, T], tuple[str, ...]]:
    """Import all plug-ins of a group.

    Args:
        group: The entry-point group.
        load: Function that imports and checks the plug-in of a name; raises `EnvariantError`.
        reserved: Names that plug-ins cannot have; such plug-ins are ignored.

    Returns:
        The plug-ins by name, and one line for each that failed.
    """
    plugins: dict[str, T] = {}
    failures: list[str] = []
    for name in (name for name in plugin_names(group) if name not in reserved):
        try:
            plugins[name] = load(name)
        except EnvariantError as error:
            failures.append(str(error))
    return plugins, tuple(failures)


def _entry_points(group: str) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=group)}
