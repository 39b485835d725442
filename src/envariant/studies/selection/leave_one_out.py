"""Leave-one-domain-out selection: the best mean score in training environments left out in turn."""

import json
import math
from dataclasses import dataclass
from typing import Any, ClassVar, cast, final

import pandas as pd

from envariant.studies.selection.base import (
    NoSelection,
    SelectedRun,
    Selection,
    best,
    signed,
)


@final
@dataclass(frozen=True)
class LeaveOneOut(Selection):
    """Rule that selects the trial and step with the best score in left-out environments.

    Gulrajani & Lopez-Paz 2021.

    For a test environment t, every other environment v is left out in turn: the study must contain, for each
    trial, a run with test environments {t, v}. This run is scored in v. The score of a trial and step is the
    mean over all v.
    """

    name: ClassVar[str] = "leave-one-domain-out"
    about: ClassVar[str] = "best mean score in training environments that were left out in turn, at any step"

    def choose(self, candidates: pd.DataFrame, others: pd.DataFrame) -> SelectedRun | NoSelection:
        test = candidates["test_environments"].iloc[0]
        if len(test) != 1:
            return NoSelection("needs runs with a single test environment")
        sets = {
            frozenset[str](cast("Any", names)): runs
            for names, runs in others.groupby("test_environments", sort=False)
        }
        pairs = {
            next(iter(names - {*test})): runs
            for names, runs in sets.items()
            if len(names) == 2 and names > {*test}
        }
        missing = sorted(set[str]().union(*sets) - {*test} - pairs.keys())
        if missing or not pairs:
            return NoSelection(
                f"no run has both {test[0]} and {' or '.join(missing) or 'any other'} as test environments; "
                f'plan the study with test_environments = "each-and-pairs"'
            )
        left_out = pd.Series(0.0, index=candidates.index)
        for name, runs in pairs.items():
            done = runs[runs["state"] == "done"]
            known = {_key(row): json.loads(row["tests"]).get(name) for row in done.to_dict("records")}
            scores = [known.get(_key(row)) for row in candidates.to_dict("records")]
            if all(score is None for score in scores):
                states = ", ".join(sorted(set(runs["state"])))
                return NoSelection(f"no run with test environments {test[0]} and {name} is done ({states})")
            values = [math.nan if score is None else float(score) for score in scores]
            left_out += signed(candidates, pd.Series(values, index=candidates.index)) / len(pairs)
        scored = candidates.assign(left_out=left_out)
        return SelectedRun.from_row(best(scored[left_out.notna()], "left_out"))


def _key(row: dict[Any, Any]) -> tuple[Any, ...]:
    """Return algorithm, trial and step, by which runs with different test environments are matched."""
    return row["algorithm"], row["trial"], row["step"]
