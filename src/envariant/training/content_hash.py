"""Content hashes of user-defined objects, such as models and optimizers."""

import hashlib
import inspect
from types import FunctionType
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from envariant.algorithms.identity import source_digest
from envariant.core.losses import closure_content, content
from envariant.training.option_text import text_of


def content_hash(value: object) -> str:
    """Return a hash of the structure, weights and source code of a user-defined model or optimizer.

    Args:
        value: Module, function, class or frozen dataclass.
    """
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(value, nn.Module):
        digest.update(repr(value).encode())
        for name, tensor in value.state_dict().items():
            # A lazy layer has no weights yet.
            own = b"" if is_lazy(tensor) else tensor.detach().cpu().contiguous().numpy().tobytes()
            digest.update(name.encode() + own)
        is_loss = any(cls.__module__ == "torch.nn.modules.loss" for cls in type(value).__mro__)
        # The settings of PyTorch's losses are not part of their text.
        digest.update(content(value).encode() if is_loss else b"")
        return digest.hexdigest()
    parts = getattr(value, "func", None), getattr(value, "args", ()), getattr(value, "keywords", {})
    if parts[0] is not None:
        digest.update(repr((content_hash(parts[0]), parts[1], sorted(parts[2].items()))).encode())
        return digest.hexdigest()
    digest.update(f"{type(value).__qualname__} {text_of(value)}".encode())
    digest.update(closure_content(value).encode())
    try:
        digest.update(inspect.getsource(cast("Any", value if callable(value) else type(value))).encode())
    except (OSError, TypeError):
        # Classes of a notebook have no source, and the text of an object may contain its address.
        code = value if isinstance(value, type | FunctionType) else type(value)
        digest.update(source_digest(code).encode())
    return digest.hexdigest()


def constants(module: nn.Module) -> str:
    """Return a digest of a module's layers and attributes other than parameters and buffers.

    Two modules can share a step program only if their digests are equal.

    Args:
        module: Module of the model.
    """
    digest = hashlib.blake2b(repr(module).encode(), digest_size=16)
    for name, part in module.named_modules():
        for key, value in sorted(vars(part).items()):
            if key.startswith("_") or key == "training":
                continue
            digest.update(f"{name}.{key}".encode())
            if isinstance(value, Tensor):
                digest.update(value.detach().cpu().contiguous().numpy().tobytes())
            elif isinstance(value, int | float | str | bytes | tuple | list | dict):
                digest.update(repr(value).encode())
    return digest.hexdigest()
