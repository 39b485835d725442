"""Reproduction of Probable Domain Generalization via Quantile Risk Minimization (Eastwood et al. 2022).

All penalized runs of a seed start from the same 400 steps of ERM, which are trained and stored once.
"""

import statistics
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, final

from envariant.analysis.statistics import Interval, difference, interval
from envariant.data.colored.eqrm import LOGGED
from envariant.reporting import charts
from envariant.reporting.tables import TextTable
from envariant.reproductions.base import CaptionedFigure, CaptionedTable, Finding, Reproduction, section
from envariant.reproductions.eqrm_regression import regression
from envariant.reproductions.runner import Run, Runner
from envariant.reproductions.summaries import curves, mean_and_sd, short
from envariant.reproductions.verdicts import beyond, statement, within
from envariant.training.history import GRADIENT_RMS
from envariant.training.result import TrainingResult

FLIPS = tuple(k / 10 for k in range(11))
TRAIN_FLIPS = LOGGED[:2]
DATA = f"colored-mnist:eqrm(test_flips={FLIPS}, logged_tests=true)"
# Equal training environments in which the color says nothing about the label.
ORACLE = f"colored-mnist:eqrm(train_flips=(0.5, 0.5), test_flips={FLIPS}, logged_tests=true)"
VALIDATION = tuple(f"logged-flip-{flip:g}" for flip in TRAIN_FLIPS)
SHIFTED = 0.9

START, RATE, BATCH = 400, 1e-4, 25_000
EPSILON = 1e-8
GOAL, CLOSE, GAINED, LOW = 0.70, 0.01, 0.10, 0.35


