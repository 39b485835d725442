"""Reproduction of In Search of Lost Domain Generalization (Gulrajani & Lopez-Paz 2020): the MNIST data sets.

Runs of one trial share data, splits, initial weights and batches, whatever the method.
"""

import itertools
import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, final

from envariant import published
from envariant.analysis.statistics import interval
from envariant.core.printable import number_of
from envariant.reporting.tables import NONE, TextTable
from envariant.reproductions.base import CaptionedTable, Finding, Reproduction, section
from envariant.reproductions.domainbed import selection
from envariant.reproductions.domainbed.draws import COMPARING, METHODS, STEPS, values
from envariant.reproductions.domainbed.runs import train_all
from envariant.reproductions.domainbed.selection import RULES, Curves, Rule
from envariant.reproductions.runner import Runner
from envariant.reproductions.verdicts import Claim, PublishedMean, agreement, beyond, statement

# With fewer draws, chance decides which hyperparameters oracle selection can choose from.
ENOUGH_DRAWS = 10
# Standard errors above this are accidents of single trials.
LARGE = 0.05


@final
@dataclass(frozen=True)
class Protocol:
    """Reduced or complete protocol for one data set.

    Attributes:
        data: Specification of the data set as text, without its division into 80 % and 20 % parts.
        table: Prefix of the names of the published tables.
        environments: Names of the environments.
        methods: Names of the methods, in the order of the tables.
        paired: Methods that are also trained with each pair of environments left out.
        draws: Number of hyperparameter draws.
        trials: Number of trials.
        steps: Number of updates.
        every: Number of updates between measurements.
        rows: Number of rows of each environment; None for all.
        most_rows: Largest batch size; None for no limit.
    """

    data: str
    table: str
    environments: tuple[str, ...]
    methods: tuple[str, ...]
    paired: tuple[str, ...]
    draws: int
    trials: int
    steps: int = STEPS
    every: int = 100
    rows: int | None = None
    most_rows: int | None = None

    @property
    def pairs(self) -> tuple[tuple[str, ...], ...]:
        """Pairs of environments that are left out together for leave-one-domain-out selection."""
        return tuple(itertools.combinations(self.environments, 2)) if self.paired else ()

    @property
    def runs(self) -> int:
        """Number of runs."""
        sets = len(self.environments) * len(self.methods) + len(self.pairs) * len(self.paired)
        return sets * self.draws * self.trials

    def inputs(self, method: str, left_out: tuple[str, ...]) -> dict[str, Any]:
        """Return the arguments of `train_all` for one method and one set of left-out environments."""
        shared = ("data", "draws", "trials", "steps", "every", "rows", "most_rows")
        single = len(self.environments) - len(left_out) == 1
        own = {"method": method, "left_out": list(left_out), "single": single}
        return own | {key: getattr(self, key) for key in shared}


def colored(runner: Runner) -> Protocol:
    """Return the protocol for ColoredMNIST in the profile of the runner."""
    names = ("+90%", "+80%", "-90%")
    if runner.profile == "full":
        data = "colored-mnist:domainbed(two_logits=true)"
        return Protocol(data, "domainbed_coloredmnist", names, METHODS, METHODS, 20, 3)
    return Protocol(
        "colored-mnist:domainbed(size=14, two_logits=true)", "domainbed_coloredmnist", names,
        ("ERM", "IRM", "VREx", "ARM"), ("ERM", "IRM"), draws=3, trials=2, steps=500, every=250, rows=3000,
        most_rows=64,
    )  # fmt: skip


def rotated(runner: Runner) -> Protocol:
    """Return the protocol for RotatedMNIST in the profile of the runner."""
    names = ("0", "15", "30", "45", "60", "75")
    if runner.profile == "full":
        methods = ("ERM", "IRM", "CORAL", "DANN", "ARM", "VREx")
        data = "rotated-mnist(interpolation=bicubic)"
        return Protocol(data, "domainbed_rotatedmnist", names, methods, (), 5, 3)
    # Discriminators with dropout and weight decay of their own, as DANN and CDANN draw them, are not offered.
    methods = tuple(method for method in METHODS if method not in ("DANN", "CDANN"))
    return Protocol(
        "rotated-mnist(interpolation=bicubic, size=14, rows=1200)", "domainbed_rotatedmnist", names,
        methods, methods, draws=2, trials=1, steps=250, every=250, most_rows=16,
    )  # fmt: skip


