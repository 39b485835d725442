"""Model in the form that algorithms receive: a pure function of its parameters.

The new values of buffers that a training step changes are returned by a separate method.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, final

import torch
from torch import Tensor

from envariant.training.network import Network
from envariant.training.zero_columns import RowGroups

# Tensors inside `torch.func.grad` are wrappers, one for each level of nesting. PyTorch has no public function
# that returns the wrapped tensor.
_functorch: Any = import_module("torch._C._functorch")


@final
class PureModel:
    """Model passed to algorithms: a network with fixed buffers, which implements `algorithms.base.Model`.

    Args:
        net: Network of the stack.
        params: Parameters of one replica at this step.
        buffers: Buffers of one replica.
        inputs: Inputs of the batch of this step.
        replicas: Number of stacked replicas.
        key: Random-number key of the step, for dropout masks.
        groups: The same inputs in groups without zero columns; None to use the complete inputs.
        from_features: Whether the inputs are features, to which only the head is applied.

    Attributes:
        auxiliary_networks: Names of the algorithm's auxiliary networks.
    """

    def __init__(
        self,
        net: Network,
        params: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        inputs: Tensor,
        replicas: int,
        key: Tensor,
        groups: RowGroups | None = None,
        *,
        from_features: bool = False,
    ) -> None:
        self._net, self._replicas, self._key = net, replicas, key
        self._passes, self._groups, self._from_features = 0, groups, from_features
        self._params, self._buffers, self._inputs = params, buffers, inputs
        self._updated: dict[str, Tensor] | None = None
        self.auxiliary_networks = tuple(net.auxiliary)

    def updated_buffers(self) -> dict[str, Tensor]:
        """Return new values of the buffers in `Network.changing`, after a forward pass on this step's batch.

        The values come from the algorithm's own forward pass with the parameters and the inputs of this step.
        If there was no such pass, for example because the algorithm mixes rows (Mixup), this method runs one.
        """
        net = self._net
        if not net.changing:
            return {}
        held = self._updated and {name: _without_gradient(value) for name, value in self._updated.items()}
        if held and all(_level(value) <= _level(self._buffers[name]) for name, value in held.items()):
            return held
        changed = {name: self._buffers[name].clone() for name in sorted(net.changing)}
        with torch.no_grad():
            buffers = {**self._buffers, **changed}
            net.forward(self._params, buffers, self._inputs, training=True, key=self._key)
        return changed

    def __call__(self, params: Mapping[str, Tensor], inputs: Tensor) -> tuple[Tensor, Tensor]:
        features, raw = self._outputs(params, inputs, ())
        return features, self._net.task.logits(raw)

    def layers(self, params: Mapping[str, Tensor], inputs: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        _, raw, *outputs = self._outputs(params, inputs, list(self._net.layers))
        return tuple(outputs), self._net.task.logits(raw)

    def _outputs(self, params: Mapping[str, Tensor], inputs: Tensor, layers: Sequence[str]) -> list[Tensor]:
        net = self._net
        # Running statistics are copied, because changes in place are not allowed while differentiating.
        copies = {k: v.clone() if k in net.changing else v for k, v in self._buffers.items()}
        # Counted, so that the rows of several environments or of a second pass have masks of their own.
        number, self._passes = self._passes, self._passes + 1
        outputs = net.outputs(
            params, copies, inputs, training=True, replicas=self._replicas, layers=layers, key=self._key,
            number=number, groups=self._groups if self._are_constant(inputs) else None,
            from_features=self._from_features,
        )  # fmt: skip
        if net.changing and self._updated is None and self._is_of_step(params, inputs):
            self._updated = {name: copies[name] for name in sorted(net.changing)}
        return outputs

    def _are_constant(self, inputs: Tensor) -> bool:
        """Return whether these are the inputs of the step, without derivatives with respect to them."""
        while _functorch.is_gradtrackingtensor(inputs):
            if inputs.requires_grad:
                return False
            inputs = _functorch.get_unwrapped(inputs)
        return inputs is self._inputs

    def _is_of_step(self, params: Mapping[str, Tensor], inputs: Tensor) -> bool:
        """Return whether parameters and inputs of a forward pass are those of the step."""
        own = (name for name in self._params if name.split(".")[0] not in self._net.auxiliary)
        return _without_gradient(inputs) is self._inputs and all(
            _without_gradient(params[name]) is self._params[name] for name in own
        )

    def head(self, params: Mapping[str, Tensor], features: Tensor) -> Tensor:
        return self._net.task.logits(self._net.call("head", params, features))

    def network(self, name: str, params: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        return self._net.call(name, params, inputs)


def _without_gradient(value: Tensor) -> Tensor:
    """Return the tensor inside the wrappers of `torch.func.grad`."""
    while _functorch.is_gradtrackingtensor(value):
        value = _functorch.get_unwrapped(value)
    return value


def _level(value: Tensor) -> int:
    """Return the nesting level of `torch.func.vmap` at which a tensor is wrapped; -1 for other tensors."""
    return _functorch.maybe_get_level(value) if _functorch.is_batchedtensor(value) else -1