@final
@dataclass(frozen=True)
class Method:
    """Method with the settings of the released code.

    Attributes:
        algorithm: Name of the algorithm, with `{}` in place of the setting.
        symbol: Symbol of the setting.
        settings: Values that the code lists.
        steps: Number of updates after the ERM start.
    """

    algorithm: str
    symbol: str
    settings: tuple[float, ...]
    steps: int

    @property
    def middle(self) -> float:
        """Middle value of `settings`; no results are used to choose it."""
        return self.settings[len(self.settings) // 2]


_WEIGHTS = (1e3, 5e3, 1e4, 5e4, 1e5)
METHODS: Mapping[str, Method] = {
    "IRM": Method("irm(coefficient={})", "λ", _WEIGHTS, 200),
    "V-REx": Method("vrex(coefficient={})", "λ", _WEIGHTS, 200),
    "EQRM": Method("eqrm(quantile={}, burn_in=0)", "α", (-100, -500, -1000, -5000, -1e4), 200),
}
OTHERS: Mapping[str, Method] = {
    "SD": Method("sd(coefficient={}, normalize_loss=true)", "λ", (1, 5, 10, 50, 100), 600),
    "IGA": Method("iga(coefficient={})", "λ", _WEIGHTS, 600),
    "GroupDRO": Method("groupdro(rate={})", "η", (0.001, 0.01, 0.1, 0.5, 1), 600),
}


def width(runner: Runner) -> int:
    """Return the number of hidden units per layer in the profile of a runner."""
    return runner.pick(quick=128, full=390)


def _run(runner: Runner, algorithm: str, steps: int, data: str | None = None, **settings: Any) -> Run:
    model = f"mlp(hidden={width(runner)}, depth=3, dropout=0.2, dropout_position=before)"
    common: dict[str, Any] = {
        "model": model, "batch_size": BATCH, "steps": steps, "learning_rate": RATE, "evaluate_every": steps
    }  # fmt: skip
    return Run(data or DATA, algorithm, {**common, **settings})


def erm_start(runner: Runner, replicas: int | None = None) -> Run:
    """Return the ERM run whose weights are the start of the penalized runs.

    Args:
        runner: Runner with the profile.
        replicas: Number of seeds. Default: 1 in the quick profile, 10 in the full profile.
    """
    return _run(runner, "erm", START, replicas=replicas or runner.pick(quick=1, full=10))


def penalized(
    runner: Runner, method: Method, setting: float, replicas: int | None = None, *, from_erm: bool = True
) -> Run:
    """Return a run of a method from the ERM start, or from random weights with equally many updates.

    Args:
        runner: Runner with the profile.
        method: Method.
        setting: Setting of the method.
        replicas: Number of seeds. Default: 1 in the quick profile, 3 in the full profile.
        from_erm: Whether to start from the weights of `erm_start`.
    """
    run = partial(
        _run, runner, method.algorithm.format(setting), learning_rate=f"cosine({RATE})",
        replicas=replicas or runner.pick(quick=1, full=3),
    )  # fmt: skip
    if not from_erm:
        return run(START + method.steps)
    described = run(method.steps)
    start = erm_start(runner, runner.pick(quick=replicas, full=None))
    return Run(described.data, described.algorithm, described.settings, start)


def accuracies(result: TrainingResult, flip: float) -> tuple[float, ...]:
    """Return the final accuracy of each replica on MNIST's test digits, colored with a flip probability.

    Args:
        result: Result of a run on `DATA`.
        flip: Color flip probability.
    """
    return result.final(shifted_environment(flip, result.record.roles), "accuracy").values


def shifted_environment(flip: float, names: Collection[str]) -> str:
    """Return the name of the environment of MNIST's test digits with a color flip probability.

    Args:
        flip: Color flip probability.
        names: Names of all environments. If a training environment has the same probability, the name of the
            test environment begins with "test-".
    """
    return next(name for name in (f"test-flip-{flip:g}", f"flip-{flip:g}") if name in names)


def _validated(result: TrainingResult) -> float:
    """Return the mean accuracy on held-out digits, colored like the training environments."""
    return statistics.fmean(x for name in VALIDATION for x in result.final(name, "accuracy").values)


def _score(result: TrainingResult) -> Interval:
    return interval(accuracies(result, SHIFTED)).clipped(0, 1)


def _gap(first: TrainingResult, second: TrainingResult) -> Interval:
    """Return the paired difference in accuracy at flip 0.9, first minus second, over their common seeds."""
    ours, others = _by_replica(first), _by_replica(second)
    common = [k for k in ours if k in others]
    return difference([ours[k] for k in common], [others[k] for k in common])


def _table(results: Mapping[str, TrainingResult], name: str, caption: str) -> CaptionedTable:
    """Return a table of accuracies at all flips, one row per run."""
    rows = [
        (
            label,
            *(mean_and_sd(accuracies(result, flip)) for flip in FLIPS),
            f"{_validated(result):.3f}",
            str(len(result.finished)),
        )
        for label, result in results.items()
    ]
    notes = (
        "± is the standard deviation over seeds (divisor n − 1). Columns are color flip probabilities of "
        "MNIST's 10,000 test digits. Validation: accuracy on 10,000 other digits that are not trained on, at "
        "flips 0.1 and 0.2.",
    )
    header = ("method", *(f"{flip:g}" for flip in FLIPS), "validation", "seeds")
    return CaptionedTable(name, TextTable(header, tuple(rows), notes), caption)


@section("ten-seeds", "V-REx and EQRM from an ERM start, ten seeds")
def ten_seeds(runner: Runner) -> Iterator[Finding]:
    """Test the claims that V-REx and EQRM reach 70 % accuracy and differ by less than one point.

    The claims are about test digits with color flip probability 0.9. The network first learns from both
    training environments by 400 steps of ERM; 200 steps with the penalty follow. The settings are the middle
    ones of the lists in the released code, λ = 10⁴ and α = −1000: no result was used to choose them.
    """
    seeds = runner.pick(quick=1, full=10)
    results = runner.sweep({"ERM start": erm_start(runner)}) | runner.sweep(
        {
            f"{name}, {METHODS[name].symbol} = {short(METHODS[name].middle)}": penalized(
                runner, METHODS[name], METHODS[name].middle, seeds
            )
            for name in ("V-REx", "EQRM")
        }
    )
    means = {
        name: (FLIPS, [statistics.fmean(accuracies(result, flip)) for flip in FLIPS])
        for name, result in results.items()
    }
    chart = charts.lines(means, "color flip probability", "accuracy", marks={"label noise": 0.75})
    yield CaptionedFigure(
        "flips",
        chart,
        "Mean accuracy on MNIST's test digits; training flips are 0.1 and 0.2. A classifier that uses only "
        "the shape is right in at most 75 % of the rows.",
    )
    yield _table(results, "flips", "Accuracy by color flip probability")
    (vrex_name, vrex), (eqrm_name, eqrm) = list(results.items())[1:]
    for name, result in ((vrex_name, vrex), (eqrm_name, eqrm)):
        yield statement(
            f"{name} from the ERM start: accuracy of {GOAL:.2f} or more at flip {SHIFTED}.",
            beyond(_score(result), above=GOAL),
            f"{mean_and_sd(accuracies(result, SHIFTED))}, 95 % interval {_score(result)}, "
            f"{len(result.finished)} seeds; no selection",
        )
    gap = _gap(eqrm, vrex)
    yield statement(
        "V-REx and EQRM differ by less than one point.",
        within(gap, CLOSE),
        f"EQRM − V-REx at flip {SHIFTED}: {gap}, paired by seed",
    )
    yield (
        "The code divides EQRM's loss by a constant ρ, the ratio of two gradient norms. Adam's updates do "
        "not depend on a constant factor, apart from its ε = 10⁻⁸, so the division is left out here. The "
        "section `gradient-ratio` measures its effect. With two environments and α < 0, EQRM is MM-REx: "
        "R̄ + κ|R₁ − R₂| with κ = 0.6525·√(−2α)."
    )


@section("settings", "Five settings of IRM, V-REx and EQRM")
def settings(runner: Runner) -> Iterator[Finding]:
    """Test the claims that EQRM's accuracy rises with −α, and that the best settings reach 70 %.

    The paper selects each setting by accuracy on the test digits at flip 0.9, and reports the same accuracy.
    This is oracle selection. The setting with the best accuracy on held-out rows of the training environments
    is shown as well.
    """
    results = {
        name: runner.sweep(
            {
                setting: penalized(runner, method, setting)
                for setting in runner.pick(quick=method.settings[::2], full=method.settings)
            }
        )
        for name, method in METHODS.items()
    }
    labeled = {
        f"{name}, {METHODS[name].symbol} = {short(setting)}": result
        for name, of_method in results.items()
        for setting, result in of_method.items()
    }
    yield _table(labeled, "settings", "Accuracy by color flip probability")
    rows: list[tuple[str, ...]] = []
    for name, of_method in results.items():
        best = max(of_method, key=lambda setting, r=of_method: _score(r[setting]).mean)
        chosen = max(of_method, key=lambda setting, r=of_method: _validated(r[setting]))
        for kind, setting in (("oracle", best), ("training-domain validation", chosen)):
            score = _score(of_method[setting])
            rows.append((name, kind, short(setting), f"{score}"))
            yield statement(
                f"{name}, {kind}: accuracy of {GOAL:.2f} or more at flip {SHIFTED}.",
                beyond(score, above=GOAL),
                f"{METHODS[name].symbol} = {short(setting)}: {score}, {score.count} seeds",
            )
    header = ("method", "selection", "setting", "accuracy at flip 0.9, 95 % interval")
    notes = ("Oracle selection uses the accuracies that are shown, so they are optimistic.",)
    yield CaptionedTable("selection", TextTable(header, tuple(rows), notes), "Two selections of the setting")
    first, *_, last = results["EQRM"].values()
    rise = _gap(last, first)
    yield statement(
        "EQRM's accuracy rises with −α.",
        beyond(rise, above=0),
        f"largest minus smallest −α: {rise}; means "
        + ", ".join(f"{short(a)}: {_score(result).mean:.3f}" for a, result in results["EQRM"].items()),
    )


@section("start", "ERM start or random start")
def start(runner: Runner) -> Iterator[Finding]:
    """Test the claim that the ERM start improves accuracy over a random start by more than ten points.

    From the random start, the penalty acts in all 600 steps. The settings are those of the section
    `ten-seeds`.
    """
    names = runner.pick(quick=("V-REx",), full=tuple(METHODS))
    results: dict[str, TrainingResult] = {}
    for name in names:
        method = METHODS[name]
        pair = runner.sweep(
            {
                f"{name}, {word} start": penalized(runner, method, method.middle, from_erm=word == "ERM")
                for word in ("random", "ERM")
            }
        )
        results |= pair
        random, from_erm = pair.values()
        gap = _gap(from_erm, random)
        yield statement(
            f"{name}: the ERM start gains more than ten points at flip {SHIFTED}.",
            beyond(gap, above=GAINED),
            f"{gap}, paired by seed; random start {_score(random)}",
        )
    yield _table(results, "starts", "Accuracy by color flip probability")


@section("baselines", "ERM, oracle and other penalties")
def baselines(runner: Runner) -> Iterator[Finding]:
    """Test the claims that ERM and GroupDRO stay below 35 % accuracy, and that no method exceeds the oracle.

    The oracle is ERM on training environments with flip 0.5, in which colors do not predict labels.
    """
    oracle = _run(runner, "erm", START, ORACLE, replicas=runner.pick(quick=1, full=3))
    others = runner.pick(quick={}, full=OTHERS)
    results = runner.sweep({"ERM": erm_start(runner), "oracle": oracle}) | runner.sweep(
        {
            f"{name}, {method.symbol} = {short(method.middle)}": penalized(runner, method, method.middle)
            for name, method in {**METHODS, **others}.items()
        }
    )
    yield _table(results, "baselines", "Accuracy by color flip probability")
    for name, result in results.items():
        if name.startswith(("ERM", "GroupDRO")):
            yield statement(
                f"{name}: accuracy below {LOW:.2f} at flip {SHIFTED}.",
                beyond(_score(result), below=LOW),
                f"{_score(result)}",
            )
        elif name != "oracle":
            gap = _gap(results["oracle"], result)
            yield statement(
                f"{name} stays below the oracle at flip {SHIFTED}.",
                beyond(gap, above=0),
                f"oracle − {name}: {gap}, paired by seed",
            )
    yield (
        "In the released code, the script that lists the jobs derives its second list from the wrong "
        "variable: as committed, IRM, V-REx and EQRM are never run, and the other methods also run for 600 "
        "steps. Here IRM, V-REx and EQRM have 200 steps after the ERM start, and the other methods 600, as "
        "the paper states. ERM and the oracle have 400 steps."
    )


@section("gradient-ratio", "EQRM's loss divided by the ratio of two gradient norms")
def gradient_ratio(runner: Runner) -> Iterator[Finding]:
    """Check that the constant divisor ρ of EQRM's loss in the released code hardly changes the accuracy.

    After an ERM start, the code divides the loss by ρ: the norm of EQRM's gradient at the first update with
    the penalty, divided by the norm of ERM's gradient at the first update of all. The other sections do not
    divide. Adam's update from gradients g is proportional to m/(√v + ε), where m and v are moving means of g
    and g². Division of the loss by ρ divides m and √v by ρ, which has the same effect as replacing ε by ρ·ε.
    The runs with division therefore set Adam's ε to ρ·10⁻⁸, with the ρ of each seed.
    """
    method = METHODS["EQRM"]
    ratios = {
        setting: _ratios(runner, penalized(runner, method, setting), erm_start(runner))
        for setting in runner.pick(quick=method.settings[::2], full=method.settings)
    }
    rows = [(short(a), mean_and_sd(list(each.values())), str(len(each))) for a, each in ratios.items()]
    notes = ("± is the standard deviation over seeds (divisor n − 1).",)
    yield CaptionedTable("ratios", TextTable(("α", "ρ", "seeds"), tuple(rows), notes), "Divisor ρ by setting")
    plain = runner.train(penalized(runner, method, method.middle))
    runs = {
        k: _divided(runner, method, method.middle, k, ratio) for k, ratio in ratios[method.middle].items()
    }
    divided = {k: _by_replica(result) for k, result in runner.sweep(runs).items()}
    without = _by_replica(plain)
    common = [k for k in divided if k in divided[k] and k in without]
    gap = difference([divided[k][k] for k in common], [without[k] for k in common])
    yield statement(
        f"Division of EQRM's loss by ρ changes the accuracy at flip {SHIFTED} by less than one point.",
        within(gap, CLOSE),
        f"with minus without division, α = {short(method.middle)}: {gap}, {gap.count} seeds, paired by seed",
    )


def _ratios(runner: Runner, run: Run, start: Run) -> dict[int, float]:
    """Return the ratio ρ of two gradient norms for each replica of a run that begins with an ERM start.

    Args:
        runner: Runner of the reproduction.
        run: Run with the penalty. The norm of its first gradient is the numerator.
        start: ERM start of this run. The norm of its first gradient is the denominator.
    """
    penalized, first = (
        # Runs of one step, because the metric is that of the last update before a measurement.
        curves(runner.train(each.but(steps=1, evaluate_every=1)), "*", GRADIENT_RMS)
        for each in (run, start.but(replicas=run.settings["replicas"]))
    )
    # Both gradients have the same number of entries, so their root mean squares have the ratio of the norms.
    return {k: values[-1] / first[k][1][-1] for k, (_, values) in penalized.items() if k in first}


def _divided(runner: Runner, method: Method, setting: float, replica: int, ratio: float) -> Run:
    """Return a run from the ERM start whose last replica is trained as if its loss were divided by ρ.

    ρ is different in every replica, but all replicas of a run have the same ε. Only the last replica is
    therefore to be used.

    Args:
        runner: Runner of the reproduction.
        method: Method of the run.
        setting: Setting of the method.
        replica: Index of the last replica, from 0.
        ratio: ρ of this replica.
    """
    run = penalized(runner, method, setting, replica + 1)
    return run.but(optimizer=f"adam(epsilon={ratio * EPSILON})")


def _by_replica(result: TrainingResult) -> dict[int, float]:
    """Return the final accuracy at flip 0.9 by replica index."""
    return dict(zip(result.finished, accuracies(result, SHIFTED), strict=True))


REPRODUCTION = Reproduction(
    name="eqrm-2022",
    title="Quantile Risk Minimization, reproduced",
    lead="Colored MNIST as in the code of Eastwood, Robey, Singh, von Kügelgen, Hassani, Pappas and "
    "Schölkopf (2022): an ERM start, penalties with a fresh optimizer and a cosine decay of the learning "
    "rate, dropout, and batches of 25,000 rows per environment, drawn with replacement. Test environments "
    "are MNIST's 10,000 test digits at eleven color flip probabilities. The paper's table was not "
    "available, so the claims of its text are tested and no number is compared.",
    conditions={
        "quick": "One seed, networks 128 wide instead of 390, three of five settings; no SD, IGA or "
        "GroupDRO.",
        "full": "Ten seeds for one setting of V-REx and EQRM, three seeds for everything else. The paper has "
        "ten seeds for every setting and both starts.",
    },
    sections=(ten_seeds, settings, start, baselines, gradient_ratio, regression),
)
