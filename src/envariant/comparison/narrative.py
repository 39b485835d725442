"""Write the recommendation of a comparison: a headline, at most four facts and the next steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from envariant.analysis.column_stability import ColumnStability
from envariant.analysis.distribution_shift import NOTABLE
from envariant.analysis.statistics import Interval
from envariant.comparison.baselines import baseline_name
from envariant.comparison.drops import (
    MATTERS,
    drops_on_average,
    has_drop,
    hidden_drop,
    in_domain_drops,
    shortfalls,
    significant_drops,
    varies,
)
from envariant.comparison.formatting import (
    capitalized,
    ci,
    environment_name,
    listed,
    method_name,
    p_text,
    score,
    the,
)
from envariant.comparison.remedies import Remedy
from envariant.comparison.results import LEVEL, ComparisonResults
from envariant.core.display import Displayed, Summary

# Smallest importance, in units of the relevant difference, of a column that is reported as used by the model.
_RELIES = 0.25
_MOST_BULLETS = 4
_MOST_REMEDIES = 3


@final
@dataclass(frozen=True, repr=False)
class Recommendation(Displayed):
    """Recommended method, with reasons and next steps.

    Attributes:
        algorithm: Recommended method; the baseline if no other method is significantly better.
        headline: One-line recommendation.
        bullets: The most important facts, at most four, one sentence each.
        further_findings: Less important facts, one sentence each.
        next_steps: Suggested actions, one sentence each.
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

    def _display(self) -> Summary:
        more = f"{len(self.further_findings)} further findings" if self.further_findings else ""
        facts = {"next steps": " ".join(self.next_steps), "not shown": more}
        return Summary(self.headline, facts, lines=self.bullets)


def recommend(results: ComparisonResults) -> Recommendation:
    """Derive the recommendation from the results of a comparison."""
    best = results.recommended
    # In order of priority.
    facts = [
        _leakage(results),
        _unjudged(results),
        _useless(results, best),
        _drop(results),
        _cause(results),
        _method(results, best),
        _price(results, best),
        _remedy(results),
        _partial(results),
        _subgroups(results),
        _next_environment(results),
        _columns(results),
        _unseen_classes(results),
    ]
    facts = [fact for fact in facts if fact]
    return Recommendation(
        best,
        _headline(results, best),
        tuple(facts[:_MOST_BULLETS]),
        tuple(facts[_MOST_BULLETS:]),
        _next_steps(results, best),
    )


def _headline(results: ComparisonResults, best: str) -> str:
    new = results.data.new_environment
    if leaky := results.data.leaky_columns:
        return f"Do not use these results yet: {_quoted(leaky)} may leak the target"
    if _is_useless(results, best):
        return f"No model is useful at {new}: none beats the {baseline_name(results.metric)}"
    use = f"Use {the(best)} for {new}"
    if best != results.baseline_method:
        return use
    if in_domain_drops(results) or drops_on_average(results):
        return f"{use}, but expect a drop"
    if varies(results):
        return f"{use}, but expect worse scores in some environments"
    if hidden_drop(results):
        return f"{use}; a drop cannot be ruled out"
    if not _drop_is_known(results):
        return f"{use}; its drop is unknown"
    return f"{use}: no significant drop"


def _drop_is_known(results: ComparisonResults) -> bool:
    return any(math.isfinite(results.drop(cell).mean) for cell in results.baseline.values())


def _leakage(results: ComparisonResults) -> str:
    if not (leaks := results.data.leaks):
        return ""
    subject = "they are" if len(leaks[0].columns) > 1 else "it is"
    return (
        f"Possible target leakage: {leaks[0].sentence} Results are invalid if {subject} derived from it or "
        f"known only afterwards."
    )


