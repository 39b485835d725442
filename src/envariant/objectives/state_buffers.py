"""State of an algorithm as the buffers of a PyTorch module."""

from collections.abc import Mapping
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from envariant.algorithms.base import State

# Separates the keys of nested mappings; names of buffers must not contain dots.
_SEPARATOR = "/"


@final
class StateBuffers(nn.Module):
    """State of an algorithm, stored as buffers that move and are saved with the module.

    Before the first batch, there are no buffers; `load_state_dict` then creates those of the saved state.
    """

    def tree(self) -> State:
        """Return the state: nested mappings of tensors."""
        tree: dict[str, Any] = {}
        for name, value in self.named_buffers(recurse=False):
            *parents, key = name.split(_SEPARATOR)
            inner = tree
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[key] = value
        return tree

    def replace(self, state: State) -> None:
        """Replace all buffers.

        Args:
            state: New state: nested mappings of tensors.
        """
        # New tensors instead of a copy in place, because the graph of an earlier loss may still need the old.
        self._buffers.clear()
        for name, value in flattened(state).items():
            self.register_buffer(name, value.detach())

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        saved = {key.removeprefix(prefix): v for key, v in state_dict.items() if key.startswith(prefix)}
        self._buffers.clear()
        for name, value in saved.items():
            self.register_buffer(name, cast("Tensor", value).detach().clone())


def flattened(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """Return the tensors of nested mappings by path, such as "0/log_weights".

    Args:
        tree: Nested mappings of tensors.
        prefix: Path of the tree.
    """
    flat: dict[str, Tensor] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        flat |= {path: value} if isinstance(value, Tensor) else flattened(value, f"{path}{_SEPARATOR}")
    return flat


def updated(initial: Mapping[str, Any], saved: Mapping[str, Any], like: Tensor) -> dict[str, Any]:
    """Return an initial state with the values of a saved state, which may have fewer environments.

    Args:
        initial: State for all environments.
        saved: State for the first environments; entries of later environments keep their initial values.
        like: Tensor on the device of the result.
    """

    def value(new: Any, old: Any) -> Any:
        if isinstance(new, Mapping):
            inner = cast("Mapping[str, Any]", new)
            return {key: value(each, (old or {}).get(key)) for key, each in inner.items()}
        if old is None or old.shape == new.shape:
            return (new if old is None else old).to(like.device)
        return torch.cat([old.to(like.device), new[len(old) :].to(like.device)])

    return value(initial, saved)
