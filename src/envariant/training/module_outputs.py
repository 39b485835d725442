"""Find the logits in the output of a module, and recognize outputs that cannot be logits."""

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from envariant.core.errors import EnvariantError
from envariant.core.tasks import Binary, Multiclass, Task

NO_LOGITS = "where logits are expected"
"""Phrase that occurs in every remark on a model whose outputs cannot be logits."""

_LOGITS = "logits"
# Steps of autograd that only move numbers, or limit them.
_MOVES = re.compile(
    r"(.*View|Reshape|ReshapeAlias|Squeeze|Unsqueeze|Select|Slice|Clone|ToCopy|T|Transpose|Permute|Alias|"
    r"Expand|Flatten|Clamp|Index|Cat|Stack|SplitWithSizes|Split|Unbind|Narrow)Backward\d*"
)
_PROBABILITIES = re.compile(r"(Sigmoid|Softmax|SafeSoftmax|Hardsigmoid)Backward\d*")
_NEVER_NEGATIVE = re.compile(r"(Softplus|Exp)Backward\d*")
_NEVER_POSITIVE = re.compile(r"LogSigmoidBackward\d*")
# Last steps of most networks, whose outputs are not limited.
_UNLIMITED = re.compile(
    r"(Addmm|Mm|Bmm|Mv|Addmv|Dot|Add|Sub|Linear|Convolution|Mean|Sum|LogSoftmax|LeakyRelu|Elu|Gelu|Silu|"
    r"NativeLayerNorm|NativeGroupNorm|NativeBatchNorm|CudnnBatchNorm)\w*Backward\d*"
)
# Size and number of the random inputs that distinguish networks with limited outputs from others.
_WIDE, _TRIES = 10.0, 64


def logits_of(output: object, rows: int, task: Task, module: nn.Module) -> Tensor:
    """Return the logits in a module's output; the output is a tensor or a collection of tensors.

    In a collection, the logits are the entry "logits", as in Hugging Face models, or else the only tensor
    with the shape of logits.

    Args:
        output: Output of the module.
        rows: Number of input rows.
        task: Task of the module.
        module: Module, for error messages.

    Raises:
        EnvariantError: If no tensor, or more than one, has the shape of logits.
    """
    if isinstance(output, Tensor) and _fits(output, rows, task):
        return output
    parts = _parts(output)
    if _fits(named := parts.get(_LOGITS), rows, task):
        return cast("Tensor", named)
    fitting = [value for value in parts.values() if _fits(value, rows, task)]
    if len(fitting) == 1:
        return cast("Tensor", fitting[0])
    number = f"{task.outputs} number{'' if task.outputs == 1 else 's'} per row"
    problem = "several of them could be the logits" if fitting else "none of it has that shape"
    expected = f"must return {number} for {task.name} data; for {rows} rows it returned {described(output)}"
    raise EnvariantError(
        f"model {type(module).__name__}: {expected}"
        + (f", and {problem}; return the logits alone, or name them 'logits'" if parts else "")
    )


def features_of(output: object, rows: int, module: nn.Module) -> Tensor:
    """Check the shape of a featurizer's output, and return the output.

    Raises:
        EnvariantError: If the output is not a tensor `[rows, width]`.
    """
    if isinstance(output, Tensor) and output.dim() == 2 and len(output) == rows:
        return output
    raise EnvariantError(
        f"model {type(module).__name__}: its featurizer must return one tensor [rows, width] for this "
        f"algorithm; for {rows} rows it returned {described(output)}"
    )


def described(output: object) -> str:
    """Describe the output of a module in a few words, for error messages."""
    if isinstance(output, Tensor):
        kind = "" if output.is_floating_point() else f" of type {str(output.dtype).removeprefix('torch.')}"
        return f"a tensor{kind} of shape {tuple(output.shape)}"
    if output is None:
        return "None (does forward lack a return statement?)"
    parts = _parts(output)
    texts = (
        f"{key} {tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__}"
        for key, value in list(parts.items())[:5]
    )
    return f"{type(output).__name__} ({', '.join(texts)})" if parts else type(output).__name__


def remark_on(module: nn.Module, output: Tensor, task: Task, input_shape: Sequence[int]) -> str:
    """Return a remark if the outputs of a module cannot be logits; "" otherwise.

    For example, the outputs of a final sigmoid layer are probabilities instead of logits.

    Args:
        module: Model to check.
        output: Output of the model for some rows, with its autograd graph.
        task: Task of the model. Only binary and multiclass tasks are checked.
        input_shape: Shape of one row of inputs.
    """
    if type(task) not in (Binary, Multiclass) or output.grad_fn is None:
        return ""
    last: Any = output.grad_fn
    while _MOVES.fullmatch(last.name()) and last.next_functions and last.next_functions[0][0] is not None:
        last = last.next_functions[0][0]
    name: str = last.name()
    probabilities = bool(_PROBABILITIES.fullmatch(name))
    one_sided = bool(_NEVER_NEGATIVE.fullmatch(name) or _NEVER_POSITIVE.fullmatch(name))
    if not probabilities and not one_sided and not _UNLIMITED.fullmatch(name):
        probabilities = _within_unit_interval(module, task, input_shape)
    where = f"model {type(module).__name__}"
    if probabilities:
        layer = "sigmoid" if task.outputs == 1 or "igmoid" in name else "softmax"
        return (
            f"{where}: its outputs are probabilities in [0, 1], as after a {layer}, {NO_LOGITS}; remove the "
            f"last {layer}, which is part of the loss"
        )
    if task.outputs == 1 and one_sided:
        sign, number = ("negative", 0) if _NEVER_NEGATIVE.fullmatch(name) else ("positive", 1)
        return (
            f"{where}: its outputs are never {sign} {NO_LOGITS}, so class {number} is never predicted; "
            f"remove the last {name.partition('Backward')[0].lower()}"
        )
    return ""


def _fits(value: object, rows: int, task: Task) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    shapes = {(rows,), (rows, 1)} if task.outputs == 1 else {(rows, task.outputs)}
    return tuple(value.shape) in shapes


def _parts(output: object) -> dict[str, object]:
    """Return the entries of a mapping, sequence or object by name."""
    if isinstance(output, Mapping):
        return {str(key): value for key, value in cast("Mapping[object, object]", output).items()}
    if isinstance(output, tuple | list):
        names = getattr(output, "_fields", None) or map(str, range(len(cast("Sequence[object]", output))))
        return dict(zip(names, cast("Sequence[object]", output), strict=True))
    if isinstance(output, Tensor | str | None):
        return {}
    return dict(getattr(output, "__dict__", {}))


def _within_unit_interval(module: nn.Module, task: Task, input_shape: Sequence[int]) -> bool:
    """Return whether the outputs of a module for large random inputs are probabilities.

    One output per row must lie in [0, 1]; several must also add up to 1.
    """
    if any(isinstance(part, nn.Embedding | nn.EmbeddingBag) for part in module.modules()):
        return False
    inputs = torch.randn(_TRIES, *input_shape, generator=torch.Generator().manual_seed(0)) * _WIDE
    try:
        with torch.no_grad():
            output = logits_of(copy.deepcopy(module).cpu().eval()(inputs), _TRIES, task, module)
    except Exception:
        # The network may accept only certain inputs.
        return False
    total = output.sum(dim=-1) if task.outputs > 1 else output.new_ones(())
    limited = bool(((output >= 0) & (output <= 1)).all()) and bool((output != output[0]).any())
    return limited and bool(((total - 1).abs() < 1e-3).all())
