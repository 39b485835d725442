"""Model that a training step receives: a network with the buffers of one replica, as a pure function."""

from collections.abc import Mapping, Sequence
from typing import final

from torch import Tensor

from envariant.training.network import Network


@final
class PureModel:
    """Model passed to algorithms: a network with fixed buffers, which implements `algorithms.base.Model`.

    Args:
        net: Network of the stack.
        buffers: Buffers of one replica.
        replicas: Number of stacked replicas.
        key: Random-number key of the step, for dropout masks.

    Attributes:
        auxiliary_networks: Names of the algorithm's auxiliary networks.
    """

    def __init__(self, net: Network, buffers: Mapping[str, Tensor], replicas: int, key: Tensor) -> None:
        self._net, self._buffers, self._replicas, self._key = net, buffers, replicas, key
        self._passes = 0
        self.auxiliary_networks = tuple(net.auxiliary)

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
        return net.outputs(
            params, copies, inputs, training=True, replicas=self._replicas, layers=layers, key=self._key,
            number=number,
        )  # fmt: skip

    def head(self, params: Mapping[str, Tensor], features: Tensor) -> Tensor:
        return self._net.task.logits(self._net.call("head", params, features))

    def network(self, name: str, params: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        return self._net.call(name, params, inputs)
