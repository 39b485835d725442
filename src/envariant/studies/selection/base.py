"""Base class of selection rules, and `select`, which applies a rule to a study."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast, final

import pandas as pd

from envariant.core.display import Displayed, Summary
from envariant.core.errors import EnvariantError


@final
@dataclass(frozen=True)
class SelectedRun:
    """Run that a rule selected, and the selected step within this run.

    Attributes:
        run: ID of the run in the study.
        step: Number of updates after which the selected model was evaluated.
        algorithm: Name of the algorithm.
        trial: Number of the trial (hyperparameter configuration).
        validation: Score on validation rows, averaged over training environments.
        test: Mean score over test environments.
        test_worst: Score in the worst test environment.
        p_value: P-value of the invariance test; None if there was no test.
        remark: Remark of the rule on this selection; "" if there is none.
    """

    run: int
    step: int
    algorithm: str
    trial: int
    validation: float
    test: float
    test_worst: float
    p_value: float | None
    remark: str = ""

    @classmethod
    def from_row(cls, row: Any, remark: str = "") -> "SelectedRun":
        """Create a `SelectedRun` from a row of `Store.table()`."""
        validation, test, worst = (float(row[name]) for name in ("validation", "test", "test_worst"))
        p_value = None if pd.isna(row["p_value"]) else float(row["p_value"])
        run, step, trial = (int(row[name]) for name in ("run", "step", "trial"))
        return cls(run, step, str(row["algorithm"]), trial, validation, test, worst, p_value, remark)


@final
@dataclass(frozen=True)
class NoSelection:
    """Result of a rule if no run could be selected; `reason` explains why."""

    reason: str


class Selection(ABC):
    """Base class of model selection rules; subclasses are frozen dataclasses whose fields are settings.

    Attributes:
        name: Name of the rule on HTML pages, in tables and in JSON.
        uses_test: Whether the rule uses test scores (oracle selection).
        about: Short description of the criterion, for HTML pages.
    """

    name: ClassVar[str]
    uses_test: ClassVar[bool] = False
    about: ClassVar[str]

    @abstractmethod
    def choose(self, candidates: pd.DataFrame, others: pd.DataFrame) -> SelectedRun | NoSelection:
        """Select one of the candidates.

        Args:
            candidates: Rows of `Store.table()` from which to choose: all finished runs of one replica with
                the same data and test environments, one row per evaluated step. The column `score` is the
                validation score, multiplied by −1 if lower is better.
            others: Rows of `Store.table()` for runs with the same replica and data but other test
                environments.
        """


@final
@dataclass(frozen=True, repr=False)
class SelectionResult(Displayed):
    """Result of a selection rule for one combination of data set, test environments, replica and algorithm.

    Attributes:
        data: Name of the data set.
        test_environments: Names of the test environments.
        algorithm: Algorithm of the candidate runs; "" if one run was selected among all algorithms.
        replica: Index of the replica.
        choice: Selected run, or the reason why no run was selected.
    """

    data: str
    test_environments: tuple[str, ...]
    algorithm: str
    replica: int
    choice: SelectedRun | NoSelection

    def _display(self) -> Summary:
        test, each = ", ".join(self.test_environments) or "none", self.choice
        where = f"{self.data}, test {test}, replica {self.replica}"
        if isinstance(each, NoSelection):
            return Summary(f"SelectionResult({where}: none, {each.reason})")
        scores = f"validation {each.validation:.3f}, test {each.test:.3f}"
        return Summary(
            f"SelectionResult({where}: {each.algorithm}, trial {each.trial}, step {each.step}, {scores})"
        )


def select(table: pd.DataFrame, selection: Selection, *, pooled: bool = False) -> tuple[SelectionResult, ...]:
    """Apply a rule to every combination of data set, test environments, replica and algorithm in a study.

    If the study has runs with a single test environment, no result is returned for runs with several test
    environments; these runs are then used only by rules such as leave-one-domain-out.

    Args:
        table: Result of `Store.table()` for the study.
        selection: Selection rule.
        pooled: Whether to select one run among all algorithms instead of one per algorithm.

    Raises:
        EnvariantError: If the table is empty.
    """
    if table.empty:
        raise EnvariantError("selection: the study has no run")
    # Grouping by numbers is faster than by tuples of names.
    codes, names = pd.factorize(table["test_environments"])
    table = table.assign(score=signed(table, table["validation"]), test_set=codes)
    single = table[table["test_set"].isin([code for code, each in enumerate(names) if len(each) < 2])]
    reported = table if single.empty else single
    keys = ["data", "test_set", *([] if pooled else ["algorithm"]), "replica"]
    return tuple(_apply(selection, table, reported, keys, [tuple(each) for each in names]))


def _apply(
    selection: Selection,
    table: pd.DataFrame,
    reported: pd.DataFrame,
    keys: Sequence[str],
    names: Sequence[tuple[str, ...]],
) -> Iterator[SelectionResult]:
    for values, candidates in reported.groupby(list(keys), sort=False):
        group: dict[str, Any] = dict(zip(keys, cast("tuple[Any, ...]", values), strict=True))
        others = table[
            (table["data"] == group["data"])
            & (table["replica"] == group["replica"])
            & (table["test_set"] != group["test_set"])
        ]
        done = candidates[candidates["state"] == "done"]
        _check_scores(done)
        choice = NoSelection(_why_none(candidates)) if done.empty else selection.choose(done, others)
        yield SelectionResult(
            str(group["data"]),
            names[group["test_set"]],
            str(group.get("algorithm", "")),
            int(group["replica"]),
            choice,
        )


def last_steps(candidates: pd.DataFrame) -> pd.DataFrame:
    """Return the last evaluated step of every run, one row per run."""
    _check_scores(candidates)
    return candidates.loc[candidates.groupby("run")["step"].idxmax()]


def _check_scores(runs: pd.DataFrame) -> None:
    """Check that every finished run has scores; in a damaged store, scores may be missing."""
    counts = runs.groupby("run")["step"].count()
    if len(lacking := counts[counts == 0]):
        raise EnvariantError(f"run {lacking.index[0]}: has no scores; retry it, or use another folder")


def best(candidates: pd.DataFrame, column: str) -> Any:
    """Return the row with the highest value in a column; ties go to the lowest run ID, then lowest step."""
    ordered = candidates.sort_values(["run", "step"], kind="stable")
    return ordered.iloc[int(ordered[column].to_numpy().argmax())]


def signed(table: pd.DataFrame, scores: "pd.Series[float]") -> "pd.Series[float]":
    """Return scores such that higher is always better: scores are multiplied by −1 if lower is better."""
    return scores * (2 * table["higher_is_better"].fillna(1).astype(float) - 1)


def _why_none(candidates: pd.DataFrame) -> str:
    states = candidates.drop_duplicates("run")["state"].value_counts()
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    errors = candidates["error"].dropna()
    return f"no run is done ({counts})" + (f"; first error: {errors.iloc[0]}" if len(errors) else "")
