"""Section of the reproduction of REx (Krueger et al. 2021) on hybrid domains with images.

A hybrid domain combines the inputs of one training environment with soft labels from a network that was
trained in another one. V-REx-HD penalizes, for the inputs of each environment, the variance of the risk
over the soft labels of all networks.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from math import inf, isnan, nan
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from envariant.analysis.statistics import Interval, difference
from envariant.core.environments import EnvironmentSource
from envariant.core.printable import number_of
from envariant.reporting import charts
from envariant.reporting.tables import TextTable
from envariant.reproductions.base import CaptionedFigure, CaptionedTable, Finding, section
from envariant.reproductions.runner import Runner
from envariant.reproductions.stacked_mlp import initial, logits
from envariant.reproductions.summaries import mean_and_sd, signed
from envariant.reproductions.verdicts import beyond, statement, within

DATA: Mapping[str, str] = {"CMNIST": "colored-mnist", "hetero-CMNIST": "colored-mnist-hetero"}
METHODS = ("V-REx", "V-REx-HD")
SIZES: dict[str, int] = {"hidden": 256, "steps": 500, "label_steps": 200, "batch": 512}
SWITCH, WEIGHT, RATE = 100, 1e4, 1e-3
# Share of an environment's rows that train the model of its labels; the other rows select the step.
_SHARE = 0.9
# Accuracies that differ by less than this count as alike.
_ALIKE = 0.05


def hybrid_risks(z: Tensor, labels: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the risk for the rows of each environment and each set of labels, `[environments, label sets]`.

    As in the released program, a risk is a sum over the rows of one environment, divided by the number of
    rows of all environments.

    Args:
        z: Logits of the rows of all training environments, `[rows]`.
        labels: One or more sets of labels between 0 and 1, `[label sets, rows]`.
        sizes: Number of rows of each environment, in the order of the rows.
    """
    losses = cross_entropy(z.expand_as(labels), labels, reduction="none")
    return torch.stack([part.sum(dim=1) for part in losses.split(list(sizes), dim=1)]) / len(z)


def objective(risks: Tensor, step: int) -> Tensor:
    """Return the loss of one step: the sum of all risks, divided by a weight, plus variances.

    The weight is 1 up to and including step 100, and 10,000 afterwards. With several sets of labels, the
    loss contains for each environment the variance over the sets (divisor n − 1). With one set, it contains
    the variance over environments.

    Args:
        risks: Risks `[environments, label sets]`.
        step: Number of updates before this one.
    """
    variance = risks.var(dim=1).sum() if risks.shape[1] > 1 else risks.var()
    return risks.sum() / (1.0 if step <= SWITCH else WEIGHT) + variance


def label_model(
    inputs: Tensor, targets: Tensor, hidden: int, steps: int, batch: int, rng: np.random.Generator
) -> list[Tensor]:
    """Train a network with dropout to predict the labels of one environment, and return its parameters.

    Batches are drawn with replacement from the first 90 % of the rows. After each step, the loss on the other
    rows is measured, and the parameters with the smallest loss are returned. As in the released program,
    dropout is also applied when this loss is measured.

    Args:
        inputs: Inputs `[rows, features]`.
        targets: Labels 0 or 1, `[rows]`.
        hidden: Width of both hidden layers.
        steps: Number of updates.
        batch: Number of rows in a batch.
        rng: Random number generator of initial weights, batches and dropout.
    """
    params = initial((inputs.shape[1], hidden, hidden, 1), 1, rng)
    optimizer = torch.optim.Adam(params, lr=RATE)
    split = int(_SHARE * len(inputs))
    best, least = params, inf
    for _ in range(steps):
        rows = torch.from_numpy(rng.integers(split, size=batch))
        z = logits(params, inputs[rows], torch.relu, rng)[0]
        optimizer.zero_grad()
        cross_entropy(z, targets[rows]).backward()
        optimizer.step()
        with torch.no_grad():
            left_out = logits(params, inputs[split:], torch.relu, rng)[0]
            loss = float(cross_entropy(left_out, targets[split:]))
        if loss < least:
            best, least = [param.detach().clone() for param in params], loss
    return best


