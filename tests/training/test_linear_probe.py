"""Linear probing before fine-tuning, and what the probe's head is."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Binary, Multiclass, Regression
from envariant.models.base import FeaturizerAndHead
from envariant.training.linear_probe import LinearProbe, folded
from envariant.training.train import train


def environments(task, classes=2):
    generator = torch.Generator().manual_seed(0)
    parts = []
    for name in ("a", "b"):
        inputs = torch.randn(120, 4, generator=generator)
        labels = (inputs[:, 0] > 0).long() + (inputs[:, 0] > 1 if classes == 3 else 0)
        parts.append(Environment(name, inputs, labels.float() if task.outputs == 1 else labels))
    return EnvironmentSet("points", tuple(parts), task)


def network(outputs):
    torch.manual_seed(1)
    return FeaturizerAndHead(nn.Sequential(nn.Linear(4, 6), nn.Softplus()), nn.Linear(6, outputs))


def test_a_head_on_standardized_features_is_folded_back_exactly():
    generator = torch.Generator().manual_seed(2)
    features = 40 + 9 * torch.randn(50, 7, generator=generator)
    weight, bias = torch.randn(3, 7, generator=generator), torch.randn(3, generator=generator)
    center, scale = float(features.mean()), float(features.std())
    expected = ((features.double() - center) / scale) @ weight.double().T + bias.double()
    new_weight, new_bias = folded(weight.double(), bias.double(), center, scale)
    torch.testing.assert_close(features.double() @ new_weight.T + new_bias, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("task", "classes"), [(Binary(), 2), (Multiclass(3), 3), (Multiclass(2), 2)])
def test_the_run_starts_from_the_probe(task, classes):
    sample, module = environments(task, classes), network(task.outputs)
    result = train(
        sample, "erm", model=module, init="linear-probe(candidates=7, iterations=50)", steps=1,
        learning_rate=1e-12, replicas=1, progress=False, seed=0,
    )  # fmt: skip
    trained = result.model(0)
    for name, value in module.featurizer.state_dict().items():
        torch.testing.assert_close(trained.featurizer.state_dict()[name], value)
    rows = torch.cat([each.inputs for each in sample.environments])
    labels = torch.cat([each.targets for each in sample.environments]).long()
    logits = trained(rows).detach()
    predicted = (logits[:, 0] > 0).long() if task.outputs == 1 else logits.argmax(dim=1)
    assert float((predicted == labels).float().mean()) > 0.85


def test_the_head_equals_a_regression_on_the_standardized_features():
    rng = np.random.default_rng(0)
    features = (2 + 3 * rng.normal(size=(200, 5))).astype(np.float32)
    labels = (features[:, 0] + rng.normal(size=200) > 2).astype(np.int64)
    features = features.astype(np.float64)
    weight, bias = LinearProbe(candidates=1, iterations=500).head(features, labels, 1, 3)
    center, scale = features.mean(dtype=np.float64), features.std(dtype=np.float64)
    kept = np.random.default_rng(3).random(200) >= 0.2
    model = LogisticRegression(C=1e-7, max_iter=500).fit(((features - center) / scale)[kept], labels[kept])
    expected = model.decision_function((features - center) / scale)
    logits = torch.from_numpy(features).double() @ weight[0] + bias[0]
    np.testing.assert_allclose(logits.numpy(), expected, atol=1e-6)


def test_regression_is_refused():
    with pytest.raises(EnvariantError, match="linear-probe: needs a classification task"):
        LinearProbe().weights(environments(Regression()), lambda *_: None, 0)
