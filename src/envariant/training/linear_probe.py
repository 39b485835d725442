"""Linear probe: initial weights with a head fitted to the features of the initial featurizer (LP-FT)."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from envariant.algorithms.base import featurizer_and_head
from envariant.core.environments import EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Regression
from envariant.training.initializer import Fit, Initializer

# Number of rows per forward pass.
_BLOCK = 256
# Share of the rows that are held out to choose the regularization strength.
_HELD_OUT = 0.2
# Classes without training rows get the smallest bias minus this number, so that they are never predicted.
_UNSEEN = 10.0


@final
@dataclass(frozen=True)
class LinearProbe(Initializer):
    """Linear probing, then fine-tuning (LP-FT). Kumar et al. 2022 (arXiv 2202.10054).

    The features of the initial, usually pretrained, featurizer are standardized with a single mean and
    standard deviation over all features and training rows. A random fifth of these rows is held out. For many
    values of the inverse regularization strength C, an ℓ2-regularized logistic regression is fitted to the
    other rows. The model with the best accuracy on the held-out rows becomes the initial head, with the
    standardization merged into its weights. Training then starts from the initial featurizer and this head.

    Attributes:
        candidates: Number of values of C, spaced logarithmically from 1e-7 to 1e2.
        iterations: Maximum number of L-BFGS iterations for each value of C.
    """

    name: ClassVar[str] = "linear-probe"
    candidates: Annotated[int, Field(ge=1, le=1000)] = 100
    iterations: PositiveInt = 200

    @property
    def total_steps(self) -> int:
        return 0

    def weights(self, environments: EnvironmentSet, fit: Fit, seed: int) -> Mapping[str, Tensor]:
        task = environments.task
        if isinstance(task, Regression):
            raise EnvariantError(f"{self.name}: needs a classification task; the task is regression")
        module = fit.initial(environments)
        featurizer, head = featurizer_and_head(module, self.name)
        if not isinstance(head, nn.Linear):
            raise EnvariantError(f"{self.name}: the head must be one linear layer; got {type(head).__name__}")
        features = features_of(featurizer, environments)
        targets = torch.cat([e.targets for e in environments.environments]).cpu().long().numpy()
        weight, bias = self.head(features, targets, task.outputs, seed)
        return {"head.weight": weight.to(head.weight), "head.bias": bias.to(head.weight)}

    def head(
        self, features: NDArray[Any], targets: NDArray[np.int64], outputs: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Return the best head's weight `[outputs, width]` and bias `[outputs]`, for unstandardized features.

        Args:
            features: Features `[rows, width]`.
            targets: Class of each row.
            outputs: Number of outputs; 1 for two classes.
            seed: Random seed for the choice of held-out rows.
        """
        center, scale = float(features.mean(dtype=np.float64)), float(features.std(dtype=np.float64)) or 1.0
        held_out = np.random.default_rng(seed).random(len(features)) < _HELD_OUT
        if len(np.unique(targets[~held_out])) < 2:
            raise EnvariantError(f"{self.name}: the training rows hold one class; at least two are needed")
        standardized = (features - center) / scale
        weight, bias = self._best(standardized, targets, held_out, outputs)
        return folded(torch.from_numpy(weight), torch.from_numpy(bias), center, scale)

    def _best(
        self, inputs: NDArray[Any], targets: NDArray[Any], held_out: NDArray[np.bool_], outputs: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        model: Any = LogisticRegression(max_iter=self.iterations, warm_start=True)
        best = -1.0
        chosen: tuple[Any, Any, Any] = (np.zeros(0), np.zeros(0), np.zeros(0))
        with warnings.catch_warnings():
            # Not converging is expected, because the method limits the number of iterations.
            warnings.simplefilter("ignore", ConvergenceWarning)
            for strength in np.logspace(-7, 2, self.candidates):
                model.set_params(C=float(strength)).fit(inputs[~held_out], targets[~held_out])
                rows = held_out if held_out.any() else ~held_out
                accuracy = float((model.predict(inputs[rows]) == targets[rows]).mean())
                if accuracy > best:
                    best, chosen = accuracy, (model.coef_.copy(), model.intercept_.copy(), model.classes_)
        coefficients, intercepts, classes = chosen
        if outputs == 1:
            return coefficients, intercepts
        if len(classes) == 2:
            coefficients, intercepts = (np.concatenate([-v / 2, v / 2]) for v in (coefficients, intercepts))
        weight = np.zeros((outputs, inputs.shape[1]))
        bias = np.full(outputs, intercepts.min() - _UNSEEN)
        index = classes.astype(np.int64)
        weight[index], bias[index] = coefficients, intercepts
        return weight, bias


def folded(weight: Tensor, bias: Tensor, center: float, scale: float) -> tuple[Tensor, Tensor]:
    """Return the weight and bias of a linear head that maps features h to W·(h − center) / scale + b.

    Args:
        weight: W, `[outputs, width]`.
        bias: b, `[outputs]`.
        center: Mean that is subtracted from every feature.
        scale: Standard deviation by which every feature is divided.
    """
    weight = weight / scale
    return weight, bias - center * weight.sum(dim=1)


def features_of(featurizer: nn.Module, environments: EnvironmentSet) -> NDArray[np.float32]:
    """Return the features of all rows, `[rows, width]`.

    The featurizer is switched to evaluation mode, and processes the rows block by block.

    Args:
        featurizer: Module that maps inputs to features.
        environments: Environments; their rows are concatenated in this order.
    """
    blocks: list[Tensor] = []
    featurizer.eval()
    device = next((value.device for value in featurizer.parameters()), torch.device("cpu"))
    with torch.inference_mode():
        for environment in environments.environments:
            store = environment.input_store
            for index in torch.arange(len(store)).split(_BLOCK):
                rows = store.decode(store.gather(index).to(device))
                blocks.append(featurizer(rows).flatten(1).float().cpu())
    return torch.cat(blocks).numpy()
