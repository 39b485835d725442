"""Elastic net: sparse coefficients, optimality of the solution, and the classes of a task."""

import numpy as np
import pytest
import torch

from envariant import EnvironmentSet
from envariant.predictors import ElasticNet, Linear


def data(kind, rows=240, noise=18):
    rng = np.random.default_rng(3)
    inputs = rng.normal(2.0, 3.0, (rows, 2 + noise))
    score = (inputs[:, 0] - inputs[:, 1]) / 3 + rng.normal(size=rows)
    targets = {"regression": score, "binary": score > 0, "multiclass": np.digitize(score, [-0.6, 0.6])}[kind]
    return inputs, targets.astype(np.float64 if kind == "regression" else int), np.repeat([*"abc"], rows // 3)


@pytest.mark.parametrize("kind", ["regression", "binary", "multiclass"])
def test_most_coefficients_of_irrelevant_inputs_are_zero_and_new_rows_are_predicted(kind):
    inputs, targets, labels = data(kind)
    fitted = ElasticNet().fit(EnvironmentSet.from_arrays(inputs, targets, labels), 0)
    assert (fitted.weight[2:] == 0).double().mean() > 1 / 3
    assert (fitted.weight[:2].abs().amax(dim=1) > 0.1).all()
    linear = Linear().fit(EnvironmentSet.from_arrays(inputs, targets, labels), 0)
    assert (linear.weight[2:] == 0).double().mean() == 0


def test_regression_satisfies_the_conditions_of_optimality():
    inputs, targets, labels = data("regression")
    sample = EnvironmentSet.from_arrays(inputs, targets, labels)
    fitted = ElasticNet().fit(sample, 0)
    rows = torch.cat([e.inputs for e in sample.environments]).double().numpy()
    y = torch.cat([e.targets for e in sample.environments]).double().numpy()
    scale = rows.std(axis=0)
    x, w = (rows - rows.mean(axis=0)) / scale, fitted.weight.numpy()[:, 0] * scale
    gradient = x.T @ (y - rows @ fitted.weight.numpy()[:, 0] - float(fitted.bias)) / len(y)
    active = w != 0
    # Active inputs: gradient = λ r sign(w) + λ (1 − r) w, with one λ and r; inactive: |gradient| ≤ λ r.
    design = np.stack([np.sign(w[active]), w[active]], axis=1)
    solution, *_ = np.linalg.lstsq(design, gradient[active], rcond=None)
    assert design @ solution == pytest.approx(gradient[active], abs=2e-3)
    assert (np.abs(gradient[~active]) <= solution[0] + 2e-3).all()


def test_a_class_without_training_rows_is_never_predicted():
    inputs, targets, labels = data("multiclass")
    sample = EnvironmentSet.from_arrays(inputs, targets, labels)
    parts = tuple(e.select((e.targets != 1).nonzero().flatten()) for e in sample.environments)
    fitted = ElasticNet().fit(EnvironmentSet("without", parts, sample.task), 0)
    logits = fitted.logits(torch.from_numpy(inputs).float())
    assert logits.shape == (len(inputs), 3)
    assert not (logits.argmax(dim=1) == 1).any()
