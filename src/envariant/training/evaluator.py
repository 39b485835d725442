"""Forward pass without gradients, for measurements, predictions, saved models and estimators.

Rows are evaluated in blocks to limit the memory for activations. Test-time adaptation (`Adapt`) may change
the weights before the rows of an environment are predicted.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call

from envariant.core.tasks import Task
from envariant.training import precision
from envariant.training.module_outputs import logits_of
from envariant.training.network import TOGETHER, Network
from envariant.training.precision import Precision
from envariant.training.step_program import Axis, over_replicas
from envariant.training.streaming import StreamedInputs

Weights = Mapping[str, Tensor]
"""Parameters or buffers by name."""

Decode = Callable[[Tensor], Tensor]
"""Function from stored rows `[…, rows, *shape]` to the float inputs of a model."""

# Rows per block of a single module, rounded down to a multiple of its `rows_together`.
_BLOCK_ROWS = 8192


class Forward(Protocol):
    """Pure forward pass of one model: `forward(params, buffers, inputs) → (features, logits)`."""

    def __call__(
        self, params: Weights, buffers: Weights, inputs: Tensor, *, training: bool
    ) -> tuple[Tensor, Tensor]:
        """Return features and logits of some rows; features have width 0 if the algorithm ignores them.

        If `training` is set, layers are in training mode, and running statistics in `buffers` are updated in
        place; pass copies to keep the original buffers.
        """
        ...


class Adapt(Protocol):
    """Test-time adaptation: function that returns a model's weights, adapted to given unlabeled rows.

    The targets of the same rows are then predicted with the adapted weights. The function must be pure,
    because stacked execution vectorizes it over replicas with `torch.func.vmap`.
    """

    def __call__(
        self, forward: Forward, params: Weights, buffers: Weights, inputs: Tensor
    ) -> tuple[Weights, Weights]:
        """Return the adapted parameters and buffers for the prediction of `inputs`, `[rows, *shape]`."""
        ...


@final
class Evaluator:
    """Evaluator for one model or a stack of K replicas, without gradients.

    Args:
        forward: Forward pass of the model.
        params: Parameters used for prediction, with the replicas along the first axis.
        buffers: Buffers, with the replicas along the first axis.
        task: Task; it defines the losses, the scores and the shape of the logits.
        replicas: Number of replicas K.
        blocks: Function that maps a number of rows to the sizes of the blocks in which they are evaluated.
        rounding: Precision of the matrix products.
        device: Device of the weights.
        adapt: Test-time adaptation. Default: no adaptation.
        single: Whether results of `logits` omit the replica axis; allowed only for one replica.
    """

    def __init__(
        self,
        forward: Forward,
        params: Weights,
        buffers: Weights,
        *,
        task: Task,
        replicas: int,
        blocks: Callable[[int], Sequence[int]],
        rounding: Precision,
        device: torch.device,
        adapt: Adapt | None = None,
        single: bool = False,
    ) -> None:
        self._forward, self._params, self._buffers = forward, params, buffers
        self._task, self._replicas, self._blocks = task, replicas, blocks
        self._rounding: Precision = rounding
        self._device, self._adapt, self._single = device, adapt, single

    @classmethod
    def of_stack(
        cls, network: Network, params: Weights, buffers: Weights, replicas: int, adapt: Adapt | None = None
    ) -> "Evaluator":
        """Return the evaluator of K replicas with the same architecture.

        Args:
            network: Network of the stack.
            params: Parameters used for prediction, `[replicas, *shape]` each.
            buffers: Buffers, `[replicas, *shape]` each.
            replicas: Number of replicas K.
            adapt: Test-time adaptation. Default: no adaptation.
        """

        def forward(
            params: Weights, buffers: Weights, inputs: Tensor, *, training: bool
        ) -> tuple[Tensor, Tensor]:
            return network.forward(params, buffers, inputs, training=training, replicas=replicas)

        return cls(
            forward,
            params,
            buffers,
            task=network.task,
            replicas=replicas,
            blocks=lambda rows: network.blocks(rows, replicas),
            rounding=network.precision,
            device=network.device,
            adapt=adapt,
        )

    @classmethod
    def of_module(cls, module: nn.Module, task: Task, *, adapt: Adapt | None = None) -> "Evaluator":
        """Return the evaluator of a single module, in the precision of the module's weights.

        The result of `logits` has no replica axis.

        Args:
            module: Trained module; it is switched to evaluation mode.
            task: Task of the module.
            adapt: Test-time adaptation. Default: no adaptation.
        """
        module.eval()
        together = max(getattr(part, TOGETHER, 1) for part in module.modules())
        block = max(together, _BLOCK_ROWS - _BLOCK_ROWS % together)
        params = {name: value.detach()[None] for name, value in module.named_parameters()}
        buffers = {name: value[None] for name, value in module.named_buffers()}

        def forward(
            params: Weights, buffers: Weights, inputs: Tensor, *, training: bool
        ) -> tuple[Tensor, Tensor]:
            returned = functional_call(module.train(training), {**params, **buffers}, (inputs,))
            output = logits_of(returned, len(inputs), task, module)
            return output.new_zeros(len(output), 0), task.logits(output)

        def blocks(rows: int) -> list[int]:
            return [min(block, rows - start) for start in range(0, rows, block)]

        device = next((value.device for value in module.parameters()), torch.device("cpu"))
        return cls(
            forward,
            params,
            buffers,
            task=task,
            replicas=1,
            blocks=blocks,
            rounding="float32",
            device=device,
            adapt=adapt,
            single=True,
        )

    def logits(
        self,
        inputs: Shaped[Tensor, "*rows_and_shape"] | StreamedInputs,
        axis: Axis = None,
        decode: Decode | None = None,
    ) -> Float[Tensor, "*replicas_and_rows"]:
        """Return the logits (regression: predictions), `[replicas, rows]` or `[replicas, rows, outputs]`.

        For a single module, there is no replica axis.

        Args:
            inputs: Rows `[rows, *shape]`, shared by all replicas, or `[replicas, rows, *shape]`.
            axis: Axis of the replicas in `inputs`: 0, or None if all replicas share the rows.
            decode: Function that decodes stored rows to inputs. Default: inputs are already decoded.
        """

        def predict(params: Weights, buffers: Weights, inputs: Tensor) -> Tensor:
            return self._task.predictions(self._forward(params, buffers, inputs, training=False)[1])

        blocks = self._over_blocks(predict, (inputs,), axis, decode)
        shape = (self._replicas, 0, *self._task.logits_shape)
        logits = torch.cat(blocks, dim=1).clone() if blocks else torch.zeros(shape, device=self._device)
        return logits[0] if self._single else logits

    def measure(
        self,
        inputs: Tensor | StreamedInputs,
        targets: Tensor,
        axis: Axis = None,
        decode: Decode | None = None,
    ) -> Float[Tensor, "replicas 3"]:
        """Return mean loss, mean score and the logits' standard deviation, `[replicas, 3]`, in float64.

        All three are computed over the rows. With several outputs, the third value is the root mean square of
        the outputs' standard deviations.

        Args:
            inputs: Rows `[rows, *shape]`, shared by all replicas, or `[replicas, rows, *shape]`.
            targets: Targets `[rows, …]`, shared by all replicas, or `[replicas, rows, …]`.
            axis: Axis of the replicas in `inputs` and `targets`: 0, or None if all replicas share the rows.
            decode: Function that decodes stored rows to inputs. Default: inputs are already decoded.
        """

        def sums(params: Weights, buffers: Weights, inputs: Tensor, targets: Tensor) -> Tensor:
            logits = self._forward(params, buffers, inputs, training=False)[1]
            scores = self._task.scores(self._task.predictions(logits), targets)
            values = (self._task.losses(logits, targets), scores)
            outputs = logits.double().reshape(len(logits), -1)
            totals = torch.stack([value.double().sum() for value in values])
            return torch.cat([totals, outputs.sum(dim=0), outputs.square().sum(dim=0)])

        rows, width = inputs.shape[0 if axis is None else 1], self._task.outputs
        means = sum(self._over_blocks(sums, (inputs, targets), axis, decode), torch.zeros(())) / rows
        loss_and_score, first, second = means.split([2, width, width], dim=1)
        variance = (second - first.square()).clamp(min=0).mean(dim=1, keepdim=True)
        return torch.cat([loss_and_score, variance.sqrt()], dim=1)

    def _over_blocks(
        self,
        function: Callable[..., Tensor],
        values: tuple[Tensor | StreamedInputs, ...],
        axis: Axis,
        decode: Decode | None,
    ) -> list[Tensor]:
        """Split `values` into blocks of rows; return `function(params, buffers, *block)` for each block."""
        together = over_replicas(function, (0, 0, *(axis for _ in values)), self._replicas)
        along, results = (0 if axis is None else 1), list[Tensor]()
        with precision.multiplying(self._rounding, self._device):
            params, buffers = self._adapted(values[0], axis, decode)
            blocks = list(self._blocks(values[0].shape[along]))
            with torch.inference_mode():
                for inputs, *rest in zip(*(value.split(blocks, dim=along) for value in values), strict=True):
                    decoded = inputs if decode is None else decode(inputs)
                    results.append(together(params, buffers, decoded, *rest))
        return results

    def _adapted(
        self, inputs: Tensor | StreamedInputs, axis: Axis, decode: Decode | None
    ) -> tuple[Weights, Weights]:
        adapt = self._adapt
        if adapt is None:
            return self._params, self._buffers

        def of_one(params: Weights, buffers: Weights, inputs: Tensor) -> tuple[Weights, Weights]:
            params, buffers = adapt(self._forward, params, buffers, inputs)
            return dict(params), dict(buffers)

        inputs = inputs if isinstance(inputs, Tensor) else inputs.whole()
        rows = inputs if decode is None else decode(inputs)
        # Adaptation may need gradients, which inference mode does not allow.
        with torch.no_grad():
            return over_replicas(of_one, (0, 0, axis), self._replicas)(self._params, self._buffers, rows)