Scores = dict[tuple[Rule, str, str], list[float]]
"""Test accuracies by rule, method and test environment, one per trial."""


@final
@dataclass(frozen=True)
class Selected:
    """Accuracies of the selected models.

    Attributes:
        protocol: Protocol of the runs.
        scores: Test accuracies by rule, method and test environment, one per trial.
        failures: Number of runs that diverged and are therefore excluded from selection.
    """

    protocol: Protocol
    scores: Scores = field(default_factory=dict[tuple[Rule, str, str], list[float]])
    failures: int = 0

    def averages(self, rule: Rule, method: str) -> list[float]:
        """Return the mean accuracy over test environments, one value per trial.

        The list is empty if the environments have different numbers of scores.
        """
        columns = [self.scores.get((rule, method, name), []) for name in self.protocol.environments]
        lengths = {len(column) for column in columns}
        return [statistics.fmean(row) for row in zip(*columns, strict=True)] if len(lengths) == 1 else []


def select(runner: Runner, protocol: Protocol) -> Selected:
    """Train all runs of a protocol and apply the three selection rules."""
    scores: Scores = {}
    failures = 0
    for method in protocol.methods:
        curves = {
            left_out: _curves(runner, protocol, method, left_out)
            for left_out in [
                *((name,) for name in protocol.environments),
                *(protocol.pairs if method in protocol.paired else ()),
            ]
        }
        failures += sum(run is None for each in curves.values() for trial in each for run in trial)
        for name, trial in itertools.product(protocol.environments, range(protocol.trials)):
            for rule, score in _selected(protocol, curves, name, trial, paired=method in protocol.paired):
                scores.setdefault((rule, method, name), []).append(score)
    return Selected(protocol, scores, failures)


AllCurves = list[list[Curves | None]]
"""Accuracies of all runs of one method with one set of left-out environments, by trial and draw."""


def _curves(runner: Runner, protocol: Protocol, method: str, left_out: tuple[str, ...]) -> AllCurves:
    inputs = protocol.inputs(method, left_out)
    name = f"{protocol.table}-{method}-{'-'.join(part.strip('+%') for part in left_out)}"
    stored: list[list[dict[str, dict[str, float]] | None]] = runner.compute(
        name, inputs, partial(train_all, mnist=runner.mnist)
    )
    return [
        [None if run is None else {part: _by_step(curve) for part, curve in run.items()} for run in trial]
        for trial in stored
    ]


def _by_step(curve: Mapping[str, float]) -> dict[int, float]:
    return {int(step): value for step, value in curve.items()}


def _selected(
    protocol: Protocol,
    curves: Mapping[tuple[str, ...], AllCurves],
    name: str,
    trial: int,
    *,
    paired: bool,
) -> Iterator[tuple[Rule, float]]:
    """Yield each rule and the test accuracy of the model that it selects; diverged runs are left out."""
    own = curves[name,][trial]
    finished = [run for run in own if run is not None]
    if finished:
        yield "training_domain", selection.training_domain(finished, name)
        yield "oracle", selection.oracle(finished, name)
    if not paired:
        return
    pairs = {next(iter({*pair} - {name})): curves[pair][trial] for pair in protocol.pairs if name in pair}
    # A draw counts only if all its runs finished, including those with pairs left out.
    rows = [row for row in zip(own, *pairs.values(), strict=True) if None not in row]
    if rows:
        runs, *others = ([run for run in column if run is not None] for column in zip(*rows, strict=True))
        by_pair = dict(zip(pairs, others, strict=True))
        yield "leave_one_domain_out", selection.leave_one_domain_out(runs, by_pair, name)


