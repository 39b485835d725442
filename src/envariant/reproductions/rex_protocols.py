"""Settings of the Colored MNIST runs of the REx paper and of its released code."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

from envariant import published
from envariant.reproductions.runner import Run

TEST, GRAY = "flip-0.9", "gray"
DATA = f"colored-mnist({GRAY}_test=true)"
# Rows of the table, with the algorithm that each of them names.
METHODS: Mapping[str, str] = {"V-REx": "vrex", "MM-REx": "mm-rex", "IRM": "irm", "RI": "risk-interpolation"}
EVERY = 100


@final
@dataclass(frozen=True)
class Protocol:
    """Settings that all methods share.

    Attributes:
        hidden: Width of both hidden layers.
        l2: Weight of the squared norm of all parameters, in a loss that sums the two risks.
        rate: Learning rate of Adam.
        switch: Step at which the coefficient rises from 1 to `weight`.
        weight: Coefficient of the penalty after the switch.
        steps: Number of updates before the last evaluation.
    """

    hidden: int
    l2: float
    rate: float
    switch: int
    weight: float
    steps: int

    def at(self, step: int) -> "Protocol":
        """Return a copy of the protocol in which the coefficient rises at the given step."""
        return replace(self, switch=step)

    def run(self, method: str, data: str = DATA, **settings: Any) -> Run:
        """Return the description of the run that trains one method of the paper's table.

        Args:
            method: Name of the method, such as "V-REx".
            data: Name of the data set.
            settings: Further arguments of `train`.
        """
        coefficient = f"step(1, {self.weight!r}, at={self.switch})" if self.switch else f"{self.weight!r}"
        # The code adds the penalty to the sum of both risks. MM-REx is R₁ + R₂ + c |R₁ − R₂|, which is twice
        # the library's form with the mean, so the weight of the norm is halved there.
        summed, halved = f"risk_aggregator=sum, l2={self.l2!r}", f"l2={self.l2 / 2!r}"
        arguments = {
            "V-REx": f"coefficient={coefficient}, pairwise=true, {summed}",
            "MM-REx": f"coefficient={coefficient}, {halved}",
            "IRM": f"coefficient={coefficient}, {summed}",
            "RI": halved,
        }
        declared = {"model": f"mlp(hidden={self.hidden})", "learning_rate": self.rate, "steps": self.steps}
        declared |= {"batch_size": "full", "evaluate_every": EVERY}
        return Run(data, f"{METHODS[method]}({arguments[method]})", {**declared, **settings})


def _published(protocol: str) -> Protocol:
    p = published.protocol(protocol)
    # The program prints values that it computes before an update, so 501 steps are 500 updates.
    return Protocol(
        p["hidden"], p["l2"], p["lr"], int(p["anneal_steps"]), p["penalty_weight"], int(p["steps"]) - 1
    )


README, PAPER = _published("colored_mnist_rex"), _published("colored_mnist_irm")
