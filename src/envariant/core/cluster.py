"""Connection to a Ray cluster."""

from importlib import import_module
from typing import Any

from envariant.core.errors import EnvariantError, first_line


def connected(address: str | None) -> Any:
    """Connect to a Ray cluster, and return the module `ray`.

    Args:
        address: Address for `ray.init`. Default: the running cluster, or a new one on this machine.

    Raises:
        EnvariantError: If Ray is not installed, or the cluster cannot be reached.
    """
    try:
        ray = import_module("ray")
    except ImportError:
        raise EnvariantError(
            "executor ray: needs Ray; pip install 'envariant[ray]', or use the local executor"
        ) from None
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, include_dashboard=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            where = address or "this machine"
            raise EnvariantError(f"ray: no cluster at {where} ({first_line(error)})") from None
    return ray
