"""Summarize an evaluation in a headline and at most four facts."""

from envariant.analysis.statistics import Interval
from envariant.comparison.formatting import IN_UNIT, capitalized, p_text, score_text
from envariant.evaluation.results import LEVEL, EvaluationResults, is_known

UNKNOWN = "[unknown]"
"""Text of an interval that cannot be estimated."""


def headline(results: EvaluationResults) -> str:
    """Return the main result in one sentence."""
    model, metric = results.best_model, capitalized(results.metric.name)
    name, cell = results.worst(model)
    least, all_rows = (score(results, each.ood_score.mean) for each in (cell, results.overall[model]))
    of = f" of {model}" if len(results.models) > 1 else ""
    if len(results.cells[model]) == 1:
        return f"{metric}{of} is {least} in {name}, the only environment with a score"
    pooled = results.over_environments(model)
    if pooled is not None and results.varies(model):
        test = p_text(pooled.p_value)
        return (
            f"{metric}{of} differs between environments ({test}): {least} in {name}, {all_rows} over all rows"
        )
    return (
        f"No significant difference between environments: {metric}{of} is {all_rows} over all rows, {least} "
        f"in the worst environment, {name}"
    )


def bullets(results: EvaluationResults) -> tuple[str, ...]:
    """Return at most four facts, each with its number: worst environment, next one, groups, dependence."""
    model = results.best_model
    name, cell = results.worst(model)
    text = f"{name}, {results.metric.name} {with_interval(results, cell.ood_score)}."
    several = len(results.models) > 1
    which = f"Of {len(results.models)} models, {model} has the best score in its worst environment"
    facts = [f"{which if several else 'Worst environment'}: {text}"]
    if (group := results.worst_group(model)) is not None and group.score is not None:
        facts.append(
            f"Worst group: {group.name}, {results.metric.name} {with_interval(results, group.score)}; "
            f"{score(results, group.others)} on the other rows ({p_text(group.p_value)}, Holm)."
        )
    pooled = results.over_environments(model)
    if pooled is not None and pooled.n_environments > 2:
        ends = results.possible(Interval(pooled.mean, pooled.next_low, pooled.next_high, 2))
        facts.append(
            f"Next environment: expected {results.metric.name} {with_interval(results, ends)} (95 % "
            f"prediction interval, {pooled.n_environments} environments)."
        )
    test = results.invariance[model]
    if len(results.environments) > 1:
        text = p_text(test.p_value)
        facts.append(
            f"The target, given the prediction, depends on the environment ({text})."
            if test.p_value < LEVEL
            else f"No evidence that the target, given the prediction, depends on the environment ({text})."
        )
    return tuple(facts)


def score(results: EvaluationResults, value: float, *, signed: bool = False) -> str:
    """Format a score, or a signed difference of scores; "–" if it is NaN."""
    if value != value:
        return "–"
    size = results.worst(results.best_model)[1].ood_score.mean if results.metric.name in IN_UNIT else 0.0
    return score_text(value, size, signed=signed)


def with_interval(results: EvaluationResults, interval: Interval, *, signed: bool = False) -> str:
    """Format a score, or a signed difference of scores, with its interval, clipped to possible values."""
    own, text = results.possible(interval, difference=signed), score(results, interval.mean, signed=signed)
    if not is_known(interval):
        return f"{text} {UNKNOWN}"
    return f"{text} [{score(results, own.low, signed=signed)}, {score(results, own.high, signed=signed)}]"