def _partial(results: ComparisonResults) -> str:
    """State which requested methods were not tried, and how many environments could be evaluated."""
    lines: list[str] = []
    if results.not_tried:
        names = listed([method_name(m) for m in results.not_tried], most=8)
        lines.append(f"Not tried within the time budget: {names}.")
    tried, total = len(results.baseline), len(results.environments)
    if tried < total:
        lines.append(f"Only {tried} of {total} environments could be evaluated.")
    return " ".join(lines)


def _drop(results: ComparisonResults) -> str:
    """State whether the baseline's score drops in new environments, and by how much."""
    subject = capitalized(the(results.baseline_method))
    dropped = in_domain_drops(results)
    if drops := dropped or shortfalls(results):
        name = max(drops, key=drops.__getitem__)
        label = environment_name(results, name)
        where = (
            label
            if len(drops) == 1
            else f"{len(drops)} of {len(results.baseline)} environments, especially at {label}"
        )
        verb = "drops significantly" if dropped else "scores significantly worse than expected"
        return f"{subject} {verb} at {where}: {_scores(results, name, expected=not dropped)}."
    if varies(results):
        return _variation(results)
    if (pooled := results.pooled_drop) is not None and drops_on_average(results):
        interval = Interval(pooled.mean, pooled.low, pooled.high, pooled.n_environments)
        return (
            f"{subject} drops significantly on average over environments, by {score(results, pooled.mean)} "
            f"{results.metric.name} (95 % CI {ci(results, interval, difference=True)})."
        )
    if name := hidden_drop(results):
        drop = results.drop(results.baseline[name])
        most = drop.interval.high
        bound = score(results, most) + (" (the largest possible)" if drop.upper > most else "")
        return (
            f"No significant drop, but one of up to {bound} at {environment_name(results, name)} cannot be "
            f"ruled out: {_scores(results, name, interval=False)}."
        )
    worst, _ = results.worst(results.baseline_method)
    at = f"worst environment {environment_name(results, worst)}: {_scores(results, worst)}."
    if not _drop_is_known(results):
        return f"{subject}: its drop is unknown, because no model was trained on a test environment; {at}"
    return f"{subject} has no significant drop; {at}"


def _variation(results: ComparisonResults) -> str:
    """State that scores differ more between environments than chance explains."""
    each = results.expected.by_environment
    name = max(each, key=lambda e: each[e].shortfall / each[e].error)
    return (
        f"{capitalized(the(results.baseline_method))} scores worse than expected in some environments, "
        f"{p_text(results.expected.p_value)} (Q test); the largest shortfall is at "
        f"{environment_name(results, name)}: {results.metric.name} {score(results, each[name].observed)}, "
        f"expected {score(results, each[name].expected)}."
    )


def _cause(results: ComparisonResults) -> str:
    """State why the score drops in the environment with the largest significant drop."""
    causes = [results.causes[name] for name in _explained(results)]
    sentences = (text for each in causes for text in (each.cause, each.relation, each.bias))
    return next(filter(None, sentences), "")


def _remedy(results: ComparisonResults) -> str:
    best = _best_remedy(results)
    return best.sentence if best is not None else ""


def _best_remedy(results: ComparisonResults) -> Remedy | None:
    """Return the best remedy for the environment with the largest drop, or else for another environment."""
    found = _remedies(results)
    order = {name: k for k, name in enumerate(_explained(results)[:1])}
    found.sort(key=lambda remedy: order.get(remedy.environment, len(order)))
    return found[0] if found else None


def _subgroups(results: ComparisonResults) -> str:
    """State the subgroup with the worst score of the recommended method, and whether it is significant."""
    own = [s for s in results.subgroups if s.method == results.recommended and s.score is not None]
    if not own:
        return ""
    worst = min(own, key=lambda each: results.metric.sign * each.score.mean)
    differs = worst.p_value < LEVEL and results.metric.gain(worst.others, worst.score.mean) > 0
    rest = f", {score(results, worst.others)} for others" if math.isfinite(worst.others) else ""
    return (
        f"Worst subgroup: {worst.name}, {results.metric.name} {score(results, worst.score.mean)} (95 % CI "
        f"{ci(results, worst.score)}, {worst.n_rows:,} rows){rest}; the difference is "
        f"{'significant' if differs else 'not significant'}, {p_text(worst.p_value)} (Holm)."
    )


