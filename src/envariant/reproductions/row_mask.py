"""AND-mask with one row per environment, for multilayer perceptrons; costs about as much as plain training.

The gradient of row e with respect to a weight matrix is δ_e h_eᵀ, so its signs are sign(δ_e) sign(h_e)ᵀ, and

    Σ_e sign(g_e) = sign(Δ)ᵀ sign(H)

is one matrix product per layer. The rows of Δ are the derivatives with respect to the layer's outputs, and
the rows of H are the layer's inputs. No gradient of a single row is computed. The library's engine has no
access to Δ and H inside an arbitrary model; therefore, training is written out here for one network, and runs
with different thresholds are stacked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import one_hot

from envariant.core.counter_rng import private_random_numbers
from envariant.data.colored import mnist
from envariant.models import model_config

Labels = Literal["true", "random", "25 % redrawn"]
"""Training labels: as in the file, all drawn at random, or a quarter of them drawn at random."""

CLASSES = 10
_MODEL = "mlp(hidden=256)"
_BATCH, _RATE = 80, 5e-4
_CHUNK = 2500


@final
@dataclass(frozen=True)
class Layers:
    """Weights of a stack of multilayer perceptrons with ReLU.

    Attributes:
        weights: Weights of each layer, `[runs, inputs, outputs]`.
        biases: Biases of each layer, `[runs, 1, outputs]`.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]

    def hidden_and_logits(self, inputs: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the inputs `[runs, rows, width]` of each layer, and the logits, for rows of `inputs`."""
        hidden, last = [inputs.expand(len(self.weights[0]), *inputs.shape)], len(self.weights) - 1
        for i in range(last):
            hidden.append((hidden[i] @ self.weights[i] + self.biases[i]).relu_())
        return hidden, hidden[last] @ self.weights[last] + self.biases[last]


def initial_layers(inputs: int, runs: int, seed: int) -> Layers:
    """Return the initial weights of the library's `mlp(hidden=256)` with 10 outputs, copied for every run.

    Args:
        inputs: Number of inputs.
        runs: Number of runs in the stack.
        seed: Seed of the initial weights.
    """
    with private_random_numbers(seed, torch.device("cpu")):
        module = model_config(_MODEL).build((inputs,), CLASSES)
    layers = [part for part in module.modules() if isinstance(part, nn.Linear)]
    with torch.no_grad():
        return Layers(
            # Contiguous, because the fused optimizer pairs weights and gradients by their place in memory.
            tuple(layer.weight.T.repeat(runs, 1, 1).contiguous() for layer in layers),
            tuple(layer.bias.repeat(runs, 1, 1) for layer in layers),
        )


def masked_gradients(layers: Layers, inputs: Tensor, labels: Tensor, thresholds: Tensor) -> Layers:
    """Return AND-mask's gradient of the cross-entropy, with every row of the batch as an environment.

    Each tensor is divided by the share of its entries that the mask keeps.

    Args:
        layers: Weights.
        inputs: Inputs, `[rows, width]`.
        labels: Classes of the rows.
        thresholds: Threshold τ of each run.
    """
    hidden, logits = layers.hidden_and_logits(inputs)
    delta = logits.softmax(dim=2) - one_hot(labels, CLASSES)
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    for i in reversed(range(len(hidden))):
        below = hidden[i].transpose(1, 2)
        weights.append(_masked(below @ delta, below.sign() @ delta.sign(), len(inputs), thresholds))
        sums = delta.sum(dim=1, keepdim=True), delta.sign().sum(dim=1, keepdim=True)
        biases.append(_masked(*sums, len(inputs), thresholds))
        if i:
            delta = (delta @ layers.weights[i].transpose(1, 2)) * (hidden[i] > 0)
    return Layers(tuple(reversed(weights)), tuple(reversed(biases)))


def _masked(total: Tensor, signs: Tensor, rows: int, thresholds: Tensor) -> Tensor:
    # The tolerance makes τ = k/E independent of rounding, as in the library's AND-mask.
    mask = (signs.abs() / rows >= thresholds[:, None, None] - 1e-6).float()
    return total / rows * mask / (1e-10 + mask.mean(dim=(1, 2), keepdim=True))


def draw_labels(true: NDArray[np.int64], kind: Labels, seed: int) -> NDArray[np.int64]:
    """Return the training labels; a random label may equal the true one."""
    generator = np.random.RandomState(seed)
    redrawn = generator.permutation(len(true))[: {"true": 0, "random": len(true)}.get(kind, len(true) // 4)]
    labels = true.copy()
    labels[redrawn] = generator.randint(0, CLASSES, len(redrawn))
    return labels


def train(
    kind: Labels,
    thresholds: Sequence[float],
    rows: int,
    epochs: int,
    every: int,
    seed: int,
    *,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Train one network per threshold by AND-mask on MNIST digits, with every row as an environment.

    Rows are shuffled in each epoch, and an incomplete last batch is left out.

    Args:
        kind: Training labels.
        thresholds: Thresholds of the stacked runs.
        rows: Number of training digits; the first ones of MNIST are used.
        epochs: Number of epochs.
        every: Number of epochs from one measurement to the next.
        seed: Seed of labels, order of rows and initial weights.
        folder: Folder of the MNIST files. Default: `ENVARIANT_MNIST`, else the cache or a download.

    Returns:
        Epochs of the measurements ("epochs"), and for each epoch and threshold the accuracies on the training
        labels ("train"), on the true test labels ("test"), and on the false labels of the rows whose label
        was changed ("false", empty if there are none).
    """
    digits = mnist.load(folder)
    inputs, test = (
        torch.from_numpy(images.reshape(len(images), -1) / np.float32(255))
        for images in (digits.train_images[:rows], digits.test_images)
    )
    true = digits.train_labels[:rows].astype(np.int64)
    given = draw_labels(true, kind, seed)
    labels, changed = torch.from_numpy(given), torch.from_numpy(np.flatnonzero(given != true))
    test_labels = torch.from_numpy(digits.test_labels.astype(np.int64))
    layers = initial_layers(inputs.shape[1], len(thresholds), seed)
    params = [*layers.weights, *layers.biases]
    optimizer = torch.optim.Adam(params, lr=_RATE, fused=True)
    order = np.random.RandomState(seed + 1)
    taus = torch.tensor(thresholds)
    found: dict[str, Any] = {"epochs": [], "train": [], "test": [], "false": []}
    for epoch in range(epochs + 1):
        if epoch % every == 0 or epoch == epochs:
            found["epochs"].append(epoch)
            correct = _correct(layers, inputs, labels)
            found["train"].append(correct.mean(dim=1).tolist())
            found["false"].append(correct[:, changed].mean(dim=1).tolist() if len(changed) else [])
            found["test"].append(_correct(layers, test, test_labels).mean(dim=1).tolist())
        if epoch == epochs:
            return found
        permuted = torch.from_numpy(order.permutation(rows))
        for batch in permuted[: rows - rows % _BATCH].split(_BATCH):
            gradient = masked_gradients(layers, inputs[batch], labels[batch], taus)
            for param, part in zip(params, (*gradient.weights, *gradient.biases), strict=True):
                param.grad = part.contiguous()
            optimizer.step()
    return found


def _correct(layers: Layers, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return 1.0 for every row that is classified correctly, `[runs, rows]`."""
    parts = [layers.hidden_and_logits(chunk)[1].argmax(dim=2) for chunk in inputs.split(_CHUNK)]
    return (torch.cat(parts, dim=1) == labels).float()
