"""Leave-one-domain-out: the best where one training environment more is held out, each in its turn."""

import json
import math
from dataclasses import dataclass
from typing import ClassVar, final

import pandas as pd

from envariant.studies.selection.base import Chosen, Missing, Selection, best, chosen


@final
@dataclass(frozen=True)
class LeaveOneOut(Selection):
    """The draw and step with the best mean over runs that hold one more out. Gulrajani & Lopez-Paz 2021.

    For a test environment t and every other one v there has to be a run of the same draw that holds out both;
    it is measured in v. The mean over all v is what counts.
    """

    name: ClassVar[str] = "leave-one-domain-out"
    about: ClassVar[str] = "best in training environments that were left out in turn, at any measured step"

    def choose(self, candidates: pd.DataFrame, others: pd.DataFrame) -> Chosen | Missing:
        test = set(json.loads(candidates["test_environments"].iloc[0]))
        if len(test) != 1:
            return Missing("it needs runs that hold out one environment")
        pairs = [(held, set(json.loads(held)) - test) for held in others["test_environments"].unique()]
        wanted = {left.pop(): held for held, left in pairs if len(left) == 1 and set(json.loads(held)) > test}
        every = {name for held in others["test_environments"].unique() for name in json.loads(held)} - test
        if lacking := sorted(every - wanted.keys()) or (not wanted and ["any other"]):
            return Missing(
                f"no run holds out {' or '.join(lacking)} beside {test.pop()}; "
                f'plan the study with test_environments = "each-and-pairs"'
            )
        scores = candidates.assign(left_out=0.0)
        for name, held in wanted.items():
            pair = others[others["test_environments"] == held]
            done = pair[pair["state"] == "done"]
            known = {
                (row["algorithm"], row["trial"], row["step"]): json.loads(row["tests"]).get(name)
                for row in done.to_dict("records")
            }
            found = [
                known.get((row["algorithm"], row["trial"], row["step"])) for row in scores.to_dict("records")
            ]
            if all(value is None for value in found):
                states = ", ".join(sorted(set(pair["state"])))
                return Missing(f"of the runs that hold out {name} as well none is done ({states})")
            better = scores["higher_is_better"].fillna(1) * 2 - 1
            values = pd.Series([math.nan if v is None else float(v) for v in found], index=scores.index)
            scores["left_out"] += values * better / len(wanted)
        return chosen(best(scores[scores["left_out"].notna()], "left_out"))
