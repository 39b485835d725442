"""Sections of the reproduction of REx (Krueger et al. 2021) that need no training runs: `toy` and `sem`."""

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from envariant.analysis.statistics import Interval, difference, interval
from envariant.data.linear_sem import SETUPS
from envariant.reporting import charts
from envariant.reporting.tables import TextTable
from envariant.reproductions import rex_linear
from envariant.reproductions.base import CaptionedFigure, CaptionedTable, Finding, section
from envariant.reproductions.rex_linear import BASELINES, STABLE, TOY_METHODS, TOY_STEPS
from envariant.reproductions.runner import Runner
from envariant.reproductions.sem import ERRORS
from envariant.reproductions.summaries import mean_and_sd
from envariant.reproductions.verdicts import all_hold, beyond, statement

STEPS, REPETITIONS, REPETITIONS_QUICK = 100_000, 10, 3
METHODS = ("IRM", *BASELINES)
# A probability within this distance of its target counts as having arrived.
_ARRIVED = 0.01


@section("toy", "Three inputs with different noise")
def toy(runner: Runner) -> Iterator[Finding]:
    """Test the claim that REx needs hybrid domains if environments differ in the amount of label noise.

    A hybrid domain combines the inputs of one environment with the labels of another. There are three
    possible inputs x, each with its own logit. Only for the third input does P(y = 1 | x) differ between
    environments. Labels are noisier for the first input than for the second, and the frequencies of these two
    inputs differ between environments. The stable predictor ignores the third input: for the three inputs, it
    predicts P(y = 1 | x) = 0.5, 0.75 and 0.5. Expectations are computed exactly.
    """
    del runner
    paths = {method: rex_linear.toy(method, TOY_STEPS) for method in TOY_METHODS}
    steps = list(range(TOY_STEPS + 1))
    for x, name in ((1, "second"), (2, "third")):
        series = {method: (steps, [step[x] for step in path]) for method, path in paths.items()}
        chart = charts.lines(series, "step", "P(y = 1 | x)", marks={"stable predictor": STABLE[x]})
        yield CaptionedFigure(name, chart, f"Prediction for the {name} input during training.")
    shown = (10, 100, TOY_STEPS)
    rows = tuple(
        (method, *(" ".join(f"{p:.4f}" for p in path[step]) for step in shown))
        for method, path in paths.items()
    )
    header = ("method", *(f"step {step}" for step in shown))
    yield CaptionedTable("predictions", TextTable(header, rows), "P(y = 1 | x) of the three inputs")
    last = {method: path[-1] for method, path in paths.items()}

    def has_arrived(method: str, x: int) -> bool:
        return abs(last[method][x] - STABLE[x]) < _ARRIVED

    def numbers(x: int) -> str:
        return f"P(y = 1 | x) at step {TOY_STEPS}: " + ", ".join(f"{m} {p[x]:.4f}" for m, p in last.items())

    yield statement(
        "IRM, REx and REx-HD learn to ignore the third input; ERM does not.",
        all(has_arrived(m, 2) for m in TOY_METHODS if m != "ERM") and not has_arrived("ERM", 2),
        numbers(2),
        exact=True,
    )
    yield statement(
        "REx also ignores the second input, although it is stable and differs only in noise; with hybrid "
        "domains, it uses this input.",
        abs(last["REx"][1] - 0.5) < _ARRIVED and has_arrived("REx-HD", 1),
        numbers(1),
        exact=True,
    )


def _errors(runner: Runner) -> dict[str, dict[str, dict[str, list[float]]]]:
    inputs = {
        "setups": list(SETUPS),
        "repetitions": runner.pick(quick=REPETITIONS_QUICK, full=REPETITIONS),
        "steps": STEPS,
    }
    return runner.compute("sem", inputs, rex_linear.solve)


