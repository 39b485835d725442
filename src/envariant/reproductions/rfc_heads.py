"""Heads on rich features, as in the code of RFC: settings, stored computations and accuracy curves.

Test accuracy is the smallest of the accuracies in three test environments. The code selects neither penalty
weights nor steps. Here, penalty weights, and steps other than the last, are selected by test accuracy (oracle
selection).
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

from envariant import published
from envariant.core.environments import EnvironmentSource
from envariant.reproductions.runner import Runner

RATE = 5e-4
EVERY, EVERY_LONG = 5, 50
WEIGHTS: Mapping[str, tuple[float, ...]] = {
    "IRMv1": (1e3, 5e3, 1e4, 5e4, 1e5),
    "vREx": (1e3, 5e3, 1e4, 5e4, 1e5),
    "SD": (10, 50, 100, 500, 1000),
    "IGA": (1e3, 5e3, 1e4, 5e4, 1e5),
    "Fishr": (1e3, 5e3, 1e4, 5e4, 1e5),
    "CLOvE": (1e3, 5e3, 1e4, 5e4, 1e5),
}
ERM_L2 = (1e-4, 5e-4, 1e-3, 5e-3, 1e-2)
# l2 covers the featurizer only, which is frozen.
_WITHOUT_L2 = ("Fishr", "CLOvE")


@final
@dataclass(frozen=True)
class Setting:
    """Data, pretraining, penalty weights and numbers of updates of one experiment with frozen features.

    Attributes:
        data: Name of the data set.
        init: Pretraining.
        l2: L2 coefficient of the penalized heads.
        steps: Number of updates of all methods except IRMv1.
        irm_steps: Number of updates of IRMv1.
        weights: Penalty weights by method.
    """

    data: str
    init: str
    l2: float
    steps: int
    irm_steps: int
    weights: Mapping[str, tuple[float, ...]]

    def groups(self) -> list[dict[str, Any]]:
        """Return the heads to train: one group per method, and ERM with its list of l2 coefficients."""
        groups = [
            _group(name, weights, self.l2, self.irm_steps if name == "IRMv1" else self.steps)
            for name, weights in self.weights.items()
        ]
        # ERM minimizes the mean of two risks; the loss of a head has their sum, which doubles l2.
        erm = {"method": "ERM", "weights": [0.0] * len(ERM_L2), "l2": [2 * l2 for l2 in ERM_L2]}
        return [*groups, {**erm, "steps": self.steps, "every": EVERY}]

    def long_groups(self, steps: int) -> list[dict[str, Any]]:
        """Return one head per penalty, with its middle weight, to be trained for `steps` updates."""
        return [
            _group(name, (middle(weights),), self.l2, steps, EVERY_LONG)
            for name, weights in self.weights.items()
        ]


def _group(
    method: str, weights: Sequence[float], l2: float, steps: int, every: int = EVERY
) -> dict[str, Any]:
    own = 0.0 if method in _WITHOUT_L2 else l2
    count = len(weights)
    return {"method": method, "weights": list(weights), "l2": [own] * count, "steps": steps, "every": every}


def middle(weights: Sequence[float]) -> float:
    """Return the weight in the middle of a list, or the second of two weights in the middle."""
    return weights[len(weights) // 2]


_L2 = float(published.protocol("colored_mnist_rfc")["l2"])
COLORED = Setting(
    "colored-mnist(train_flips=(0.1, 0.2), test_flips=(0.9, 0.1, 0.5))",
    f"rfc(first_steps=51, steps=501, synthesis_steps=501, l2={_L2!r})",
    _L2,
    1001,
    3001,
    WEIGHTS,
)
INVERSE = Setting(
    "colored-mnist(train_flips=(0.2, 0.25), test_flips=(0.9, 0.1, 0.5), label_noise=0.1)",
    "rfc(first_steps=151, steps=401, synthesis_steps=501, l2=0.0001)",
    1e-4,
    2001,
    10_001,
    {**WEIGHTS, "SD": (0.05, 0.1, 0.5, 1, 5), "CLOvE": (1, 5, 10, 50, 100)},
)


@final
@dataclass(frozen=True)
class Curves:
    """Minimum accuracy over the test environments during training, for all heads of one method.

    Attributes:
        settings: Setting of each head: penalty weight, or l2 coefficient of ERM.
        steps: Evaluated steps.
        values: Minimum accuracy by head, restart and evaluated step.
    """

    settings: tuple[float, ...]
    steps: tuple[int, ...]
    values: tuple[tuple[tuple[float, ...], ...], ...]

    def mean(self, head: int) -> list[float]:
        """Return the mean of one head's accuracy over restarts, at each evaluated step."""
        return [statistics.fmean(at) for at in zip(*self.values[head], strict=True)]

    def at(self, head: int, position: int) -> tuple[float, ...]:
        """Return the accuracy of each restart at one evaluated step, given by its position in `steps`."""
        return tuple(curve[position] for curve in self.values[head])

    def best_last(self) -> int:
        """Return the index of the head with the highest mean over restarts at the last step.

        The accuracies are test accuracies, so this is oracle selection.
        """
        return max(range(len(self.settings)), key=lambda head: self.mean(head)[-1])

    def best(self) -> tuple[int, int]:
        """Return the index of a head and a position in `steps`, chosen for the highest mean over restarts.

        The accuracies are test accuracies, so this is oracle selection.
        """
        pairs = [(head, k) for head in range(len(self.settings)) for k in range(len(self.steps))]
        means = [self.mean(head) for head in range(len(self.settings))]
        return max(pairs, key=lambda pair: means[pair[0]][pair[1]])


