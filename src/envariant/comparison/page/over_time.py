"""Section on the scores over time, if environments are ordered."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from matplotlib.figure import Figure

from envariant.comparison.formatting import method_name
from envariant.comparison.page.base import Block, PageSection, known, shortened
from envariant.comparison.page.scores import runner_up
from envariant.comparison.results import ComparisonResults
from envariant.reporting.theme import MUTED, TEST, TRAIN, legend, name_axes, new_axes, plain_text, quiet


@final
@dataclass(frozen=True, eq=False)
class OverTime(PageSection):
    """Section with the score in each next environment, in the order of time."""

    anchor: ClassVar[str] = "over-time"
    title: ClassVar[str] = "How does the score change over time?"

    @classmethod
    def applies(cls, results: ComparisonResults) -> bool:
        return results.data.ordered

    def render(self) -> tuple[Block, ...]:
        """Return the figure of the scores over time."""
        untested = [name for name in self.results.data.n_rows if name not in self.results.environments]
        caption = (
            "Each point is one environment, predicted by models that were trained on all earlier ones. "
            "In-domain: models trained on most of its rows too. Bands: 95 % CI over replicas and rows."
        )
        more = f" Not tested: {', '.join(untested)}." if untested else ""
        return (Block.figure(self.figure(), caption + more),)

    def figure(self) -> Figure:
        """Return a figure of the scores over the environments in time."""
        results = self.results
        other = self.recommended if self.recommended != results.baseline_method else runner_up(results)
        names = [name for name in results.environments if name in results.baseline]
        cells = [results.baseline[name] for name in names]
        figure, axes = new_axes(7.4, 3.6)
        places = list(range(len(names)))
        ends = [results.possible(cell.ood_score) for cell in cells]
        axes.fill_between(places, [e.low for e in ends], [e.high for e in ends], color=TEST, alpha=0.15, lw=0)
        baseline = method_name(results.baseline_method)
        inside = [(k, cell.id_score.mean) for k, cell in enumerate(cells) if cell.id_score.count]
        if inside:
            axes.plot(*zip(*inside, strict=True), "o--", color=TEST, ms=6, mfc="white", lw=1,
                      label=f"{baseline}, in-domain")  # fmt: skip
        axes.plot(places, [cell.ood_score.mean for cell in cells], "o-", color=TEST, ms=6,
                  label=f"{baseline}, next environment")  # fmt: skip
        own = results.cells.get(other, {})
        if drawn := [(k, own[name].ood_score.mean) for k, name in enumerate(names) if name in own]:
            axes.plot(*zip(*drawn, strict=True), "D-", color=TRAIN[0], ms=5, lw=1,
                      label=f"{method_name(other)}, next environment")  # fmt: skip
        constant = [results.data.baseline_scores.get(name, float("nan")) for name in names]
        axes.plot(places, constant, color=MUTED, lw=1.2, ls=(0, (2, 2)), label="constant prediction")
        axes.set_xticks(places, [plain_text(shortened(name, 10)) for name in names])
        name_axes(axes, results.data.environment_column, results.metric.name)
        quiet(axes)
        legend(figure, columns=2)
        return figure

    def to_dict(self) -> dict[str, Any]:
        results = self.results
        scores = {name: cell.ood_score.mean for name, cell in results.baseline.items()}
        return {"over_time": {"ordered": list(results.data.n_rows), "next": known(scores)}}
