"""Reproduction of Environment Inference for Invariant Learning (EIIL; Creager, Jacobsen, Zemel 2021)."""

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from envariant import published
from envariant.core.schedules import Step
from envariant.reporting import charts
from envariant.reporting.tables import NONE, TextTable
from envariant.reproductions import eiil_linear
from envariant.reproductions.base import CaptionedFigure, CaptionedTable, Finding, Reproduction, section
from envariant.reproductions.runner import Run, Runner
from envariant.reproductions.sem import ERRORS
from envariant.reproductions.summaries import mean_and_sd, ood_score
from envariant.reproductions.verdicts import Claim, all_hold, beyond, statement
from envariant.training.result import TrainingResult

REPETITIONS, STEPS, LONG = 5, 10_000, 100_000
REFERENCES = eiil_linear.REFERENCES
GIVEN, INFERRED = "IRM, given environments", "IRM, inferred from ERM"
TABLES = {"causal": "eiil_sem_causal_by_repetition", "non-causal": "eiil_sem_noncausal_by_repetition"}
TOLERANCE = 1e-4

Errors = Mapping[str, list[float]]


def _solved(runner: Runner) -> tuple[dict[str, Errors], dict[str, Any]]:
    """Return the errors of all methods by name, and details of the environments inferred from ERM."""
    base: dict[str, Any] = {"repetitions": REPETITIONS}

    def infer(steps: int, inference_steps: int, references: tuple[float, ...] = ()) -> dict[str, Any]:
        lengths = {"steps": steps, "inference_steps": inference_steps, "references": list(references)}
        return runner.compute("inferred", base | lengths, eiil_linear.inferred)

    errors: dict[str, Errors] = dict(runner.compute("baselines", base, eiil_linear.baselines))
    errors[GIVEN] = runner.compute("given", base | {"steps": STEPS}, eiil_linear.given)
    short = infer(STEPS, STEPS, REFERENCES)
    errors[INFERRED] = short["errors"]["ERM"]
    errors |= {_reference(a): short["errors"][f"{a:.1f}"] for a in REFERENCES}
    errors[f"{GIVEN}, {LONG:,} steps"] = runner.compute("given", base | {"steps": LONG}, eiil_linear.given)
    errors[f"{INFERRED}, {LONG:,} steps"] = infer(LONG, STEPS)["errors"]["ERM"]
    errors[f"{INFERRED}, {LONG:,} steps of both"] = infer(LONG, LONG)["errors"]["ERM"]
    return errors, short


def _reference(a: float) -> str:
    return f"IRM, inferred, reference {a:.1f}"


@section("sem", "Linear structural equation models")
def linear(runner: Runner) -> Iterator[Finding]:
    """Test the claim that IRM recovers causal weights better from inferred environments than from given ones.

    The inferred environments are two groups of rows. They are inferred from the ERM solution, or from an
    artificial reference model, in which causes have weight 1 − a and effects have weight a. The data do not
    follow any setup of the IRM paper.
    """
    errors, details = _solved(runner)
    yield _table(errors)
    means = {k: [statistics.fmean(errors[_reference(a)][k]) for a in REFERENCES] for k in ERRORS}
    chart = charts.lines(
        {k: (list(REFERENCES), own) for k, own in means.items()}, "a, weight of the effects", "weight error"
    )
    yield CaptionedFigure("references", chart, "Mean weight errors after inference from artificial models.")
    sizes = ", ".join(f"{a}/{b}" for a, b in details["sizes"])
    shares = [share for own in details["shares"] for share in own]
    yield (
        f"The inferred groups have {sizes} rows. They do not resemble the given environments: each group "
        f"contains between {min(*shares, 1 - max(shares)):.0%} and {max(*shares, 1 - min(shares)):.0%} of "
        "either environment. IRM selects the weight of its risk by the error in e = 5; "
        f"the selected weights are {', '.join(f'{reg:g}' for reg in details['regs'])}. IRM on the given "
        f"environments has not converged after the published {STEPS:,} steps; rows with {LONG:,} steps, as "
        "in the IRM paper, show how results change."
    )
    yield from _claims(errors)
    yield "The experiments of the paper on census data and Waterbirds need other data and are not repeated."


