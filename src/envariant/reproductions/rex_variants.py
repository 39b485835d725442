"""Sections of the reproduction of REx (Krueger et al. 2021) on Colored MNIST results outside its main table.

They cover a range of test environments, covariate shift, the step at which the penalty sets in, and networks
that memorize the training rows. All sections use the settings of the commands in the readme.
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace

import scipy.stats

from envariant.analysis.statistics import Interval, slope
from envariant.reporting import charts
from envariant.reproductions.base import CaptionedFigure, Finding, section
from envariant.reproductions.rex_protocols import README, TEST
from envariant.reproductions.runner import Run, Runner
from envariant.reproductions.summaries import (
    curves,
    gain,
    mean_curve,
    ood_score,
    score_table,
    signed,
    training_environments,
)
from envariant.reproductions.verdicts import all_hold, beyond, statement, within
from envariant.training.result import TrainingResult

FLIPS = tuple(k / 10 for k in range(11))
RANGE = f"colored-mnist(test_flips=({', '.join(f'{flip:g}' for flip in FLIPS)}), strided_tests=true)"
SHIFTED = "colored-mnist-covariate-shift"
KINDS = ("class", "digit", "color")
PENALTIES = ("V-REx", "IRM")
# Number of steps in the paper's figure on memorization.
_MEMORY_STEPS = 25_000


def _accuracy(result: TrainingResult, environment: str) -> float:
    values = result.final(environment, "accuracy").values
    return sum(values) / len(values) if values else math.nan


def _slope_interval(positions: Sequence[float], values: Sequence[float]) -> Interval:
    """Return the slope of the least-squares line and its 95 % confidence interval, from the residuals."""
    line, mean = statistics.linear_regression(positions, values), statistics.fmean(positions)
    residuals = [y - line.intercept - line.slope * x for x, y in zip(positions, values, strict=True)]
    freedom = len(values) - 2
    error = math.sqrt(sum(r * r for r in residuals) / freedom / sum((x - mean) ** 2 for x in positions))
    margin = float(scipy.stats.t.ppf(0.975, freedom)) * error
    return Interval(line.slope, line.slope - margin, line.slope + margin, len(values))


@section("range", "Figure 2: a range of test environments")
def range_of_shifts(runner: Runner) -> Iterator[Finding]:
    """Test the claim that a larger coefficient β makes the risk of V-REx equal across environments.

    Eleven test environments, of 1,000 rows each, have color flip probabilities 0, 0.1, …, 1. Those of the
    training environments are 0.2 and 0.1. The paper shows one network for each β.
    """
    settings = {**README.run("V-REx", RANGE).settings, "replicas": 1}
    runs = {0: Run(RANGE, f"erm(risk_aggregator=sum, l2={README.l2!r})", settings)}
    # The program for this figure applies the coefficient one update later than that of the table.
    for beta in runner.pick(quick=(10_000,), full=(100, 10_000)):
        coefficient = f"step(1, {beta}, at={README.switch + 1})"
        algorithm = f"vrex(coefficient={coefficient}, pairwise=true, risk_aggregator=sum, l2={README.l2!r})"
        runs[beta] = Run(RANGE, algorithm, settings)
    results = runner.sweep(runs)
    series: dict[str, tuple[list[float], list[float]]] = {}
    for beta, result in results.items():
        tests = result.record.test_environments
        series[f"β = {beta:,}"] = (list(FLIPS), [_accuracy(result, name) for name in tests])
    chart = charts.lines(series, "color flip probability", "accuracy", marks={"chance": 0.5})
    yield CaptionedFigure(
        "accuracy", chart, "One network for each β; the standard error of a point is 0.014."
    )
    slopes = [abs(slope(*each)) for each in series.values()]
    yield statement(
        "A larger β flattens the curve of accuracies.",
        slopes == sorted(slopes, reverse=True),
        "absolute slopes " + ", ".join(f"{each:.3f}" for each in slopes),
    )
    flips, last = series[f"β = {max(results):,}"]
    change = _slope_interval(flips, last)
    yield statement(
        f"At β = {max(results):,}, the accuracies at flips 0 and 1 differ by at most five points.",
        within(change, 0.05),
        f"difference on the fitted line {change}; measured accuracies from {min(last):.3f} to "
        f"{max(last):.3f}",
    )
    yield (
        "The expected accuracy of a fixed network is a linear function of the flip probability, so two "
        "environments determine the curve. The deviations from a line are the noise of 1,000 rows."
    )


@section("covariate-shift", "Figure 5: covariate shift")
def covariate_shift(runner: Runner) -> Iterator[Finding]:
    """Test the claim that V-REx is more accurate than IRM if training environments also differ in inputs.

    In one training environment, a group of rows (classes, digits or shades of a color) has the share p, and
    in the other 1 − p. The paper states that it uses IRM's hyperparameters and three trials; here, both
    methods use the defaults of the program. The paper's curves are not available as numbers.
    """
    shares = runner.pick(quick=(0.1,), full=(0.1, 0.3, 0.5))
    kinds = runner.pick(quick=KINDS[:1], full=KINDS)
    replicas = runner.pick(quick=1, full=3)
    results = runner.sweep(
        {
            (kind, p, method): README.run(method, _shifted(kind, p), replicas=replicas)
            for kind in kinds
            for p in shares
            for method in PENALTIES
        }
    )
    labels = {f"{kind}, p = {p:g}: {method}": result for (kind, p, method), result in results.items()}
    yield score_table(labels, "shift")
    pairs = [(kind, p) for kind in kinds for p in shares]
    gains = [gain(results[*pair, "V-REx"], results[*pair, "IRM"]) for pair in pairs]
    yield statement(
        "V-REx is more accurate than IRM at every p.",
        all_hold([beyond(each, above=0.0) for each in gains]),
        "; ".join(f"{kind} {p:g}: {signed(each)}" for (kind, p), each in zip(pairs, gains, strict=True)),
    )
    scores = [ood_score(results[kind, shares[0], "IRM"]) for kind in kinds]
    yield statement(
        f"With p = {shares[0]:g}, IRM is not more accurate than chance.",
        all_hold([beyond(each, below=0.5) for each in scores]),
        "; ".join(f"{kind} {each}" for kind, each in zip(kinds, scores, strict=True)),
    )


def _shifted(kind: str, p: float) -> str:
    # The program's option f gives the shares f/(1 + f) and 1/(1 + f).
    return f"{SHIFTED}(kind={kind}, overlap={p / (1 - p):.6g})"


@section("onset", "Figure 12: the step at which the penalty sets in")
def onset(runner: Runner) -> Iterator[Finding]:
    """Test the claim that test accuracy first rises and then falls as the onset of the penalty is delayed.

    T is the step at which the penalty sets in. The paper shows five runs for each of 41 values of T. Here, T
    takes multiples of 50, with two runs for each value.
    """
    steps = runner.pick(quick=(0, 100, 400), full=tuple(range(0, 401, 50)))
    replicas = runner.pick(quick=1, full=2)
    results = {
        method: runner.sweep({t: README.at(t).run(method, replicas=replicas) for t in steps})
        for method in PENALTIES
    }
    means = {
        method: ([*map(float, steps)], [_accuracy(result, TEST) for result in runs.values()])
        for method, runs in results.items()
    }
    chart = charts.lines(means, "T", f"accuracy in {TEST}", marks={"chance": 0.5})
    yield CaptionedFigure("accuracy", chart, f"Accuracy after {README.steps} updates, by T.")
    for method, (_, values) in means.items():
        best = max(range(len(steps)), key=values.__getitem__)
        numbers = ", ".join(f"T = {t}: {value:.3f}" for t, value in zip(steps, values, strict=True))
        text = f"{method}: an intermediate T is better than the smallest and the largest."
        yield statement(text, 0 < best < len(steps) - 1, numbers)


@section("memory", "Figure 13: memorization empties the penalties")
def memory(runner: Runner) -> Iterator[Finding]:
    """Test the claim that penalties vanish for a network that fits all training rows but fails on test data.

    The network is trained by ERM without an L2 term; the penalties of IRM and V-REx are measured, but are not
    part of the loss. The paper shows 25,000 steps.
    """
    steps = runner.pick(quick=400, full=5000)
    algorithm = "irm(coefficient=0, l2=0, risk_aggregator=sum)"
    declared = {"steps": steps, "replicas": 1, "evaluate_every": steps // 20}
    result = runner.train(replace(README.run("IRM").but(**declared), algorithm=algorithm))
    names = training_environments(result)
    xs, loss = mean_curve(result, names, "loss")
    each = [mean_curve(result, [name], "loss")[1] for name in names]
    gaps = [(a - b) ** 2 for a, b in zip(*each, strict=True)]
    at, penalty = curves(result, "*", "irm penalty")[0]
    series: dict[str, tuple[list[int], list[float]]] = {
        "mean training loss": (xs, loss), "(R₁ − R₂)²": (xs, gaps), "IRM's penalty": (at, penalty),
    }  # fmt: skip
    yield CaptionedFigure("penalties", charts.lines(series, "step", "value", ("linear", "log")), "One run.")
    shares = {name: values[-1] / max(values) for name, (_, values) in series.items()}
    # The data also have a gray test environment.
    test = _accuracy(result, TEST)
    memorized = all(share < 1e-3 for share in shares.values()) and test < 0.5
    yield statement(
        "Loss and both penalties fall below 0.001 of their maximum, and test accuracy stays below 0.5.",
        # Fewer steps than in the paper cannot contradict it.
        None if steps < _MEMORY_STEPS and not memorized else memorized,
        "; ".join(f"{name}: {share:.2g} of its maximum" for name, share in shares.items())
        + f"; test accuracy {test:.3f}, after {steps:,} updates",
    )
