"""Report section on scores over time, for environments ordered in time."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from envariant.comparison.page.base import Block, PageSection, known
from envariant.comparison.page.scores import drop_rows
from envariant.comparison.results import ComparisonResults
from envariant.reporting import charts


@final
@dataclass(frozen=True, eq=False)
class OverTime(PageSection):
    """Section on the score of each environment when models are trained on all earlier environments."""

    anchor: ClassVar[str] = "over-time"
    title: ClassVar[str] = "How does the score change over time?"

    @classmethod
    def applies(cls, results: ComparisonResults) -> bool:
        return results.data.ordered

    def render(self) -> tuple[Block, ...]:
        """Return the chart of the scores over time."""
        untested = [name for name in self.results.data.n_rows if name not in self.results.environments]
        caption = (
            "Each point is one environment, predicted by models that were trained on all earlier ones. "
            "In-domain: models that were also trained on most rows of the environment. Bands: 95 % CI over "
            "replicas and rows."
        )
        more = f" Not tested: {', '.join(untested)}." if untested else ""
        return (Block.chart(self.chart(), caption + more),)

    def chart(self) -> charts.Chart:
        """Draw the scores of the environments in chronological order."""
        results = self.results
        names = [name for name in results.environments if name in results.baseline]
        rows, labels = drop_rows(results, self.recommended, names)
        inside, own, other, constant = labels
        own, other = (text.replace("out-of-domain", "next environment") for text in (own, other))
        return charts.over_time(rows, results.metric.name, (inside, own, other, constant))

    def to_dict(self) -> dict[str, Any]:
        results = self.results
        scores = {name: cell.ood_score.mean for name, cell in results.baseline.items()}
        return {"over_time": {"ordered": list(results.data.n_rows), "next": known(scores)}}
