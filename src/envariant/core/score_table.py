"""`ScoreTable`: scores of methods by environment (mean ± standard deviation), formatted as in papers.

In each column, the best score is bold and the second best is underlined. Scores that are equal as printed
count as equal.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, final

from envariant.core.display import NONE, Displayed, Summary, named
from envariant.core.errors import EnvariantError
from envariant.core.printable import one_line

if TYPE_CHECKING:
    import pandas as pd

AVERAGE: Final = "average"
"""Name of the column with the average over environments."""

# Rows of a table in a console, where eight lines are shown.
_MOST_ROWS = 6
_LATEX: Final = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
    "±": r"$\pm$", "−": "$-$", "×": r"$\times$", "–": "--", "²": "$^2$", "≥": r"$\geq$", "≤": r"$\leq$",
    "→": r"$\to$", "λ": r"$\lambda$", "β": r"$\beta$", "α": r"$\alpha$",
}  # fmt: skip
_MARKDOWN: Final = {character: f"\\{character}" for character in "\\`*_{}[]<>#|"}


@final
class Score(NamedTuple):
    """Mean of a score over replicas.

    Attributes:
        mean: Mean; NaN if there is no replica.
        sd: Standard deviation (divisor n − 1); None for fewer than two replicas.
        n: Number of replicas.
    """

    mean: float
    sd: float | None
    n: int


@final
@dataclass(frozen=True, eq=False, repr=False)
class ScoreTable(Displayed):
    """Scores of methods by environment, with the average over environments.

    Attributes:
        metric: Name of the metric.
        higher_is_better: Whether higher scores are better.
        values: Scores by method, environment and replica number, as nested mappings.
        columns: Names of the environments, in order.
        title: Beginning of the caption, such as "Scores by environment".
        averaged: Names of the environments in the average. Default: all.
        notes: Additional sentences of the caption.
    """

    metric: str
    higher_is_better: bool
    values: Mapping[str, Mapping[str, Mapping[int, float]]]
    columns: tuple[str, ...]
    title: str
    averaged: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    def score(self, method: str, column: str) -> Score:
        """Return a score of the table.

        Args:
            method: Name of the method.
            column: Name of an environment, or "average" for the mean of the environments' mean scores. The
                average is NaN if the method has no score at all in one of them. Its standard deviation is
                that of the replicas' `averages`.
        """
        if column != AVERAGE or AVERAGE in self.columns:
            return _score(_finite(self.values[method].get(column, {})).values())
        parts = self._parts(method)
        if not all(parts):
            return Score(math.nan, None, 0)
        averages = self.averages(method)
        mean = statistics.fmean(statistics.fmean(part.values()) for part in parts)
        return Score(mean, _score(averages).sd, len(averages))

    def averages(self, method: str) -> tuple[float, ...]:
        """Return each replica's average over environments.

        Replicas that lack a score in an averaged environment are omitted.

        Args:
            method: Name of the method.
        """
        parts = self._parts(method)
        common = sorted(set.intersection(*(set(part) for part in parts))) if parts else []
        return tuple(statistics.fmean(part[k] for part in parts) for k in common)

    def to_frame(self) -> "pd.DataFrame":
        """Return a data frame of means, standard deviations and numbers of replicas, with one row per method.

        The columns have two levels: environment, and "mean", "sd" or "replicas".
        """
        import pandas as pd

        frame = pd.DataFrame(
            [
                [value for column in self._shown for value in self.score(method, column)]
                for method in self.values
            ],
            index=pd.Index(self.values, name="method"),
            columns=pd.MultiIndex.from_product(
                [self._shown, ["mean", "sd", "replicas"]], names=["environment", self.metric]
            ),
        )
        numbers = {column: float for column in frame.columns if column[1] != "replicas"}
        return frame.astype(numbers)

    def to_markdown(self, *, digits: int | None = None, percent: bool = False) -> str:
        """Return the table as Markdown, with the best scores bold, the second best underlined, and a caption.

        Args:
            digits: Number of decimal places. Default: 1 for percentages; otherwise 3, or fewer if a score is
                at least 10.
            percent: Whether to print the scores as percentages.
        """
        escape = _escaper(_MARKDOWN)
        header, *rows = self._cells(digits, percent, escape, {"b": "**{}**", "u": "<ins>{}</ins>"})
        rule = ["---", *["---:"] * (len(header) - 1)]
        lines = [f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)]
        return "\n".join([*lines, "", escape(self.caption(percent=percent)), ""])

    def to_latex(
        self,
        *,
        digits: int | None = None,
        percent: bool = False,
        caption: str | None = None,
        label: str = "",
    ) -> str:
        r"""Return the table as LaTeX, best in bold and second best underlined; needs `\usepackage{booktabs}`.

        Args:
            digits: Number of decimal places. Default: 1 for percentages; otherwise 3, or fewer if a score is
                at least 10.
            percent: Whether to print the scores as percentages.
            caption: Caption as LaTeX code. Default: metric, number of replicas and meaning of the marks.
            label: Label for `\ref`. Default: none.
        """
        escape = _escaper(_LATEX)
        header, *rows = self._cells(
            digits, percent, escape, {"b": r"\textbf{{{}}}", "u": r"\underline{{{}}}"}
        )
        lines = [f"    {' & '.join(cells)} \\\\" for cells in (header, *rows)]
        return "\n".join(
            [
                r"\begin{table}[t]",
                r"  \centering",
                f"  \\caption{{{escape(self.caption(percent=percent)) if caption is None else caption}}}",
                *([f"  \\label{{{label}}}"] if label else []),
                f"  \\begin{{tabular}}{{l{'c' * (len(header) - 1)}}}",
                r"    \toprule",
                lines[0],
                r"    \midrule",
                *lines[1:],
                r"    \bottomrule",
                r"  \end{tabular}",
                r"\end{table}",
                "",
            ]
        )

    def caption(self, *, percent: bool = False) -> str:
        """Return the caption: title, metric, number of replicas, meaning of the marks, and notes."""
        counts = [n for m in self.values for c in self.columns if (n := self.score(m, c).n)]
        low, high = min(counts, default=0), max(counts, default=0)
        number = f"{low}" if low == high else f"{low}–{high}"
        replicas = f"{number} replica{'' if high == 1 else 's'}"
        spread = "" if high < 2 else f", mean ± standard deviation over {replicas}"
        unit = " in percent" if percent else ""
        sentences = [f"{self.title}: {self.metric}{unit}{spread or f', {replicas}'}."]
        if len(self.values) > 1:
            best = "highest" if self.higher_is_better else "lowest"
            second = ", second best underlined" if len(self.values) > 2 else ""
            sentences.append(f"Best ({best}) in bold{second}.")
        if AVERAGE in self._shown and self._averaged != self.columns:
            sentences.append(f"Average over {named(self._averaged)}.")
        return " ".join([*sentences, *self.notes])

    def __str__(self) -> str:
        return f"{self._text(len(self.values))}\n{self.caption()}"

    def __repr__(self) -> str:
        return self._text(_MOST_ROWS)

    def _display(self) -> Summary:
        return self.summary()

    def _parts(self, method: str) -> list[dict[int, float]]:
        """Return the scores of a method by replica, one mapping per averaged environment."""
        return [_finite(self.values[method].get(column, {})) for column in self._averaged]

    @property
    def _averaged(self) -> tuple[str, ...]:
        return self.columns if self.averaged is None else self.averaged

    @property
    def _shown(self) -> tuple[str, ...]:
        """Columns of the table: the environments, and their average if there are several."""
        has_average = len(self._averaged) > 1 and AVERAGE not in self.columns
        return (*self.columns, *((AVERAGE,) if has_average else ()))

    def summary(self) -> Summary:
        """Return the `Summary` of the table, which notebooks display."""
        plain = self._cells(None, False, str, {})
        marks = {
            (i, j): tag
            for j, column in enumerate(self._shown, 1)
            for i, tag in enumerate(self._marks(column, self._digits(None, False), 1.0))
            if tag
        }
        rows = tuple(tuple(row) for row in plain[1:])
        return Summary(self.title, header=tuple(plain[0]), rows=rows, notes=(self.caption(),), marks=marks)

    def _text(self, most: int) -> str:
        """Return the first rows as aligned text."""
        rows = [[one_line(cell) for cell in row] for row in self._cells(None, False, str, {})]
        rows, more = rows[: most + 1], len(rows) - 1 - most
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if j else cell.ljust(width)
                for j, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        return "\n".join([*lines, *([f"… {more} more methods"] if more > 0 else [])])

    def _cells(
        self, digits: int | None, percent: bool, escape: Callable[[str], str], tags: Mapping[str, str]
    ) -> list[list[str]]:
        """Return header and rows as text; the best scores are formatted with the templates in `tags`."""
        if not self.values:
            raise EnvariantError(f"{self.title}: has no method to show")
        digits, factor = self._digits(digits, percent), 100.0 if percent else 1.0
        columns: list[list[str]] = []
        for column in self._shown:
            marks = self._marks(column, digits, factor)
            texts = [escape(_text(self.score(method, column), digits, factor)) for method in self.values]
            columns.append([tags.get(tag, "{}").format(t) for t, tag in zip(texts, marks, strict=True)])
        names = [escape(name) for name in self.values]
        header = [escape(name) for name in (self.metric, *self._shown)]
        return [header, *map(list, zip(names, *columns, strict=True))]

    def _marks(self, column: str, digits: int, factor: float) -> list[str]:
        """Return one mark per method for a column: "b" for the best score, "u" for the second best, else "".

        Scores are compared as printed, with `digits` decimal places.
        """
        sign = -1 if self.higher_is_better else 1
        printed = [sign * round(factor * self.score(m, column).mean, digits) for m in self.values]
        ranks = sorted({value for value in printed if not math.isnan(value)})
        best = ranks[:1] if len(self.values) > 1 else []
        second = ranks[1:2] if len(self.values) > 2 else []
        return ["b" if value in best else "u" if value in second else "" for value in printed]

    def _digits(self, digits: int | None, percent: bool) -> int:
        if digits is not None:
            return digits
        if percent:
            return 1
        means = [abs(self.score(m, c).mean) for m in self.values for c in self.columns]
        largest = max((mean for mean in means if math.isfinite(mean)), default=0.0)
        return 3 if largest < 10 else max(0, 3 - math.floor(math.log10(largest)))


def _finite(replicas: Mapping[int, float]) -> dict[int, float]:
    return {k: value for k, value in replicas.items() if math.isfinite(value)}


def _score(values: Iterable[float]) -> Score:
    known = list(values)
    if not known:
        return Score(math.nan, None, 0)
    deviation = statistics.stdev(known) if len(known) > 1 else None
    return Score(statistics.fmean(known), deviation, len(known))


def _text(score: Score, digits: int, factor: float) -> str:
    if math.isnan(score.mean):
        return NONE
    spread = "" if score.sd is None else f" ± {factor * score.sd:,.{digits}f}"
    return f"{factor * score.mean:,.{digits}f}{spread}"


def _escaper(table: Mapping[str, str]) -> Callable[[str], str]:
    translation = str.maketrans(dict(table))
    return lambda text: one_line(text).translate(translation)