@section("sem", "V-REx on linear structural equation models")
def linear(runner: Runner) -> Iterator[Finding]:
    """Test V-REx on the linear models of the IRM paper, with three variants of the risks.

    The coefficients of the models are Gaussian, unlike in the published results of the IRM paper. REx_0 uses
    the risks; REx_var subtracts Var(y) + Var(ŷ) from them, and REx_var_diff subtracts Var(y) − Var(ŷ).
    """
    errors = _errors(runner)
    for kind in ERRORS:
        means = {s: {m: statistics.fmean(errors[s][m][kind]) for m in METHODS} for s in SETUPS}
        label = f"{kind} weight error, mean over repetitions"
        yield CaptionedFigure(kind, charts.grouped(means, label, "log"), f"{label.capitalize()}.")
        yield _table(errors, kind)
    yield (
        "The table of the paper is in an appendix that was not available here, so no number is compared. All "
        "methods use the environments e = 0.2 and e = 2; the weight of the risk is selected by the error in "
        "e = 5. The program calls `detach` on a variance but discards the result, so the variance of the "
        "prediction is differentiated, as it is here. IRM is computed in float32, and V-REx in float64."
    )
    yield from _printed(errors)
    yield from _claims(errors)


def _table(errors: Mapping[str, Any], kind: str) -> CaptionedTable:
    rows = tuple(
        (name, *(mean_and_sd(errors[setup][key][kind], 4) for setup in SETUPS))
        for key, name in ((*((m, m) for m in METHODS), ("zero", "weights of 0")))
    )
    count = len(errors["FOU"]["IRM"][kind])
    notes = ("± is the standard deviation over repetitions (divisor n − 1).",)
    caption = f"Mean squared {kind} weight error over {count} repetitions"
    return CaptionedTable(kind, TextTable(("method", *SETUPS), rows, notes), caption)


def _printed(errors: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield a table of the errors in setups with scrambled inputs, as the released program computes them."""
    scrambled = [s for s in SETUPS if s[2] == "S"]
    rows: list[tuple[str, ...]] = []
    for method in METHODS:
        printed = [rex_linear.as_printed(errors[s][method], scrambled=True) for s in scrambled]
        rows += [(f"{method}, {kind}", *(mean_and_sd(own[kind], 4) for own in printed)) for kind in ERRORS]
    caption = "Scrambled setups, as the released program computes the errors"
    yield CaptionedTable("printed", TextTable(("error", *scrambled), tuple(rows)), caption)
    yield (
        "The program rotates the true weights instead of the estimate, and counts a weight as causal if "
        "its rotated true weight is not 0. With scrambled inputs all weights are causal. Its non-causal "
        "errors are therefore 0 for every estimate, and its causal errors are means over causal and "
        "non-causal weights. Only this table shows errors computed in this way."
    )


def _claims(errors: Mapping[str, Any]) -> Iterator[Finding]:
    def change(setup: str, kind: str) -> Interval:
        return difference(errors[setup]["REx_0"][kind], errors[setup]["IRM"][kind])

    def listed(values: Mapping[str, object]) -> str:
        return ", ".join(f"{key} {value}" for key, value in values.items())

    equal = {setup: change(setup, "causal") for setup in SETUPS if setup[1] == "O"}
    yield statement(
        "Where the noise of the effects varies (O), the causal error of V-REx (REx_0) is below that of IRM.",
        all_hold(beyond(each, below=0.0) for each in equal.values()),
        f"paired differences REx_0 − IRM: {listed(equal)}",
    )
    varying = {setup: change(setup, "non-causal") for setup in SETUPS if setup[1] == "E"}
    yield statement(
        "Where the noise of the target varies (E), the risks of the true weights differ between "
        "environments, and V-REx relies on effects more than IRM does.",
        all_hold(beyond(each, above=0.0) for each in varying.values()),
        f"paired differences of the non-causal error, REx_0 − IRM: {listed(varying)}",
    )
    best = {s: min(BASELINES, key=lambda m, s=s: statistics.fmean(errors[s][m]["causal"])) for s in varying}
    above = {s: interval(errors[s][m]["causal"]) for s, m in best.items()}
    zero = {s: statistics.fmean(errors[s]["zero"]["causal"]) for s in varying}
    yield statement(
        "In the E setups, no variant of V-REx has a lower causal error than an estimate of 0 for every "
        "weight.",
        all_hold(beyond(above[s], above=zero[s]) for s in varying),
        ", ".join(f"{s}: {best[s]} {above[s]}, weights of 0 {zero[s]:.3g}" for s in varying),
    )
