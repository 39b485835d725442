"""`check_predictor` accepts the library's predictors and names each violated property."""

from dataclasses import dataclass, field

import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from envariant.core.tasks import Multiclass
from envariant.predictors import PREDICTORS, BoostedTrees, FittedPredictor, Predictor, ScikitLearn
from envariant.testing import check_predictor

# Tested in test_closed_form_predictors.py, for the tasks that each of them supports.
CLOSED_FORMS = {"anchor-regression", "tsls", "icp", "drig", "causal-dantzig"}


@pytest.mark.parametrize("name", [n for n in PREDICTORS if n not in CLOSED_FORMS])
def test_registered_predictors_pass(name):
    check_predictor(name)


@pytest.mark.parametrize(
    ("estimator", "tasks"),
    [
        (LogisticRegression(), ("binary", "multiclass")),
        (ScikitLearn(Ridge()), ("regression",)),
        (BoostedTrees(learning_rate=0.3), ("binary",)),
    ],
)
def test_estimators_pass_for_their_tasks(estimator, tasks):
    check_predictor(estimator, tasks)


@dataclass
class Mean(FittedPredictor):
    """Predict the mean of each row, changed by `fault`."""

    fault: str
    outputs: int | None
    seed: int
    iterations: int = 1

    def logits(self, inputs):
        if self.fault == "inputs":
            inputs.zero_()
        logits = inputs.mean(dim=1)
        if self.fault == "rows":
            logits = logits - logits.mean()
        if self.fault == "seed":
            logits = logits + self.seed
        if self.fault == "shape":
            logits = logits[:, None, None]
        if self.fault == "finite":
            logits = logits / 0
        if self.fault == "dtype":
            logits = logits.double()
        return logits if self.outputs is None else logits[:, None].expand(-1, self.outputs)


@dataclass
class Faulty(Predictor):
    """Predictor with one fault."""

    fault: str = ""
    name: str = "faulty"
    fits: list[int] = field(default_factory=list, repr=False)

    def fit(self, environments, seed):
        self.fits.append(seed)
        if self.fault == "environments":
            environments.environments[0].targets.zero_()
        if self.fault == "generator":
            torch.rand(1)
        if self.fault == "self":
            self.name += "!"
        task = environments.task
        outputs = task.outputs if isinstance(task, Multiclass) else None
        iterations = 0 if self.fault == "iterations" else 1
        return Mean(self.fault, outputs, len(self.fits), iterations)


def test_sound_predictor_passes():
    check_predictor(Faulty())


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("environments", "fit must not change the environments"),
        ("generator", "not from PyTorch's global generator"),
        ("self", "fit must leave the predictor unchanged"),
        ("iterations", "iterations must be at least 1, got 0"),
        ("inputs", "logits must not change the inputs"),
        ("shape", "logits must have the shape"),
        ("finite", "logits must be finite"),
        ("dtype", "logits must be float32"),
        ("seed", "one seed must give bit-identical logits"),
        ("rows", "must not depend on the other rows"),
    ],
)
def test_each_violated_property_is_named(fault, message):
    with pytest.raises(AssertionError, match=message):
        check_predictor(Faulty(fault))


def test_other_objects_are_rejected():
    with pytest.raises(AssertionError, match="must be a Predictor"):
        check_predictor("erm")