def _table(errors: Mapping[str, Errors]) -> CaptionedTable:
    tables = {kind: published.table(name) for kind, name in TABLES.items()}
    rows: list[tuple[str, ...]] = []
    for name, own in errors.items():
        ours = [mean_and_sd(own[k]) for k in ERRORS]
        papers: list[str] = []
        for kind in ERRORS:
            row = tables[kind].rows.get(name)
            mean = row and mean_and_sd(row.mean)
            papers.append(mean or NONE)
        rows.append((name, *ours, *papers))
    header = ("method", *ERRORS, *(f"published {kind}" for kind in ERRORS))
    notes = (
        f"± is the standard deviation over {REPETITIONS} repetitions (divisor n − 1), here and for published "
        f"values. IRM and the inference have {STEPS:,} steps each unless stated.",
    )
    caption = "Mean squared error of the weights of causes and of effects"
    return CaptionedTable("errors", TextTable(header, tuple(rows), notes), caption)


def _claims(errors: Mapping[str, Errors]) -> Iterator[Claim]:
    gaps = {
        f"{name}, {kind}": max(abs(a - b) for a, b in zip(errors[name][kind], row.mean, strict=True))
        for kind, table in TABLES.items()
        for name, row in published.table(table).rows.items()
    }
    entries = REPETITIONS * len(gaps)
    worst = max(gaps, key=lambda name: gaps[name])
    yield Claim(
        "The recorded errors of all repetitions are reproduced.",
        "reproduced" if gaps[worst] <= TOLERANCE else "not reproduced",
        f"{entries} errors; largest difference {gaps[worst]:.1e} ({worst}), at most {TOLERANCE:g} allowed",
        exact=True,
    )
    for steps, suffix in ((STEPS, ""), (LONG, f", {LONG:,} steps")):
        given, inferred = (statistics.fmean(errors[name + suffix]["causal"]) for name in (GIVEN, INFERRED))
        yield statement(
            f"Inferred environments beat the given ones at {steps:,} steps of IRM.",
            inferred < given,
            f"mean causal error {inferred:.3f} inferred, {given:.3f} given",
            exact=True,
        )
    means = {a: statistics.fmean(errors[_reference(a)]["causal"]) for a in REFERENCES}
    low = {a: mean for a, mean in means.items() if a <= 0.8}
    high = {a: mean for a, mean in means.items() if a > 0.8}
    yield statement(
        "The inference needs a reference model that relies on effects (a of 0.9 or more).",
        min(low.values()) > 2 * max(high.values()),
        f"mean causal error at least {min(low.values()):.3f} for a up to 0.8, at most "
        f"{max(high.values()):.3f} above",
        exact=True,
    )


NOISES_QUICK = (0.05, 0.1, 0.25)
NOISES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35)
DATA, GRAY = "colored-mnist", "colored-mnist-grayscale"
_KEYS = {"ERM": "erm", "IRM": "irm", "EIIL": "eiil", "grayscale": "gray"}


def _noisy(runner: Runner) -> dict[tuple[str, float], TrainingResult]:
    paper = published.protocol("colored_mnist_irm")
    weight = paper["eiil_settings"]["penalty_weight"]
    penalty, l2 = Step(1.0, weight, at=paper["anneal_steps"]), f"l2={paper['l2']!r}"
    reference = f"reference_steps={paper['steps']}, reference_l2={paper['l2']!r}, method=ascent"
    settings = {
        "model": f"mlp(hidden={paper['hidden']})",
        "learning_rate": paper["lr"],
        # The program measures before it updates: the last measurement follows steps − 1 updates.
        "steps": paper["steps"] - 1,
        "replicas": runner.pick(quick=2, full=10),
    }
    methods = {
        "ERM": (DATA, f"erm({l2})"),
        "IRM": (DATA, f"irm(coefficient={penalty}, {l2})"),
        "EIIL": (DATA, f"eiil(coefficient={penalty}, {l2}, {reference})"),
        "grayscale": (GRAY, f"erm({l2})"),
    }
    return runner.sweep(
        {
            (name, noise): Run(f"{data}(label_noise={noise:g})", algorithm, settings)
            for noise in runner.pick(quick=NOISES_QUICK, full=NOISES)
            for name, (data, algorithm) in methods.items()
        }
    )