def train(
    inputs: Tensor,
    labels: Tensor,
    targets: Tensor,
    sizes: Sequence[int],
    test: tuple[Tensor, Tensor],
    start: Sequence[Tensor],
    steps: int,
) -> dict[str, list[float]]:
    """Train one network without dropout on all training rows, and return its accuracies at every step.

    Args:
        inputs: Inputs of the rows of all training environments, `[rows, features]`.
        labels: One or more sets of labels for the loss, `[label sets, rows]`.
        targets: True labels for the training accuracy, `[rows]`.
        sizes: Number of rows of each environment.
        test: Inputs and labels of the test environment.
        start: Initial parameters, as returned by `initial`; they are not changed.
        steps: Number of updates.

    Returns:
        Training accuracy before each update ("train"), and test accuracy after it ("test").
    """
    params = [param.detach().clone().requires_grad_() for param in start]
    optimizer = torch.optim.Adam(params, lr=RATE)
    curves: dict[str, list[float]] = {"train": [], "test": []}
    for step in range(steps):
        z = logits(params, inputs, torch.relu, None)[0]
        curves["train"].append(_accuracy(z, targets))
        optimizer.zero_grad()
        objective(hybrid_risks(z, labels, sizes), step).backward()
        optimizer.step()
        with torch.no_grad():
            curves["test"].append(_accuracy(logits(params, test[0], torch.relu, None)[0], test[1]))
    return curves


def _accuracy(z: Tensor, targets: Tensor) -> float:
    return float(((z > 0) == (targets > 0.5)).double().mean())


def trained(
    source: EnvironmentSource, data: str, restart: int, hidden: int, steps: int, label_steps: int, batch: int
) -> dict[str, Any]:
    """Train V-REx with the true labels and V-REx-HD with soft labels, from the same initial weights.

    Args:
        source: Data source, with one test environment.
        data: Name of the data source.
        restart: Index of the restart, and seed of the data.
        hidden: Width of both hidden layers of every network.
        steps: Number of updates of both methods.
        label_steps: Number of updates of the networks that produce soft labels.
        batch: Number of rows in a batch of these networks.

    Returns:
        Accuracy curves of each method as in `train`, and the highest accuracy of a predictor that ignores
        the color ("shape only").
    """
    del data
    sample = source.sample(restart)
    parts = {e.name: (e.inputs.flatten(1), e.targets.float().flatten()) for e in sample.environments}
    test = parts.pop(sample.test[0])
    sizes = [len(targets) for _, targets in parts.values()]
    inputs, targets = (torch.cat(each) for each in zip(*parts.values(), strict=True))
    *rngs, weights = map(np.random.default_rng, np.random.SeedSequence(restart).spawn(1 + len(parts)))
    start = initial((inputs.shape[1], hidden, hidden, 1), 1, weights)
    soft: list[Tensor] = []
    for part, rng in zip(parts.values(), rngs, strict=True):
        params = label_model(*part, hidden, label_steps, batch, rng)
        with torch.no_grad():
            # Dropout stays on while soft labels are computed, as in the released program.
            soft.append(logits(params, inputs, torch.relu, rng)[0].sigmoid())
    return {
        "V-REx": train(inputs, targets[None], targets, sizes, test, start, steps),
        "V-REx-HD": train(inputs, torch.stack(soft), targets, sizes, test, start, steps),
        "shape only": sample.known.optimum,
    }


def best_allowed(train_curve: Sequence[float], test_curve: Sequence[float]) -> float:
    """Return the highest test accuracy among steps at which training accuracy is at least as high.

    The step is selected by test accuracy (oracle selection). NaN is returned if there is no such step.
    """
    allowed = [b for a, b in zip(train_curve, test_curve, strict=True) if a >= b]
    return max(allowed, default=nan)


