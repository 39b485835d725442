"""Selections on tables made by hand, with answers known beforehand; what is missing says why."""

import json

import pandas as pd
import pytest

from envariant.core.errors import EnvariantError
from envariant.studies.selection import (
    Chosen,
    Invariance,
    LeaveOneOut,
    Missing,
    Oracle,
    TrainingValidation,
    select,
)


def table(*runs, better=1):
    """Rows of a study's table: each run is (held out, algorithm, draw, replica, p, [(step, validation, tests)])."""
    lines = []
    for number, (held, algorithm, trial, replica, p, steps) in enumerate(runs):
        done = bool(steps) and not isinstance(steps, str)
        for step, validation, tests in steps if done else [(None, None, {})]:
            values = list(tests.values())
            lines.append(
                {
                    "run": number, "data": "d", "test_environments": json.dumps(list(held)), "algorithm": algorithm,
                    "trial": trial, "replica": replica, "state": "done" if done else (steps or "planned"),
                    "error": "it broke" if steps == "failed" else None, "p_value": p, "metric": "accuracy",
                    "higher_is_better": better, "step": step, "validation": validation,
                    "test": sum(values) / len(values) if values else None,
                    "test_worst": (min if better else max)(values) if values else None,
                    "tests": json.dumps(tests),
                }
            )  # fmt: skip
    return pd.DataFrame(lines)


TWO = table(
    (("t",), "erm", 0, 0, 1e-9, [(10, 0.70, {"t": 0.5}), (20, 0.90, {"t": 0.1}), (30, 0.85, {"t": 0.2})]),
    (("t",), "vrex", 0, 0, 0.4, [(10, 0.60, {"t": 0.4}), (20, 0.72, {"t": 0.6}), (30, 0.71, {"t": 0.65})]),
    (("t",), "vrex", 1, 0, 0.2, [(10, 0.50, {"t": 0.3}), (20, 0.65, {"t": 0.7}), (30, 0.66, {"t": 0.69})]),
)


def one(found):
    (only,) = found
    assert isinstance(only.choice, Chosen), only.choice
    return only.choice


def test_training_validation_takes_the_best_step_on_held_out_rows():
    choice = one(select(TWO, TrainingValidation(), pooled=True))
    assert (choice.run, choice.step, choice.validation, choice.test) == (0, 20, 0.90, 0.1)
    each = {s.algorithm: s.choice for s in select(TWO, TrainingValidation())}
    assert (each["vrex"].run, each["vrex"].step) == (1, 20)


def test_the_oracle_looks_at_the_last_step_in_the_test_environment_and_says_so():
    choice = one(select(TWO, Oracle(), pooled=True))
    assert (choice.run, choice.step, choice.test) == (2, 30, 0.69)
    assert "oracle" in choice.remark
    assert Oracle.sees_test
    assert not TrainingValidation.sees_test


def test_invariance_takes_the_best_of_those_that_are_not_rejected():
    choice = one(select(TWO, Invariance(), pooled=True))
    assert (choice.run, choice.step) == (1, 30), "the last step: that is what was tested"
    assert choice.remark == "2 of 3 candidates are not rejected"


def test_where_all_are_rejected_invariance_says_so():
    choice = one(select(TWO, Invariance(alpha=0.5), pooled=True))
    assert choice.run == 1
    assert choice.remark.startswith("all 3 candidates are rejected at 0.5; this one has the largest p-value")


def test_where_lower_is_better_the_lowest_is_best():
    errors = table(
        (("t",), "erm", 0, 0, 0.5, [(10, 3.0, {"t": 5.0})]),
        (("t",), "erm", 1, 0, 0.5, [(10, 2.0, {"t": 9.0})]),
        better=0,
    )
    assert one(select(errors, TrainingValidation(), pooled=True)).run == 1
    assert one(select(errors, Invariance(), pooled=True)).run == 1
    assert one(select(errors, Oracle(), pooled=True)).run == 0


def test_every_replica_chooses_for_itself():
    runs = table(
        (("t",), "erm", 0, 0, 0.5, [(10, 0.8, {"t": 0.1})]),
        (("t",), "erm", 1, 0, 0.5, [(10, 0.7, {"t": 0.2})]),
        (("t",), "erm", 0, 1, 0.5, [(10, 0.6, {"t": 0.3})]),
        (("t",), "erm", 1, 1, 0.5, [(10, 0.9, {"t": 0.4})]),
    )
    assert [s.choice.trial for s in select(runs, TrainingValidation())] == [0, 1]


PAIRS = (
    (("a",), "erm", 0, 0, 0.5, [(10, 0.9, {"a": 0.11}), (20, 0.9, {"a": 0.12})]),
    (("a",), "erm", 1, 0, 0.5, [(10, 0.8, {"a": 0.21}), (20, 0.8, {"a": 0.22})]),
    (("a", "b"), "erm", 0, 0, 0.5, [(10, 0.9, {"a": 0.99, "b": 0.5}), (20, 0.9, {"a": 0.99, "b": 0.4})]),
    (("a", "b"), "erm", 1, 0, 0.5, [(10, 0.9, {"a": 0.01, "b": 0.6}), (20, 0.9, {"a": 0.01, "b": 0.5})]),
    (("a", "c"), "erm", 0, 0, 0.5, [(10, 0.9, {"a": 0.99, "c": 0.5}), (20, 0.9, {"a": 0.99, "c": 0.4})]),
    (("a", "c"), "erm", 1, 0, 0.5, [(10, 0.9, {"a": 0.01, "c": 0.5}), (20, 0.9, {"a": 0.01, "c": 0.8})]),
)


def test_leave_one_out_means_over_environments_that_were_left_out_in_turn_and_never_sees_the_test():
    """Draw 1 has (0.6 + 0.5)/2 at step 10 and (0.5 + 0.8)/2 at step 20; draw 0 less. What is in a is nothing to it."""
    found = select(table(*PAIRS), LeaveOneOut(), pooled=True)
    assert [s.test_environments for s in found] == ['["a"]'], "pairs are there for selection alone"
    choice = one(found)
    assert (choice.run, choice.step, choice.test) == (1, 20, 0.22)


def test_what_leave_one_out_lacks_is_named():
    alone = select(table(*PAIRS[:2]), LeaveOneOut())
    assert "no run holds out any other beside a" in alone[0].choice.reason
    lacking = table(*PAIRS[:4], (("c",), "erm", 0, 0, 0.5, [(10, 0.9, {"c": 0.1})]))
    assert (
        "no run holds out c beside a; plan the study with" in select(lacking, LeaveOneOut())[0].choice.reason
    )
    broken = table(*PAIRS[:4], *[(*run[:5], "failed") for run in PAIRS[4:]])
    reason = select(broken, LeaveOneOut())[0].choice.reason
    assert reason == "of the runs that hold out c as well none is done (failed)"


def test_where_no_run_is_done_the_reason_is_named():
    runs = table((("t",), "erm", 0, 0, None, "failed"), (("t",), "erm", 1, 0, None, "planned"))
    (found,) = select(runs, TrainingValidation())
    assert isinstance(found.choice, Missing)
    assert found.choice.reason == "no run is done (1 failed, 1 planned); the first error: it broke"


def test_an_empty_table_and_a_wrong_level_are_refused():
    with pytest.raises(EnvariantError, match="the study holds no run"):
        select(TWO[:0], Oracle())
    with pytest.raises(EnvariantError, match="alpha must lie above 0 and below 1; got 1"):
        Invariance(alpha=1.0)