@section("label-noise", "Colored MNIST with other label noise")
def label_noise(runner: Runner) -> Iterator[Finding]:
    """Test how the inference of environments on Colored MNIST depends on the amount of label noise.

    With little label noise, the shape predicts the label better than the color does. ERM then learns the
    shape, so that the groups inferred from ERM do not help to ignore the color. All methods use the
    hyperparameters of IRM, which were selected with the test environment (oracle selection).
    """
    results = _noisy(runner)
    noises = list(dict.fromkeys(noise for _, noise in results))
    scores = {key: ood_score(result) for key, result in results.items()}
    series = {name: (noises, [scores[name, noise].mean for noise in noises]) for name in _KEYS}
    chart = charts.lines(series, "label noise", "test accuracy")
    yield CaptionedFigure("noise", chart, "Test accuracy by label noise; color flips are 0.2, 0.1 and 0.9.")
    recorded = published.table("eiil_label_noise_test")
    rows: list[tuple[str, ...]] = []
    for name, key in _KEYS.items():
        rows.append((name, *(str(scores[name, noise]) for noise in noises)))
        rows.append((f"{name}, published", *(f"{recorded.fraction(key, f'{n:g}')[0]:.3f}" for n in noises)))
    rows.append(("1 − label noise", *(f"{1 - noise:.3f}" for noise in noises)))
    notes = ("Published: means over 10 restarts without spread, so agreement cannot be judged.",)
    header = ("method", *(f"{noise:g}" for noise in noises))
    yield CaptionedTable("noise", TextTable(header, tuple(rows), notes), "Test accuracy by label noise")
    eiil = {noise: scores["EIIL", noise] for noise in noises}
    yield statement(
        "At label noise 0.25, EIIL is at least as accurate as IRM.",
        all_hold([beyond(eiil[0.25], above=scores["IRM", 0.25].mean)]),
        f"EIIL {eiil[0.25]}, IRM {scores['IRM', 0.25]}",
    )
    yield statement(
        "At label noise 0.05 and 0.1, EIIL from ERM fails: its test accuracy is below 0.5.",
        all_hold(beyond(eiil[noise], below=0.5) for noise in (0.05, 0.1)),
        f"EIIL {eiil[0.05]} at 0.05, {eiil[0.1]} at 0.1",
    )
    yield statement(
        "No model is more accurate than 1 − label noise.",
        all(score.mean <= 1 - noise for (_, noise), score in scores.items()),
        "largest excess: " + f"{max(s.mean - 1 + n for (_, n), s in scores.items()):+.3f}",
    )
    yield (
        "The program also infers environments from the color itself; this is not repeated, because the "
        "reference model here is a trained network. It also evaluates predictions from the color alone, "
        "which are right in 10 % of the test rows. Before inference, it drops the last row of each "
        "environment; here, all rows are used. It also runs label noise of 0.4 and 0.45, but omits it from "
        "its plot."
    )


REPRODUCTION = Reproduction(
    name="eiil-2021",
    title="Environment Inference for Invariant Learning, reproduced",
    lead="Creager, Jacobsen and Zemel (2021) infer environments from a reference model and train IRM on "
    "them. The linear models are repeated exactly, and Colored MNIST with several levels of label noise.",
    conditions={
        "quick": "Linear models as published; Colored MNIST with 3 levels of label noise and 2 restarts.",
        "full": "Linear models as published; Colored MNIST with 8 levels of label noise and 10 restarts.",
    },
    sections=(linear, label_noise),
)