def _remedies(results: ComparisonResults) -> list[Remedy]:
    return [remedy for remedy in results.remedies if remedy.sentence]


def _explained(results: ComparisonResults) -> list[str]:
    """Return the environments with known causes: significant drops first, sorted by size, then others."""
    drops = significant_drops(results)
    names = [*sorted(drops, key=lambda name: -drops[name]), *results.hardest_first()]
    return [name for name in dict.fromkeys(names) if name in results.causes]


def _next_environment(results: ComparisonResults) -> str:
    """State the mean drop over environments, and the range expected in the next environment."""
    pooled = results.pooled_drop
    if pooled is None or not math.isfinite(pooled.next_high):
        return ""
    low, high = (score(results, end, signed=True) for end in (pooled.next_low, pooled.next_high))
    return (
        f"Mean drop over {pooled.n_environments} environments: {score(results, pooled.mean, signed=True)}; "
        f"expect {low} to {high} in the next one (95 % prediction interval)."
    )


def _scores(
    results: ComparisonResults, environment: str, *, interval: bool = True, expected: bool = False
) -> str:
    """Return the baseline's out-of-domain and in-domain (or expected) score in an environment as text."""
    cell = results.baseline[environment]
    text = f"{results.metric.name} {score(results, cell.ood_score.mean)}"
    text += f", 95 % CI {ci(results, cell.ood_score)}" if interval else ""
    if expected:
        value = results.expected.by_environment[environment].expected
        return f"{text}, against {score(results, value)} expected from the others"
    return text + (f", against {score(results, cell.id_score.mean)} in-domain" if cell.id_score.count else "")


def _method(results: ComparisonResults, best: str) -> str:
    """State whether a method is better than the baseline."""
    baseline = the(results.baseline_method)
    hardest, own = results.worst(results.baseline_method)
    at = environment_name(results, hardest)
    if best == results.baseline_method:
        others = [m for m in results.cells if m != best and results.is_complete(m)]
        if not others:
            reason = next(iter(results.not_applicable), "none was evaluated in every environment")
            return f"No other method could be compared: {reason}."
        return (
            f"None of {len(others)} other methods is significantly better than {baseline}, whose worst "
            f"{results.metric.name} is {score(results, own.ood_score.mean)} at {at}."
        )
    cell, (worst, lowest) = results.cells[best][hardest], results.worst(best)
    gain, where, p_value = cell.gain, f"at {at}", cell.p_value
    if not cell.significant and (pooled := results.pooled_gain(best)) is not None:
        gain = Interval(pooled.mean, pooled.low, pooled.high, pooled.n_environments)
        where, p_value = "on average", results.pooled_p_values[best]
    by = (
        ""
        if gain is None
        else f"by {score(results, gain.mean)} (95 % CI {ci(results, gain, difference=True)}) "
    )
    lowest_score = f"{score(results, lowest.ood_score.mean)} ({environment_name(results, worst)})"
    return (
        f"{capitalized(the(best))} beats {baseline} {by}{where}, {p_text(p_value)} (Holm); its worst score "
        f"is {lowest_score}."
    )


def _price(results: ComparisonResults, best: str) -> str:
    """State in which environments the recommended method is significantly worse than the baseline."""
    losses = [
        f"{environment_name(results, name)} (by {score(results, -cell.gain.mean)})"
        for name, cell in results.cells[best].items()
        if cell.significant and cell.gain is not None and cell.gain.mean < 0
    ]
    if not losses:
        return ""
    baseline = the(results.baseline_method)
    return f"{capitalized(the(best))} is significantly worse than {baseline} at {listed(losses)}."