def _tables(selected: Selected) -> Iterator[CaptionedTable]:
    protocol = selected.protocol
    for rule, name in RULES.items():
        paper = published.table(f"{protocol.table}_{rule}")
        rows: list[tuple[str, ...]] = []
        for method in protocol.methods:
            columns = [selected.scores.get((rule, method, each), []) for each in protocol.environments]
            own = [*columns, selected.averages(rule, method)]
            rows.append((method, *(_percent(each) for each in own)))
            cells = [paper.fraction(method, column) for column in paper.columns]
            rows.append(
                ("published", *(f"{100 * mean:.1f} ± {100 * (spread or 0):.1f}" for mean, spread in cells))
            )
        note = (
            f"{protocol.trials} trials, {protocol.draws} draws; ours: mean over trials ± standard error with "
            f"divisor n, as published. Published: 3 trials, 20 draws."
        )
        table = TextTable(("method", *protocol.environments, "average"), tuple(rows), (note,))
        yield CaptionedTable(rule.replace("_", "-"), table, f"Test accuracy in percent, {name}")


def _percent(scores: list[float]) -> str:
    if not scores:
        return NONE
    mean = 100 * statistics.fmean(scores)
    if len(scores) == 1:
        return f"{mean:.1f}"
    return f"{mean:.1f} ± {100 * statistics.pstdev(scores) / len(scores) ** 0.5:.1f}"


def _agreements(selected: Selected, methods: tuple[str, ...]) -> Iterator[Claim]:
    for rule, name in RULES.items():
        for method in methods:
            paper = PublishedMean.of(f"{selected.protocol.table}_{rule}", method, "Avg")
            ours = selected.averages(rule, method)
            yield agreement(f"{method}, {name}: the average agrees with the published one.", paper, ours)


def _reductions(selected: Selected) -> str:
    """Return a paragraph on the differences between the runs and the published protocol."""
    p = selected.protocol
    parts = [
        f"{p.runs:,} runs: {len(p.methods)} of 14 methods, {p.draws} of 20 draws, {p.trials} of 3 trials",
        f"{p.steps:,} of {STEPS:,} updates, measured every {p.every}",
    ]
    if p.rows is not None or "rows=" in p.data or "size=" in p.data:
        parts.append(f"data {p.data}" + (f" with {p.rows:,} rows of each environment" if p.rows else ""))
    if p.most_rows is not None:
        parts.append(f"batches of at most {p.most_rows} rows per environment")
    if p.steps != STEPS:
        parts.append("the steps at which penalties set in are scaled in proportion")
    if set(p.paired) != set(p.methods):
        chosen = ", ".join(p.paired) or "no method"
        parts.append(
            f"pairs of environments are left out, for leave-one-domain-out selection, only with {chosen}"
        )
    if len(p.environments) == 3 and (replaced := [method for method in p.paired if method in COMPARING]):
        parts.append(
            f"with two of three environments left out, {', '.join(replaced)} are trained as ERM (in the "
            "program, the additional terms of IRM, MLDG, DANN and CDANN remain active on one environment)"
        )
    if {"DANN", "CDANN"} & {*p.methods}:
        parts.append("discriminators without the drawn dropout and weight decay")
    text = "; ".join(parts)
    count = number_of(selected.failures, "run")
    lost = f" {count} diverged and cannot be selected." if selected.failures else ""
    return (
        f"Differences from the published protocol: {text}. Published runs are measured after updates 1, 101, "
        "…, 5,001. Every environment is measured as a whole, as published. "
        "All methods of a trial have the same data here; in the program, every run has its own. Fewer draws "
        "make every selection worse, for all methods alike." + lost
    )


@section("draws", "Hyperparameter draws")
def draws(runner: Runner) -> Iterator[Finding]:
    """Show the hyperparameter draws of the DomainBed version that produced the published tables.

    Draw 0 has the default values. For every other draw, one random generator produces all values in a fixed
    order; it is seeded with the numbers of the draw and the trial.
    """
    del runner
    names = ("lr", "batch_size", "irm_lambda", "irm_penalty_anneal_iters")
    rows = [(f"draw {k}", *(f"{values('IRM', k, 0)[name]:.6g}" for name in names)) for k in range(5)]
    yield CaptionedTable("irm", TextTable(("IRM", *names), tuple(rows)), "First draws of IRM, trial 0")
    yield (
        "Mixup's α is 0.1 in all random draws, because of a slip in the program: both limits of its exponent "
        "are −1. Images of RotatedMNIST are rotated with bicubic interpolation; later versions use bilinear "
        "interpolation."
    )


