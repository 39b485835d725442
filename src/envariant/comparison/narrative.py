"""Recommendation of a comparison: a headline, at most four facts and the next steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from scipy import stats

from envariant.analysis.column_stability import ColumnStability
from envariant.analysis.distribution_shift import NOTABLE
from envariant.comparison.baselines import baseline_name
from envariant.comparison.formatting import ci, environment_name, listed, method_name, p_text, score
from envariant.comparison.results import ComparisonResults
from envariant.studies.significance import BASELINE

# Thresholds in units of the relevant difference: column importance, and uncertainty of a drop.
_RELIES = 0.25
_MATTERS = 5.0
_MOST_BULLETS = 4


@final
@dataclass(frozen=True)
class Recommendation:
    """Recommended method, with reasons and next steps.

    Attributes:
        algorithm: Recommended algorithm; `erm` if no other method is significantly better.
        headline: The recommendation in one line.
        bullets: At most four most important facts, one sentence each.
        further_findings: Facts of lower priority.
        next_steps: Suggested actions.
    """

    algorithm: str
    headline: str
    bullets: tuple[str, ...]
    further_findings: tuple[str, ...]
    next_steps: tuple[str, ...]

    @property
    def text(self) -> str:
        """Headline and bullets as plain text."""
        return "\n".join([self.headline, *(f"- {bullet}" for bullet in self.bullets)])


def recommend(results: ComparisonResults) -> Recommendation:
    """Derive the recommendation from the results of a comparison."""
    best = next((m for m in results.significantly_better if m not in results.predictors), BASELINE)
    ahead, predictor = _predictor(results, best)
    instead = ahead if best == BASELINE else ""
    # In order of priority.
    facts = [
        _leakage(results),
        _unjudged(results),
        _partial(results),
        _drop(results),
        _method(results, best),
        _price(results, best),
        predictor if ahead else "",
        _unseen_classes(results),
        _baseline(results),
        _columns(results),
        "" if ahead else predictor,
    ]
    facts = [fact for fact in facts if fact]
    return Recommendation(
        best,
        _headline(results, best, instead),
        tuple(facts[:_MOST_BULLETS]),
        tuple(facts[_MOST_BULLETS:]),
        _next_steps(results, best, instead),
    )


def _headline(results: ComparisonResults, best: str, predictor: str) -> str:
    new = f"a new {results.data.environment_column or 'environment'}"
    if leaky := results.data.leaky_columns:
        return f"Do not use these results yet: {_quoted(leaky)} may leak the target"
    if best != BASELINE:
        return f"Use {method_name(best)} for {new}"
    if predictor:
        return f"Use {method_name(predictor)} for {new}"
    if significant_drops(results):
        return f"Stay with ERM, but expect a drop at {new}"
    if hidden_drop(results):
        return f"Stay with ERM; a drop at {new} cannot be ruled out"
    if not _drop_is_known(results):
        return f"Stay with ERM; its drop at {new} is unknown"
    return f"Stay with ERM: no significant drop at {new}"


def significant_drops(results: ComparisonResults) -> dict[str, float]:
    """Return ERM's significant and relevant drops by environment.

    Intervals are Bonferroni-corrected over environments.
    """
    drops = {name: results.drop(cell) for name, cell in results.baseline.items()}
    widening = float(stats.norm.isf(0.025 / len(drops)) / stats.norm.isf(0.025))
    return {
        name: drop.mean
        for name, drop in drops.items()
        if drop.mean > widening * drop.half_width and drop.mean >= results.relevant_difference
    }


def hidden_drop(results: ComparisonResults) -> str:
    """Return the environment with the largest drop that cannot be ruled out.

    Return "" if no such drop is relevant, or if any drop is significant.
    """
    upper = {name: results.drop(cell).upper for name, cell in results.baseline.items()}
    known = {name: most for name, most in upper.items() if math.isfinite(most)}
    name = max(known, key=known.__getitem__, default="")
    matters = known and known[name] > _MATTERS * results.relevant_difference
    return name if matters and not significant_drops(results) else ""


def _drop_is_known(results: ComparisonResults) -> bool:
    return any(math.isfinite(results.drop(cell).mean) for cell in results.baseline.values())


def _leakage(results: ComparisonResults) -> str:
    if not (names := results.data.leaky_columns):
        return ""
    verb, subject = ("predict", "they are") if len(names) > 1 else ("predicts", "it is")
    return (
        f"Possible target leakage: {_quoted(names)} alone {verb} {results.data.target} almost perfectly. "
        f"Results are invalid if {subject} derived from it or known only afterwards."
    )


def _partial(results: ComparisonResults) -> str:
    tried, total = len(results.baseline), len(results.environments)
    if tried == total:
        return ""
    return f"Only {tried} of {total} environments could be evaluated within the time budget."


def _drop(results: ComparisonResults) -> str:
    """State whether ERM's score drops in new environments, and by how much."""
    if drops := significant_drops(results):
        name = max(drops, key=drops.__getitem__)
        label = environment_name(results, name)
        where = (
            label
            if len(drops) == 1
            else f"{len(drops)} of {len(results.baseline)} environments, most at {label}"
        )
        return f"ERM drops significantly at {where}: {_scores(results, name)}."
    if name := hidden_drop(results):
        drop = results.drop(results.baseline[name])
        most = drop.interval.high
        bound = score(results, most) + (" (the largest possible)" if drop.upper > most else "")
        return (
            f"No significant drop, but one of up to {bound} at {environment_name(results, name)} cannot be "
            f"ruled out: {_scores(results, name, interval=False)}."
        )
    worst, _ = results.worst(BASELINE)
    at = f"worst at {environment_name(results, worst)}: {_scores(results, worst)}."
    if not _drop_is_known(results):
        return f"ERM's drop is unknown, because no model was trained on a test environment; {at}"
    return f"ERM has no significant drop; {at}"


