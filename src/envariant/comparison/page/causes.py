"""Report sections on the reasons for drops, and on remedies with measured gains."""

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, final

from envariant.analysis.statistics import Interval
from envariant.comparison.causes import MOST_ENVIRONMENTS, PARTS, Cause, number
from envariant.comparison.page.base import Block, PageSection
from envariant.comparison.remedies import Remedy, label_scores, score_text
from envariant.comparison.results import ComparisonResults
from envariant.reporting import charts
from envariant.reporting.tables import NONE, TextTable

# Largest number of curves in the figure of scores by number of labels.
_MOST_CURVES = 8


@final
@dataclass(frozen=True, eq=False)
class Causes(PageSection):
    """Section on the reasons for each drop: parts of the drop, bias of predictions, and kinds of shift."""

    anchor: ClassVar[str] = "causes"
    title: ClassVar[str] = "Why does the score drop?"

    @classmethod
    def applies(cls, results: ComparisonResults) -> bool:
        return bool(results.causes)

    def render(self) -> tuple[Block, ...]:
        """Return a summary per environment, a chart of the drops, and a table."""
        causes: list[Cause] = list(self.results.causes.values())
        split = [cause for cause in causes if cause.split is not None]
        caption = (
            "Loss of models trained without the environment minus loss of models trained with it. Level: "
            "part that a new intercept removes. Slope: part that a calibration slope removes. Ranking: part "
            "that no recalibration removes. Dots: total, with 95 % CI."
        )
        figure = (Block.chart(_parts_chart(split), caption),) if split else ()
        table = Block.table(self.table(), "Parts of the drop, and kind of shift")
        return (Block("definitions", tuple(map(_summary, causes))), *figure, table)

    def table(self) -> TextTable:
        """Return a table of the parts of the drop, one row per environment."""
        causes: list[Cause] = list(self.results.causes.values())
        hidden = len(self.results.environments) - len(causes)
        loss = causes[0].loss_name
        header = (
            self.results.data.environment_column or "environment", f"drop in {loss}", "level", "slope",
            "ranking", "bias", "changed relation", "other inputs", "kind of shift",
        )  # fmt: skip
        note = (
            f"Drop: {loss} out of domain minus in domain, 95 % CI. Bias: mean prediction minus mean target "
            f"(class with the largest bias). Changed relation, other inputs: parts of the difference from "
            f"the training environments (DISDE). {NONE}: not measured, or no overlap of inputs. Kind of "
            f"shift: against the other environments (permutation tests, level 0.05)."
        )
        more = f"Only the {MOST_ENVIRONMENTS} environments with the worst scores are explained."
        return TextTable(header, tuple(map(_row, causes)), (note, *([more] if hidden > 0 else [])))

    def to_dict(self) -> dict[str, Any]:
        causes: dict[str, Cause] = dict(self.results.causes)
        return {
            "causes": {
                name: {
                    "cause": cause.cause,
                    "bias": cause.bias,
                    "relation": cause.relation,
                    "kinds": list(cause.shift.kinds) if cause.shift else [],
                    "shares": dict(cause.shares),
                    "drop": asdict(cause.split) if cause.split else None,
                    "decomposition": asdict(cause.decomposition) if cause.decomposition else None,
                }
                for name, cause in causes.items()
            }
        }


