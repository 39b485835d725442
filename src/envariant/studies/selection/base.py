"""What a selection is: of the candidates for one place one run and step, or the reason why there is none."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast, final

import pandas as pd

from envariant.core.errors import EnvariantError


@final
@dataclass(frozen=True)
class Chosen:
    """A model that was chosen.

    Attributes:
        run: its number in the study.
        step: after so many updates.
        algorithm, draw: which it is.
        validation: the task's metric on held-out rows of the training environments.
        test, test_worst: in the environments that are held out: mean and worst.
        p_value: of the test of invariance; None where there is none.
        remark: what there is to say about the choice.
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


@final
@dataclass(frozen=True)
class Missing:
    """Why nothing could be chosen."""

    reason: str


class Selection(ABC):
    """A way to choose; a frozen dataclass whose fields are its settings.

    Attributes:
        name: as written on the command line.
        sees_test: whether it looks at the held-out environments, which makes it an oracle.
        about: how it chooses, in a sentence.
    """

    name: ClassVar[str]
    sees_test: ClassVar[bool] = False
    about: ClassVar[str]

    @abstractmethod
    def choose(self, candidates: pd.DataFrame, others: pd.DataFrame) -> Chosen | Missing:
        """One of the candidates.

        Args:
            candidates: rows of `Store.table` of runs that are done, at every step measured; of one replica,
                with the same environments held out; their metric is better where `score` is higher.
            others: rows of the same replica and data with other environments held out.
        """


@final
@dataclass(frozen=True)
class Selected:
    """What was chosen at one place of a study.

    Attributes:
        data, test_environments: the place; names held out as in the table.
        algorithm: those among which was chosen; "" is all.
        replica: likewise.
        choice: what was chosen, or why nothing was.
    """

    data: str
    test_environments: str
    algorithm: str
    replica: int
    choice: Chosen | Missing


def select(table: pd.DataFrame, selection: Selection, *, pooled: bool = False) -> tuple[Selected, ...]:
    """What a selection chooses for each data set, held-out environments, algorithm and replica.

    Args:
        table: of the study.
        selection: how to choose.
        pooled: choose among all algorithms together.

    Raises:
        EnvariantError: the table is empty.
    """
    if table.empty:
        raise EnvariantError("selection: the study holds no run")
    table = table.assign(score=_signed(table, "validation"))
    keys = (
        ["data", "test_environments", "replica"]
        if pooled
        else ["data", "test_environments", "algorithm", "replica"]
    )
    single = table[~table["test_environments"].str.contains('", "', regex=False)]
    # Runs that hold two environments out are there for selection alone, unless there are no others.
    shown = table if single.empty else single
    return tuple(_each(table, shown, selection, keys))


def _each(
    table: pd.DataFrame, shown: pd.DataFrame, selection: Selection, keys: Sequence[str]
) -> Iterator[Selected]:
    for place, candidates in shown.groupby(list(keys), sort=False):
        named = dict(zip(keys, place if isinstance(place, tuple) else (place,), strict=True))
        same = table[
            (table["data"] == named["data"])
            & (table["replica"] == named["replica"])
            & (table["test_environments"] != named["test_environments"])
        ]
        done = candidates[candidates["state"] == "done"]
        choice = selection.choose(done, same) if not done.empty else Missing(_why_none(candidates))
        yield Selected(
            str(named["data"]),
            str(named["test_environments"]),
            str(named.get("algorithm", "")),
            int(cast("int", named["replica"])),
            choice,
        )


def chosen(row: Any, remark: str = "") -> Chosen:
    """The choice that a row of the table is."""
    p = row["p_value"]
    return Chosen(
        int(row["run"]),
        int(row["step"]),
        str(row["algorithm"]),
        int(row["trial"]),
        float(row["validation"]),
        float(row["test"]),
        float(row["test_worst"]),
        None if pd.isna(p) else float(p),
        remark,
    )


def last_steps(candidates: pd.DataFrame) -> pd.DataFrame:
    """Of every run the last step that was measured."""
    return candidates.loc[candidates.groupby("run")["step"].idxmax()]


def best(candidates: pd.DataFrame, column: str) -> Any:
    """The row with the highest number; of equal ones the first run, and of that the earliest step."""
    ordered = candidates.sort_values(["run", "step"], kind="stable")
    return ordered.iloc[int(ordered[column].to_numpy().argmax())]


def _signed(table: pd.DataFrame, column: str) -> "pd.Series[float]":
    better = table["higher_is_better"].fillna(1).astype(float)
    return table[column] * (2 * better - 1)


def _why_none(candidates: pd.DataFrame) -> str:
    states = candidates.drop_duplicates("run")["state"].value_counts()
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    errors = candidates["error"].dropna()
    return f"no run is done ({counts})" + (f"; the first error: {errors.iloc[0]}" if len(errors) else "")
