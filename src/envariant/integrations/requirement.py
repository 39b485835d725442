"""Import optional libraries, with an error message that names the command that installs them."""

from importlib import import_module
from typing import Any

from envariant.core.errors import EnvariantError


def required(module: str, extra: str) -> Any:
    """Import a module of an optional library.

    Args:
        module: Name of the module.
        extra: Extra of Envariant that installs the library.

    Raises:
        EnvariantError: If the library is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        # Another missing module means that the library itself is incomplete.
        reason = "" if error.name in (module, library) else f" completely (no module named '{error.name}')"
        raise EnvariantError(
            f'{library} is not installed{reason}; pip install "envariant[{extra}]"'
        ) from None