@final
@dataclass(frozen=True, eq=False)
class Remedies(PageSection):
    """Section on remedies, such as recalibration with a few labels, and on their measured gains."""

    anchor: ClassVar[str] = "remedies"
    title: ClassVar[str] = "What would help?"

    @classmethod
    def applies(cls, results: ComparisonResults) -> bool:
        return bool(results.remedies)

    def render(self) -> tuple[Block, ...]:
        """Return a chart of scores by number of labels, a table of gains, and notes on columns to collect."""
        remedies: tuple[Remedy, ...] = self.results.remedies
        curves = [each for each in remedies if each.curve][:_MOST_CURVES]
        caption = (
            "Score after an intercept, or an intercept and a slope, is fitted to some labeled rows of the "
            "environment, measured on its other rows. Bars: standard deviation over random choices of the "
            "labeled rows."
        )
        figure = (Block.chart(_label_chart(curves), caption),) if curves else ()
        measured = any(math.isfinite(each.gain.mean) for each in remedies)
        table = (Block.table(self.table(), "Remedies, significant gains first"),) if measured else ()
        notes = (Block("note", each.sentence) for each in remedies if each.kind == "collect")
        return (*figure, *table, *notes)

    def table(self) -> TextTable:
        """Return a table of measured gains, one row per environment and remedy."""
        remedies: tuple[Remedy, ...] = self.results.remedies
        measured = [each for each in remedies if math.isfinite(each.gain.mean)]
        name = measured[0].score if measured else "score"
        lines = tuple(
            (
                each.environment,
                each.action,
                score_text(each.score, each.before),
                score_text(each.score, each.after),
                _interval(each.gain, each.score == "RMSE") + ("" if each.significant else " (n.s.)"),
            )
            for each in measured
        )
        environment = self.results.data.environment_column or "environment"
        note = (
            "Labels: smallest number of labels that reaches 90 % of the largest gain. Intervals: 95 %, "
            "Bonferroni-corrected over environments and methods. n.s.: not significant."
        )
        return TextTable((environment, "remedy", f"{name} before", "after", "gain"), lines, (note,))

    def to_dict(self) -> dict[str, Any]:
        remedies: tuple[Remedy, ...] = self.results.remedies
        return {
            "remedies": [
                {**asdict(each), "significant": each.significant, "sentence": each.sentence}
                for each in remedies
            ]
        }


def _summary(cause: Cause) -> tuple[str, str]:
    """Return an environment's name, and the sentences about its drop without this name."""
    sentences = [cause.cause or "No significant drop.", cause.bias, cause.relation, cause.kinds]
    texts = (
        s.removeprefix(f"In {cause.label}, ").replace(f" in {cause.label}.", ".") for s in sentences if s
    )
    return cause.environment, " ".join(text[:1].upper() + text[1:] for text in texts)


def _row(cause: Cause) -> tuple[str, ...]:
    split, disde, calibration = cause.split, cause.decomposition, cause.calibration
    loss = [NONE] * 4
    if split is not None:
        means = [getattr(split.loss, part).mean for part in PARTS]
        loss = [_interval(split.loss.total, cause.regression), *(_signed(m, cause.regression) for m in means)]
    relation = [NONE] * 2
    if disde is not None and disde.has_overlap:
        changed, total = disde.changed_relation.mean, disde.target_loss - disde.source_loss
        relation = [_signed(value, cause.regression) for value in (changed, total - changed)]
    bias = NONE if calibration is None else _signed(max(calibration.bias, key=abs), cause.regression)
    kinds = NONE if cause.shift is None else ", ".join(cause.shift.kinds) or "none"
    return (cause.environment, *loss, bias, *relation, kinds)


def _signed(value: float, in_unit: bool) -> str:
    if not in_unit:
        return f"{round(value, 3) + 0.0:+.3f}".replace("-", "−")
    return f"{'−' if value < 0 else '+'}{number(abs(value))}"


def _interval(interval: Interval, in_unit: bool) -> str:
    mean, low, high = (_signed(value, in_unit) for value in (interval.mean, interval.low, interval.high))
    return f"{mean} [{low}, {high}]"


def _parts_chart(causes: list[Cause]) -> charts.Chart:
    """Draw level, slope and ranking parts as stacked bars, one row per environment."""
    splits = {cause.environment: cause.split.loss for cause in causes if cause.split is not None}
    parts = {name: [getattr(loss, part).mean for part in PARTS] for name, loss in splits.items()}
    totals = {name: loss.total for name, loss in splits.items()}
    return charts.cause_parts(parts, totals, f"drop in {causes[0].loss_name} (out of domain − in domain)")


def _label_chart(remedies: list[Remedy]) -> charts.Chart:
    """Draw the score over the number of labels, one curve per environment."""
    series = {
        each.environment: [
            charts.LabelPoint(0, each.before),
            *(charts.LabelPoint(gain.n_labels, *label_scores(gain, each.score)[1:]) for gain in each.curve),
        ]
        for each in remedies
    }
    return charts.label_curves(series, remedies[0].score)