@section("colored-mnist", "ColoredMNIST")
def colored_mnist(runner: Runner) -> Iterator[Finding]:
    """Compare methods on Colored MNIST under three selection rules.

    According to the paper, no method is better than ERM if models are selected without the test environment.
    With oracle selection, IRM and V-REx are far better than ERM in environment −90 %.
    """
    selected = select(runner, colored(runner))
    yield _reductions(selected)
    yield from _tables(selected)
    yield from _agreements(selected, ("ERM", "IRM"))
    methods = selected.protocol.methods
    scores = selected.scores
    last = {m: scores.get(("training_domain", m, "-90%"), []) for m in methods}
    erm = selected.averages("training_domain", "ERM")
    above = {
        m: statistics.fmean(own) - statistics.fmean(erm)
        for m in methods
        if m not in ("ERM", "ARM") and erm and (own := selected.averages("training_domain", m))
    }
    yield statement(
        "With training-domain validation, every method has an accuracy between 9 % and 11 % in environment "
        "−90 %, and no method except ARM has an average more than one point above ERM's.",
        all(own and 0.09 <= statistics.fmean(own) <= 0.11 for own in last.values())
        and max(above.values(), default=0.0) <= 0.01,
        "−90 %: " + _listed({m: own for m, own in last.items() if own})
        + "; averages above ERM's: " + ", ".join(f"{m} {100 * gap:+.1f}" for m, gap in above.items()),
    )  # fmt: skip
    by_oracle = {m: scores.get(("oracle", m, "-90%"), []) for m in ("ERM", "IRM", "VREx")}
    best = all(map(bool, by_oracle.values())) and min(
        statistics.fmean(by_oracle[m]) for m in ("IRM", "VREx")
    ) > statistics.fmean(by_oracle["ERM"])
    yield statement(
        "With oracle selection, IRM and V-REx are more accurate than ERM in environment −90 %.",
        None if selected.protocol.draws < ENOUGH_DRAWS and not best else best,
        _listed(by_oracle) + f"; {selected.protocol.draws} draws",
    )
    arm = scores.get(("training_domain", "ARM", "+90%"), [])
    yield statement(
        "With training-domain validation, ARM, which sees the unlabeled batch, exceeds 75 % in environment "
        "+90 %.",
        beyond(interval(arm), above=0.75) if len(arm) > 1 else None,
        _listed({"ARM": arm}),
    )
    left = [
        statistics.fmean(own)
        for (rule, _, _), own in scores.items()
        if rule == "leave_one_domain_out" and own
    ]
    yield statement(
        "With leave-one-domain-out selection, accuracies are near 10 % or 50 %: models are selected by an "
        "environment whose colors are misleading.",
        bool(left) and statistics.fmean(min(abs(x - 0.1), abs(x - 0.5)) < 0.06 for x in left) > 0.5,
        ", ".join(f"{100 * x:.1f}" for x in left),
    )


@section("rotated-mnist", "RotatedMNIST")
def rotated_mnist(runner: Runner) -> Iterator[Finding]:
    """Compare methods on Rotated MNIST under three selection rules.

    According to the paper, all methods have nearly the same average accuracy. At the ends of the range of
    angles, 0 and 75 degrees, accuracies are 2 to 3 points below those in the middle.
    """
    selected = select(runner, rotated(runner))
    yield _reductions(selected)
    yield from _tables(selected)
    yield from _agreements(selected, ("ERM", "IRM"))
    protocol = selected.protocol
    averages = {
        m: statistics.fmean(own) for m in protocol.methods if (own := selected.averages("training_domain", m))
    }
    spread = max(averages.values()) - min(averages.values())
    yield statement(
        "With training-domain validation, averages of all methods are within 0.6 points of one another.",
        spread <= 0.006,
        f"range {100 * spread:.1f} points: " + ", ".join(f"{m} {100 * x:.1f}" for m, x in averages.items()),
    )
    column = {
        name: statistics.fmean(
            statistics.fmean(own)
            for m in protocol.methods
            if (own := selected.scores.get(("training_domain", m, name), []))
        )
        for name in protocol.environments
    }
    ends = statistics.fmean((column["0"], column["75"]))
    middle = statistics.fmean(value for name, value in column.items() if name not in ("0", "75"))
    lower = max(column["0"], column["75"]) < min(v for n, v in column.items() if n not in ("0", "75"))
    yield statement(
        "Accuracies at 0 and 75 degrees are below all others.",
        lower,
        ", ".join(f"{name}° {100 * value:.1f}" for name, value in column.items())
        + f"; ends {100 * (middle - ends):.1f} points below the middle, published 2 to 3",
    )