def _scores(results: ComparisonResults, environment: str, *, interval: bool = True) -> str:
    """Return ERM's out-of-domain and in-domain score in an environment."""
    cell = results.baseline[environment]
    text = f"{results.metric.name} {score(results, cell.ood_score.mean)}"
    text += f", 95 % CI {ci(results, cell.ood_score)}" if interval else ""
    return text + (f", against {score(results, cell.id_score.mean)} in-domain" if cell.id_score.count else "")


def _method(results: ComparisonResults, best: str) -> str:
    """State whether a method is better than ERM in ERM's worst environment."""
    hardest, erm = results.worst(BASELINE)
    at = environment_name(results, hardest)
    if best != BASELINE:
        cell, (worst, lowest) = results.cells[best][hardest], results.worst(best)
        gain = (
            ""
            if cell.gain is None
            else f"by {score(results, cell.gain.mean)} (95 % CI {ci(results, cell.gain, difference=True)}) "
        )
        return (
            f"{method_name(best)} beats ERM {gain}at {at}, {p_text(cell.p_value)} (Holm); its worst score is "
            f"{score(results, lowest.ood_score.mean)} ({environment_name(results, worst)})."
        )
    others = [
        m for m in results.cells if m != BASELINE and m not in results.predictors and results.is_complete(m)
    ]
    if not others:
        reason = next(iter(results.not_applicable), "none was evaluated in every environment")
        return f"No other method could be compared: {reason}."
    names = listed([method_name(m) for m in others], most=4)
    return (
        f"No other method ({names}) significantly improves on ERM's worst environment, {at} "
        f"({results.metric.name} {score(results, erm.ood_score.mean)})."
    )


def _price(results: ComparisonResults, best: str) -> str:
    """State in which environments the recommended method is significantly worse than ERM."""
    losses = [
        f"{environment_name(results, name)} (by {score(results, -cell.gain.mean)})"
        for name, cell in results.cells[best].items()
        if cell.significant and cell.gain is not None and cell.gain.mean < 0
    ]
    return f"{method_name(best)} is significantly worse than ERM at {listed(losses)}." if losses else ""


def _predictor(results: ComparisonResults, best: str) -> tuple[str, str]:
    """Return the best predictor and a sentence about it; "" as predictor if it is not recommended."""
    candidates = [m for m in results.predictors if results.is_complete(m)]
    if not candidates or not results.is_complete(best):
        return "", ""
    sign = results.metric.sign
    method = max(candidates, key=lambda m: sign * results.worst(m)[1].ood_score.mean)
    worst, cell = results.worst(method)
    reference = results.worst(best)[1].ood_score.mean
    name = method_name(method)
    scores = (
        f"worst {results.metric.name} {score(results, cell.ood_score.mean)} "
        f"({environment_name(results, worst)}), against {score(results, reference)} for {method_name(best)}"
    )
    name = name[0].upper() + name[1:]
    if results.metric.gain(cell.ood_score.mean, reference) <= results.relevant_difference:
        return "", f"{name} scored no better: {scores}."
    if method not in results.significantly_better:
        return "", f"{name} did not score significantly better: {scores}."
    if best == BASELINE:
        return method, f"{name} scored significantly better: {scores}."
    return method, f"{name} scored {scores}; this difference was not tested."


