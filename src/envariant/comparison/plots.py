"""Chart of a comparison: scores of the baseline and of another method in every environment."""

import math
from typing import Any

from envariant.comparison.baselines import baseline_name
from envariant.comparison.formatting import method_name
from envariant.comparison.results import ComparisonResults
from envariant.reporting.charts.comparisons import DropRow, drops

_MOST_ROWS = 30


def drop_chart(results: ComparisonResults, recommended: str) -> Any:
    """Draw in-domain and out-of-domain scores of the baseline, and those of one other method.

    Args:
        results: Results of the comparison.
        recommended: Recommended method, drawn with the baseline; if it is the baseline, the method with the
            best worst score among the others is drawn.
    """
    other = recommended if recommended != results.baseline_method else results.runner_up()
    rows: list[DropRow] = []
    for name in results.hardest_first()[:_MOST_ROWS]:
        cell, second = results.baseline[name], results.cells.get(other, {}).get(name)
        rows.append(
            DropRow(
                name,
                cell.id_score.mean if cell.id_score.count else math.nan,
                results.possible(cell.ood_score),
                None if second is None else results.possible(second.ood_score),
                results.data.baseline_scores.get(name, math.nan),
            )
        )
    names = (method_name(results.baseline_method), method_name(other), baseline_name(results.metric))
    return drops(rows, results.metric.name, names)