def frozen(
    runner: Runner, setting: Setting, model: str, restarts: int
) -> tuple[dict[str, Curves], list[float]]:
    """Train heads on frozen features.

    Args:
        runner: Runner that stores one computation per restart.
        setting: Experiment.
        model: Network.
        restarts: Number of restarts; restart r has data seed r, as in the code.

    Returns:
        The curves of all heads by method, and for each restart, the minimum accuracy of the pretrained head
        over the test environments.
    """
    groups = setting.groups()
    results = _computed(runner, setting, model, restarts, groups)
    return _curves(groups, [each["curves"] for each in results]), [each["start"] for each in results]


def frozen_for_long(
    runner: Runner, setting: Setting, model: str, restarts: int, steps: int
) -> dict[str, Curves]:
    """Train heads with the middle penalty weights for many steps, and return their curves by method.

    Args:
        runner: Runner that stores one computation per restart.
        setting: Experiment.
        model: Network.
        restarts: Number of restarts; these are the first restarts of `frozen`.
        steps: Number of updates.
    """
    groups = setting.long_groups(steps)
    results = _computed(runner, setting, model, restarts, groups)
    return _curves(groups, [each["curves"] for each in results])


def _computed(
    runner: Runner, setting: Setting, model: str, restarts: int, groups: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    source, results = runner.source(setting.data), list[dict[str, Any]]()
    for restart in range(restarts):
        inputs = {
            "data": setting.data,
            "model": model,
            "init": setting.init,
            "restart": restart,
            "groups": groups,
        }
        results.append(runner.compute("rich-heads", inputs, partial(trained, source)))
    return results


def _curves(groups: list[dict[str, Any]], by_restart: list[list[dict[str, Any]]]) -> dict[str, Curves]:
    curves: dict[str, Curves] = {}
    for k, group in enumerate(groups):
        own = [restart[k] for restart in by_restart]
        erm = group["method"] == "ERM"
        settings = ERM_L2 if erm else tuple(group["weights"])
        values = tuple(tuple(tuple(each["least"][head]) for each in own) for head in range(len(settings)))
        curves[group["method"]] = Curves(settings, tuple(own[0]["steps"]), values)
    return curves


def trained(
    source: EnvironmentSource, data: str, model: str, init: str, restart: int, groups: list[dict[str, Any]]
) -> dict[str, Any]:
    """Construct rich features in one restart, and train all heads on them.

    Args:
        source: Data source.
        data: Name of the data source.
        model: Network.
        init: Pretraining.
        restart: Index of the restart, and seed of the data.
        groups: Heads to train; see `Setting.groups`.

    Returns:
        Minimum accuracies over the test environments: that of the pretrained head ("start"), and those of
        every trained head at every evaluated step ("curves").
    """
    # Imported here because PyTorch is slow to import and a stored computation does not need it.
    import torch

    from envariant.reproductions.frozen_heads import rich_features, train_heads

    del data
    rich = rich_features(source, restart, model=model, init=init, learning_rate=RATE, data_seed=restart)
    rows, tests = rich.rows("train"), rich.rows("test")
    curves: list[dict[str, Any]] = []
    for group in groups:
        heads = train_heads(
            rows, rich.head, group["method"], group["weights"], l2=group["l2"], steps=group["steps"],
            every=group["every"], learning_rate=RATE, seed=restart,
        )  # fmt: skip
        measured = [(step, tests.accuracy(each).amin(dim=0)) for step, each in heads]
        least = torch.stack([values for _, values in measured], dim=1)
        curves.append({"steps": [step for step, _ in measured], "least": least.tolist()})
    return {"start": float(tests.accuracy(rich.head[:, None]).min()), "curves": curves}