def _unjudged(results: ComparisonResults) -> str:
    """State which environments get no verdict, because their classes are new."""
    classes = _new_classes(results, judged=False)
    return f"No verdict where classes are new: {listed(classes, separator='; ')}." if classes else ""


def _unseen_classes(results: ComparisonResults) -> str:
    if not (classes := _new_classes(results, judged=True)):
        return ""
    return f"Classes that models trained elsewhere cannot predict: {listed(classes, separator='; ')}."


def _new_classes(results: ComparisonResults, *, judged: bool) -> list[str]:
    return [
        f"{listed([repr(c) for c in names])} at {environment_name(results, environment)}"
        for environment, names in results.data.unseen_classes.items()
        if (environment in results.environments) == judged
    ]


def _baseline(results: ComparisonResults) -> str:
    """State in which environments ERM is no better than a constant prediction."""
    scores, cells = results.data.baseline_scores, results.baseline
    lead = {
        name: results.metric.gain(cells[name].ood_score.mean, constant)
        for name, constant in scores.items()
        if name in cells
    }
    useless = [name for name, gain in lead.items() if gain <= 0]
    if not useless:
        return ""
    name = min(useless, key=lead.__getitem__)
    label = environment_name(results, name)
    where = label if len(useless) == 1 else f"{len(useless)} of {len(cells)} environments, such as {label}"
    return (
        f"ERM is no better than the {baseline_name(results.metric)} at {where}: "
        f"{score(results, cells[name].ood_score.mean)} against {score(results, scores[name])}."
    )


def _columns(results: ComparisonResults) -> str:
    """State which unstable columns ERM relies on; columns with a change of sign come first."""
    importance = results.importance.get(BASELINE, {})
    threshold = _RELIES * results.relevant_difference
    relied_on = [
        c for c in _unstable(results) if c.column in importance and importance[c.column].in_domain > threshold
    ]
    columns = [c for c in relied_on if c.changes_sign] or relied_on
    if not columns:
        return ""
    how = "changes sign" if columns[0].changes_sign else "varies in strength"
    names = _quoted([c.column for c in columns])
    return f"ERM relies on {names}, whose relation with the target {how} between environments."


def _unstable(results: ComparisonResults) -> list[ColumnStability]:
    return [c for c in results.data.columns if c.unstable]


def _next_steps(results: ComparisonResults, best: str, predictor: str) -> tuple[str, ...]:
    steps: list[str] = []
    if leaky := results.data.leaky_columns:
        it = "them" if len(leaky) > 1 else "it"
        steps.append(
            f"Check {_quoted(leaky)}: if derived from the target or known only afterwards, exclude {it} and "
            f"compare again."
        )
    if predictor:
        steps.append(f"Train {method_name(predictor)} separately: the saved model is ERM's.")
    if changing := [c.column for c in _unstable(results) if c.changes_sign]:
        steps.append(
            f"Find out why the relation of {_quoted(changing)} with the target changes sign between "
            f"environments. If no model should use it, exclude it and compare again."
        )
    shifts = results.data.shifts.items()
    if diverse := [environment_name(results, name) for name, s in shifts if s.diversity.mean >= NOTABLE]:
        steps.append(
            f"Some rows of {listed(diverse)} resemble none elsewhere (diversity shift). No method is "
            f"reliable there: collect more rows like these."
        )
    relevant = _MATTERS * results.relevant_difference
    uncertain = [
        environment_name(results, name)
        for name, cell in results.baseline.items()
        if (cell.ood_score.high - cell.ood_score.low) / 2 > relevant
    ]
    if uncertain:
        steps.append(
            f"Scores at {listed(uncertain)} are uncertain by more than ± {score(results, relevant)}: add "
            f"rows there, or use more replicas."
        )
    if best != BASELINE:
        steps.append(
            "Before relying on it, evaluate the saved model on an environment that was not part of this "
            "comparison."
        )
    elif significant_drops(results):
        steps.append(
            "No tested method removes the drop. Before relying on a model in a new environment, evaluate it "
            "on rows from there, or train on some of them."
        )
    elif hidden_drop(results) and not uncertain:
        steps.append("Use more replicas or more rows per environment to tell a drop from noise.")
    elif not steps:
        steps.append("Nothing calls for more than ERM. Compare again when an environment is added.")
    return tuple(steps)


def _quoted(names: Sequence[str]) -> str:
    return listed([f"'{name}'" for name in names])