@section("spreads", "Large published spreads")
def spreads(runner: Runner) -> Iterator[Finding]:
    """Explain published leave-one-domain-out accuracies whose standard error exceeds 5 points.

    If two of three trials have the same accuracy a and the third differs, a can be computed from published
    numbers. It is m + √(3/2)·s or m − √(3/2)·s, where m is the mean of the three accuracies and s is the
    standard error of m (divisor n). The deviation of the third trial is an accident, which is not expected to
    be reproduced.
    """
    del runner
    rows: list[tuple[str, ...]] = []
    gaps: list[float] = []
    for kind, label in (("coloredmnist", "ColoredMNIST"), ("rotatedmnist", "RotatedMNIST")):
        table = published.table(f"domainbed_{kind}_leave_one_domain_out")
        for method, column in itertools.product(table.rows, table.columns):
            mean, spread = table.fraction(method, column)
            if column == "Avg" or spread is None or spread <= LARGE:
                continue
            erm, _ = table.fraction("ERM", column)
            others = (mean - math.sqrt(1.5) * spread, mean + math.sqrt(1.5) * spread)
            nearest = min(others, key=lambda value, erm=erm: abs(value - erm))
            gaps.append(abs(nearest - erm))
            cells = (f"{100 * mean:.1f} ± {100 * spread:.1f}", f"{100 * nearest:.1f}", f"{100 * erm:.1f}")
            rows.append((method, label, column, *cells))
    header = ("method", "data", "test environment", "published", "two equal trials", "ERM")
    yield CaptionedTable("large", TextTable(header, tuple(rows)), "Published entries in percent")
    yield statement(
        "Every large spread is explained by one trial of three: the other two are within 4 points of ERM.",
        max(gaps) <= 0.04,
        f"{len(gaps)} entries, at most {100 * max(gaps):.1f} points from ERM",
        exact=True,
    )


def _listed(scores: Mapping[str, list[float]]) -> str:
    return ", ".join(f"{name} {_percent(own)}" for name, own in scores.items())


REPRODUCTION = Reproduction(
    "domainbed-2020",
    "In Search of Lost Domain Generalization: ColoredMNIST and RotatedMNIST",
    "Gulrajani and Lopez-Paz train 14 methods with random hyperparameters and select models by three "
    "rules. With training-domain validation, no method is better than ERM by more than one point. This "
    "page repeats the experiments on both MNIST data sets, with the splits, draws, network and selection "
    "rules of the released program, and shows the published tables for comparison. Oracle selection uses "
    "labels of the test environment; it is shown because it was published. Data, splits and draws are "
    "bit-identical to those of the program; minibatches and initial weights are not, so trained models are "
    "compared only by means and spreads.",
    {
        "quick": "ColoredMNIST: 4 methods, 108 runs of 500 steps. RotatedMNIST: 12 methods, 504 runs of 250 "
        "steps, all six environments and all 15 pairs. Images of 14×14 pixels and a part of the rows.",
        "full": "ColoredMNIST as published: 14 methods, 5,040 runs of 5,001 steps. RotatedMNIST: 6 methods, "
        "540 runs without pairs. About a day on one GPU, which is used if there is one; months on two cores.",
    },
    (draws, colored_mnist, rotated_mnist, spreads),
)