@section("hybrid", "Hybrid domains on Colored MNIST")
def hybrid(runner: Runner) -> Iterator[Finding]:
    """Test the claim that V-REx needs hybrid domains if environments differ in the amount of label noise.

    In a hybrid domain, the images of one environment have soft labels that a network predicts, and this
    network was trained in another environment. In hetero-CMNIST, the labels of digits 0 and 5 are noisier
    than those of other digits, and the share of these two digits differs between environments. In CMNIST, all
    labels are equally noisy. V-REx uses the true labels, and V-REx-HD uses hybrid domains. No accuracies of
    this experiment were found in print.
    """
    restarts = runner.pick(quick=1, full=5)
    results = {
        name: [
            runner.compute(
                "hybrid-domains", {"data": data, "restart": k, **SIZES}, partial(trained, runner.source(data))
            )
            for k in range(restarts)
        ]
        for name, data in DATA.items()
    }
    yield _curves(results)
    yield _table(results)
    yield (
        "As in the released program, dropout is never switched off in the networks that produce soft labels: "
        "it is on while the step with the smallest loss is selected, and while the soft labels of all rows "
        "are computed. Every risk is divided by the number of rows of both environments, so it is half the "
        "mean risk of one environment; V-REx with true labels uses the same division. The program's variant "
        "of IRM with hybrid domains is not repeated here."
    )
    yield from _claims(
        {
            name: difference(
                [each["V-REx-HD"]["test"][-1] for each in own], [each["V-REx"]["test"][-1] for each in own]
            )
            for name, own in results.items()
        }
    )


def _claims(gains: Mapping[str, Interval]) -> Iterator[Finding]:
    """Yield the claims about the difference in accuracy, V-REx-HD minus V-REx, by data set."""
    texts = {name: f"V-REx-HD − V-REx: {signed(each)}" for name, each in gains.items()}
    yield statement(
        "On hetero-CMNIST with different shares of digits, V-REx-HD is more accurate than V-REx in the test "
        "environment.",
        beyond(gains["hetero-CMNIST"], above=0.0),
        texts["hetero-CMNIST"],
    )
    yield statement(
        f"On CMNIST, the test accuracies of V-REx-HD and V-REx differ by less than {_ALIKE:g}.",
        within(gains["CMNIST"], _ALIKE),
        texts["CMNIST"],
    )


def _curves(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> CaptionedFigure:
    series: dict[str, tuple[list[int], list[float]]] = {}
    for name, own in results.items():
        for method in METHODS:
            mean = [statistics.fmean(at) for at in zip(*(each[method]["test"] for each in own), strict=True)]
            series[f"{name}: {method}"] = (list(range(1, len(mean) + 1)), mean)
    chart = charts.lines(series, "step", "test accuracy", marks={"chance": 0.5})
    return CaptionedFigure("curves", chart, f"Test accuracy after each update, mean over {_count(results)}.")


def _table(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> CaptionedTable:
    rows: list[tuple[str, ...]] = []
    for name, own in results.items():
        shape = statistics.fmean(each["shape only"] for each in own)
        for method in METHODS:
            curves = [(each[method]["train"], each[method]["test"]) for each in own]
            last = ([a[-1] for a, _ in curves], [b[-1] for _, b in curves])
            best = [best_allowed(a, b) for a, b in curves]
            allowed = [value for value in best if not isnan(value)]
            rows.append((name, method, *map(mean_and_sd, (*last, allowed)), f"{shape:.3f}"))
    notes = (
        f"± is the standard deviation (divisor n − 1) over {_count(results)}.",
        "Best step: highest test accuracy among steps at which training accuracy is at least as high; it is "
        "selected by test accuracy (oracle).",
        "Shape only: highest expected accuracy in the test environment of a predictor that ignores color.",
    )
    header = ("data", "method", "train", "test, last", "test, best step", "shape only")
    return CaptionedTable("rows", TextTable(header, tuple(rows), notes), f"After {SIZES['steps']} updates")


def _count(results: Mapping[str, Sequence[Any]]) -> str:
    return number_of(len(next(iter(results.values()))), "restart")