def _unjudged(results: ComparisonResults) -> str:
    """State which environments have no verdict, because many rows have classes not seen in training."""
    classes = _new_classes(results, judged=False)
    return (
        f"No verdict for environments with new classes: {listed(classes, separator='; ')}." if classes else ""
    )


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


def _is_useless(results: ComparisonResults, best: str) -> bool:
    """Return whether the recommended method is no better than a constant prediction on average."""
    constant = results.data.baseline_scores
    cells = results.cells[best]
    leads = [results.metric.gain(cells[n].ood_score.mean, constant[n]) for n in constant if n in cells]
    return bool(leads) and sum(leads) <= 0


def _useless(results: ComparisonResults, best: str) -> str:
    """State in which environments the recommended method is no better than a constant prediction."""
    scores, cells = results.data.baseline_scores, results.cells[best]
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
        f"{capitalized(the(best))} is no better than the {baseline_name(results.metric)} at {where}: "
        f"{score(results, cells[name].ood_score.mean)} against {score(results, scores[name])}."
    )


def _columns(results: ComparisonResults) -> str:
    """State which unstable columns the baseline relies on; columns that change sign come first."""
    importance = results.importance.get(results.baseline_method, {})
    threshold = _RELIES * results.relevant_difference
    relied_on = [
        c for c in _unstable(results) if c.column in importance and importance[c.column].in_domain > threshold
    ]
    columns = [c for c in relied_on if c.changes_sign] or relied_on
    if not columns:
        return ""
    how = "changes sign" if columns[0].changes_sign else "varies in strength"
    names = _quoted([c.column for c in columns])
    subject = capitalized(the(results.baseline_method))
    return f"{subject} relies on {names}, whose relation with the target {how} between environments."


def _unstable(results: ComparisonResults) -> list[ColumnStability]:
    return [c for c in results.data.columns if c.unstable]


def _next_steps(results: ComparisonResults, best: str) -> tuple[str, ...]:
    steps: list[str] = []
    if leaky := results.data.leaky_columns:
        it = "them" if len(leaky) > 1 else "it"
        steps.append(
            f"Check {_quoted(leaky)}: if derived from the target or known only afterwards, exclude {it} and "
            f"compare again."
        )
    if changing := [c.column for c in _unstable(results) if c.changes_sign]:
        steps.append(
            f"Find out why the relation of {_quoted(changing)} with the target changes sign between "
            f"environments. Exclude columns that no model should use, and compare again."
        )
    if (fix := _best_remedy(results)) is not None and fix.kind == "labels":
        steps.append(
            f"Label {fix.action.removesuffix(' labels')} rows of {results.data.new_environment} and adapt "
            f"the saved model to them (`SavedModel.adapt`)."
        )
    shifts = results.data.shifts.items()
    if diverse := [environment_name(results, name) for name, s in shifts if s.diversity.mean >= NOTABLE]:
        steps.append(
            f"Some rows of {listed(diverse)} resemble no rows of other environments (diversity shift). No "
            f"method is reliable there: collect more rows like these."
        )
    relevant = MATTERS * results.relevant_difference
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
    steps += [r.sentence for r in _remedies(results) if r.sentence != _remedy(results)][:_MOST_REMEDIES]
    if best != results.baseline_method:
        steps.append(
            "Before relying on it, evaluate the saved model on an environment that was not part of this "
            "comparison."
        )
    elif has_drop(results):
        steps.append(
            "No tested method removes the drop. Before relying on a model in a new environment, evaluate it "
            "on rows from there, or train on some of them."
        )
    elif hidden_drop(results) and not uncertain:
        steps.append("Use more replicas or more rows per environment to distinguish a drop from noise.")
    elif not steps:
        steps.append("Compare again when an environment is added.")
    return tuple(steps)


def _quoted(names: Sequence[str]) -> str:
    return listed([f"'{name}'" for name in names])
