"""`StudyResults`: tables, significance tests, charts and HTML report of a study."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, final

import pandas as pd

from envariant.core.display import Displayed, Summary, views
from envariant.core.errors import EnvariantError, unknown_name
from envariant.core.files import as_path
from envariant.core.score_table import ScoreTable
from envariant.studies import significance
from envariant.studies.selection import (
    SELECTIONS,
    SelectedRun,
    Selection,
    SelectionResult,
    TrainingValidation,
    select,
)
from envariant.training.store import Store


@final
@dataclass(frozen=True, eq=False, repr=False)
class StudyResults(Displayed):
    """Results of the finished runs of a study.

    Attributes:
        folder: Folder of the study.

    Example:
        >>> from envariant.studies import Study
        >>> study = Study("colored-digits", ("erm", "groupdro"), replicas=2, settings={"steps": 20})
        >>> results = study.run()
        >>> list(results.table().to_frame().index)
        ['erm', 'groupdro']
    """

    folder: Path

    @classmethod
    def load(cls, folder: Path | str) -> "StudyResults":
        """Load the results of a study from its folder.

        Args:
            folder: Folder of the study.

        Raises:
            EnvariantError: If the folder contains no study.
        """
        results = cls(as_path(folder, "folder"))
        with Store(results.folder) as store:
            store.declaration()
        return results

    @cached_property
    def runs(self) -> pd.DataFrame:
        """Return validation and test scores of all runs, one row per evaluated step."""
        with Store(self.folder) as store:
            return store.table()

    def selections(
        self, rule: str | Selection = TrainingValidation.name, *, pooled: bool = False
    ) -> tuple[SelectionResult, ...]:
        """Return the selected run for each combination of data set, test environments, algorithm and replica.

        Args:
            rule: Selection rule, or its name: "training-domain validation", "leave-one-domain-out",
                "invariance" or "oracle".
            pooled: Whether to select one run among all algorithms instead of one per algorithm.

        Raises:
            EnvariantError: If the rule is unknown, or no run is finished.
        """
        evaluated(self.runs)
        return select(self.runs, _rule(rule), pooled=pooled)

    def table(self, rule: str | Selection = TrainingValidation.name) -> ScoreTable:
        """Return the scores in the test environments as a table with one row per algorithm, as in papers.

        Args:
            rule: Rule that selects the trial and step, or its name.

        Raises:
            EnvariantError: If the rule is unknown, or no run is finished.
        """
        rows = evaluated(self.runs)
        rule = _rule(rule)
        selected = self.selections(rule)
        several = len({each.data for each in selected}) > 1
        columns = dict.fromkeys(environments_label(each, with_data=several) for each in selected)
        values: dict[str, dict[str, dict[int, float]]] = {each.algorithm: {} for each in selected}
        reasons: dict[str, None] = {}
        for each in selected:
            label = environments_label(each, with_data=several)
            if isinstance(each.choice, SelectedRun):
                values[each.algorithm].setdefault(label, {})[each.replica] = each.choice.test
            else:
                reasons[f"{each.algorithm}, {label}: {each.choice.reason}."] = None
        with_labels = " (uses test labels)" if rule.uses_test else ""
        return ScoreTable(
            str(rows["metric"].iloc[0]),
            bool(rows["higher_is_better"].iloc[0]),
            values,
            tuple(columns),
            "Scores in the test environments",
            notes=(f"Hyperparameters and step by {rule.name}{with_labels}.", *reasons),
        )

    def compare(self, rule: str | Selection = TrainingValidation.name) -> significance.Comparison:
        """Test whether algorithms differ significantly from ERM.

        Args:
            rule: Selection rule, or its name.

        Raises:
            EnvariantError: If the rule is unknown, or no run is finished.
        """
        higher_is_better = bool(evaluated(self.runs)["higher_is_better"].iloc[0])
        return significance.compare(self.selections(rule), higher_is_better=higher_is_better)

    def plot(self, rule: str | Selection = TrainingValidation.name) -> Any:
        """Return a chart of the scores in the test environments, one row per algorithm.

        Args:
            rule: Selection rule, or its name.

        Raises:
            EnvariantError: If the rule is unknown, or no run is finished.
        """
        return views().plot_scores(self.table(rule))

    def report(self, path: Path | str | None = None) -> Path:
        """Write an HTML report on the study to a single file that needs no internet access; return its path.

        Args:
            path: File to write, ending in .html. Default: report.html in the folder of the study.

        Raises:
            EnvariantError: If no run is finished, or the file cannot be written.
        """
        page = self.folder / "report.html" if path is None else as_path(path, "path")
        if page.suffix not in (".html", ".htm"):
            raise EnvariantError(f"{page}: the file name of a report must end in .html")
        with Store(self.folder) as store:
            views().write_study_page(store, page)
        return page

    def _display(self) -> Summary:
        states = self.runs.drop_duplicates("run")["state"].value_counts()
        counts = ", ".join(f"{count} {state}" for state, count in states.items())
        facts = {"folder": str(self.folder), "runs": counts}
        try:
            evaluated(self.runs)
        except EnvariantError as error:
            return Summary("StudyResults", facts, lines=(str(error),))
        verdict = self.compare().verdict
        inner = self.table().summary()
        return replace(inner, title="StudyResults", facts=facts, lines=(verdict,))


def evaluated(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of finished runs.

    Args:
        table: Result of `Store.table()` for the study.

    Raises:
        EnvariantError: If no run is finished, or the runs have different metrics.
    """
    rows = table[(table["state"] == "done") & table["step"].notna()]
    if rows.empty:
        errors = table["error"].dropna()
        first = f"; first error: {errors.iloc[0]}" if len(errors) else ""
        raise EnvariantError(f"study: no run is done{first}")
    if rows["metric"].nunique() > 1:
        raise EnvariantError(
            "study: the data sets have different metrics; run a separate study for each metric"
        )
    return rows


def environments_label(each: SelectionResult, *, with_data: bool) -> str:
    """Return the test environments of a selection as a string, optionally after the data set's name."""
    names: Sequence[str] = each.test_environments
    test = ", ".join(names) or "none"
    return f"{each.data}: {test}" if with_data else test


def _rule(rule: str | Selection) -> Selection:
    if isinstance(rule, Selection):
        return rule
    if rule not in SELECTIONS:
        raise unknown_name("selection rule", str(rule), SELECTIONS)
    return SELECTIONS[rule]()
