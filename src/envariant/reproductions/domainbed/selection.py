"""Model selection of DomainBed: training-domain validation, leave-one-domain-out, and oracle.

Every rule selects among the draws and checkpoints of one method, one test environment and one trial. Each
environment is split into an 80 % part and a 20 % part. The test accuracy of the selected model is measured on
the 80 % part of the test environment.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from envariant.data.domainbed_split import OUT
from envariant.training.result import TrainingResult

Curves = Mapping[str, Mapping[int, float]]
"""Accuracy by environment part, such as `0` or `0 out`, and by step."""

Rule = Literal["training_domain", "leave_one_domain_out", "oracle"]

RULES: Mapping[Rule, str] = {
    "training_domain": "training-domain validation",
    "leave_one_domain_out": "leave-one-domain-out",
    "oracle": "oracle (looks at the test environment)",
}
"""Description of each rule; the keys are also the ends of the names of the published tables."""


def curves_of(result: TrainingResult) -> dict[str, dict[int, float]]:
    """Return the accuracies of a run with a single replica, by environment part and step."""
    curves: dict[str, dict[int, float]] = {}
    for row in result.rows:
        if row.metric == result.record.metric and row.step > 0:
            curves.setdefault(row.environment, {})[row.step] = row.value
    return curves


def training_domain(draws: Sequence[Curves], test: str) -> float:
    """Return the test accuracy at the draw and step with the best mean accuracy in training environments.

    The mean is taken over the 20 % parts of the training environments.
    """
    names = [name for name in draws[0] if name.endswith(OUT) and name != test + OUT]
    return _best(draws, test, lambda k, step: sum(draws[k][name][step] for name in names))


def leave_one_domain_out(draws: Sequence[Curves], pairs: Mapping[str, Sequence[Curves]], test: str) -> float:
    """Return the test accuracy at the draw and step with the best mean accuracy in left-out environments.

    The mean is taken over the environments that are keys of `pairs`. The accuracy in such an environment is
    measured on its 80 % part, for the run in which it is left out.

    Args:
        draws: Accuracies of the runs in which only the test environment is left out, one run per draw.
        pairs: Accuracies of the runs in which two environments are left out: the test environment and the
            one whose name is the key. Each value has one run per draw.
        test: Name of the test environment.
    """
    return _best(draws, test, lambda k, step: sum(runs[k][name][step] for name, runs in pairs.items()))


def oracle(draws: Sequence[Curves], test: str) -> float:
    """Return the final test accuracy of the draw that ends best on the test environment's 20 % part."""
    last = [{name: {max(curve): curve[max(curve)]} for name, curve in draw.items()} for draw in draws]
    return _best(last, test, lambda k, step: last[k][test + OUT][step])


def _best(draws: Sequence[Curves], test: str, score: Callable[[int, int], float]) -> float:
    """Return the test accuracy at the draw and step with the highest score; ties go to the first."""
    places = [(k, step) for k, draw in enumerate(draws) for step in sorted(draw[test])]
    k, step = max(places, key=lambda place: score(*place))
    return draws[k][test][step]
