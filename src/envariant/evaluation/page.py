"""HTML report of an evaluation: one offline file."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from envariant.comparison.formatting import p_text
from envariant.core.files import write_text
from envariant.core.paths import check_overwrite
from envariant.core.printable import finite
from envariant.evaluation.narrative import bullets, headline, score, with_interval
from envariant.evaluation.results import EvaluationResults, is_known
from envariant.reporting import charts, html
from envariant.reporting.page import BigNumber, Block, Page, Section
from envariant.reporting.page import render as render_page
from envariant.reporting.tables import NONE, TextTable

# Largest number of environments in the figure.
_MOST_ROWS = 30


def environments_table(results: EvaluationResults) -> TextTable:
    """Return a table with the score of every model in every environment, and gains over the first model."""
    first, *others = results.models
    header = ["environment", "rows", *(f"{results.metric.name}, {m}" for m in results.models)]
    header += [f"gain of {model} over {first}" for model in others]
    rows: list[tuple[str, ...]] = []
    everywhere = {"all rows": (sum(results.n_rows.values()), results.overall)}
    by_environment = {
        name: (count, {m: own[name] for m, own in results.cells.items() if name in own})
        for name, count in results.n_rows.items()
    }
    for name, (count, cells) in (by_environment | everywhere).items():
        scores = [with_interval(results, cells[m].ood_score) if m in cells else NONE for m in results.models]
        gains = [_gain(results, cells[m]) if m in cells else NONE for m in others]
        rows.append((name, f"{count:,}", *scores, *gains))
    better = "higher" if results.metric.higher_is_better else "lower"
    noise = "the replicas and the sampled rows" if results.n_replicas > 1 else "the sampled rows"
    notes = [
        f"{better.capitalize()} is better. Brackets: 95 % CI over {noise}, limited to the metric's range; "
        f"unknown with fewer than 20 rows, or if all rows are equal."
    ]
    if others:
        notes.append("p: t test of the gain over rows, Holm-corrected over models and environments.")
    return TextTable(tuple(header), tuple(rows), tuple(notes))


def groups_table(results: EvaluationResults) -> TextTable:
    """Return a table with the score of every model in every group."""
    rows = tuple(
        (
            each.name,
            each.method,
            f"{each.n_rows:,}",
            NONE if each.score is None else with_interval(results, each.score),
            score(results, each.others),
            NONE if each.score is None else p_text(each.p_value),
        )
        for each in results.groups
    )
    note = (
        "Rows of all environments together. Brackets: 95 % CI over rows, Bonferroni-corrected over groups. "
        "No score with fewer than 20 rows. Rows without a value are left out."
    )
    return TextTable(("group", "model", "rows", results.metric.name, "other rows", "p (Holm)"), rows, (note,))


def dependence_table(results: EvaluationResults) -> TextTable:
    """Return a table of the calibration of every model in every environment."""
    rows = tuple(
        (
            name,
            model,
            " / ".join(f"{bias:+.2g} ± {error:.2g}" for bias, error in _biases(each)),
            f"{each.slope:.2f} ± {each.slope_error:.2g}",
        )
        for model, own in results.calibration.items()
        for name, each in own.items()
    )
    positive = "" if len(results.classes) != 2 else f" of {results.classes[1]}"
    what = "prediction" if not results.classes else f"predicted probability{positive}"
    note = (
        f"Bias: mean {what} minus {'mean target' if not results.classes else 'observed share'}, ± standard "
        f"error. Slope: 1 is calibrated; below 1, predictions are too extreme (Cox 1958)."
    )
    return TextTable(("environment", "model", "bias", "calibration slope"), rows, (note,))


def chart(results: EvaluationResults) -> charts.Chart:
    """Draw the scores of all models in all environments with their intervals, the worst environment first."""
    order = sorted(
        (n for n in results.environments if n in results.cells[results.best_model]),
        key=lambda n: results.metric.sign * results.cells[results.best_model][n].ood_score.mean,
    )[:_MOST_ROWS]
    cells = {name: {m: own[name] for m, own in results.cells.items() if name in own} for name in order}
    return charts.grouped(
        {name: {m: cell.ood_score.mean for m, cell in own.items()} for name, own in cells.items()},
        results.metric.name,
        intervals={
            name: {m: results.possible(cell.ood_score) for m, cell in own.items() if is_known(cell.ood_score)}
            for name, own in cells.items()
        },
    )


def render(results: EvaluationResults) -> str:
    """Return the report as HTML without external resources."""
    figure = "Score by environment, the worst first. Pale bars: 95 % CI."
    by_environment = Block.table(environments_table(results), "Score in every environment")
    tests = [
        f"{model}: {p_text(test.p_value)} for the hypothesis that P(target | prediction) is equal in all "
        f"environments"
        for model, test in results.invariance.items()
    ]
    dependence = [Block("list", tests)]
    if any(results.calibration.values()):
        dependence.append(Block.table(dependence_table(results), "Calibration in every environment"))
    sections = [Section("environments", "Scores by environment", (by_environment,), is_open=True)]
    if results.groups:
        groups = Block.table(groups_table(results), "Score of every group")
        sections.append(Section("groups", "Is the score worse for a group?", (groups,)))
    sections.append(Section("dependence", "Does a prediction mean the same everywhere?", dependence))
    return render_page(
        Page(
            "evaluation",
            "Evaluation of given predictions",
            _extent(results),
            headline(results),
            numbers=_numbers(results),
            bullets=bullets(results),
            figure=Block.chart(chart(results), figure),
            sections=sections,
            methods=results.models,
        )
    )


def write(
    results: EvaluationResults, numbers: Mapping[str, Any], page: Path, data: Path | None = None
) -> None:
    """Write the report, and the numbers as JSON.

    Args:
        results: Results to report.
        numbers: Content of the JSON file.
        page: HTML file to write.
        data: JSON file to write. Default: none.

    Raises:
        EnvariantError: If a file cannot be written, or would replace a file of another kind.
    """
    check(page, data)
    write_text(render(results), page)
    if data is not None:
        write_text(json.dumps(finite(dict(numbers)), indent=1, allow_nan=False), data)


def check(page: Path, data: Path | None = None) -> None:
    """Check that writing the report would overwrite only files of an earlier evaluation.

    Raises:
        EnvariantError: If a file exists and was not written by an evaluation.
    """
    html.check_page(page, "evaluation")
    if data is not None:
        check_overwrite(data, r'\A\{\s*"headline":')


def to_dict(results: EvaluationResults) -> dict[str, Any]:
    """Return headline and numbers as a JSON-serializable dictionary."""

    def described(cell: Any) -> dict[str, Any]:
        gain = None if cell.gain is None else asdict(results.possible(cell.gain, difference=True))
        return {"score": asdict(results.possible(cell.ood_score)), "gain": gain, "p_value": cell.p_value}

    models = {
        model: {
            "environments": {name: described(cell) for name, cell in own.items()},
            "all_rows": described(results.overall[model]),
            "worst_environment": results.worst(model)[0],
            "worst_group": None if (group := results.worst_group(model)) is None else group.name,
            "next_environment": None
            if (pooled := results.over_environments(model)) is None
            else asdict(pooled),
            "invariance_test": asdict(results.invariance[model]),
            "calibration": {name: asdict(each) for name, each in results.calibration[model].items()},
        }
        for model, own in results.cells.items()
    }
    return {
        "headline": headline(results),
        "bullets": list(bullets(results)),
        "metric": results.metric.name,
        "task": results.task,
        "classes": list(results.classes),
        "predictions": results.kind,
        "n_rows": dict(results.n_rows),
        "models": models,
        "groups": [asdict(each) for each in results.groups],
    }


def _biases(calibration: Any) -> list[tuple[float, float]]:
    return list(zip(calibration.bias, calibration.bias_errors, strict=True))


def _gain(results: EvaluationResults, cell: Any) -> str:
    if cell.gain is None:
        return NONE
    return f"{with_interval(results, cell.gain, signed=True)}, {p_text(cell.p_value)}"


def _numbers(results: EvaluationResults) -> list[BigNumber]:
    model = results.best_model
    name, cell = results.worst(model)
    numbers = [
        BigNumber(
            f"{results.metric.name} over all rows",
            score(results, results.overall[model].ood_score.mean),
            with_interval(results, results.overall[model].ood_score).partition(" ")[2],
        ),
        BigNumber(
            f"{results.metric.name} in {name}",
            score(results, cell.ood_score.mean),
            f"worst environment; {with_interval(results, cell.ood_score).partition(' ')[2]}",
        ),
    ]
    if (group := results.worst_group(model)) is not None and group.score is not None:
        interval = with_interval(results, group.score).partition(" ")[2]
        numbers.append(
            BigNumber(
                f"{results.metric.name} for {group.name}",
                score(results, group.score.mean),
                f"worst group; {interval}",
            )
        )
    return numbers


def _extent(results: EvaluationResults) -> str:
    kind = f"predicted {results.kind}" if results.kind != "values" else "predicted values"
    classes = f" of {len(results.classes)} classes" if results.classes else ""
    models = f" of {len(results.models)} models" if len(results.models) > 1 else ""
    total = sum(results.n_rows.values())
    return f"{kind.capitalize()}{classes}{models} for {total:,} rows in {len(results.n_rows)} environments."
