"""Selection rules on hand-made tables with known answers."""

import json

import pandas as pd
import pytest

from envariant.core.errors import EnvariantError
from envariant.studies.selection import (
    Invariance,
    LeaveOneOut,
    NoSelection,
    Oracle,
    SelectedRun,
    TrainingValidation,
    select,
)


def study_table(*runs, higher_is_better=1):
    """Return a study's table.

    Each run is (test environments, algorithm, trial, replica, p-value, steps), where steps is a list of
    (step, validation score, test scores) or, for an unfinished run, its state.
    """
    rows = []
    for run, (test, algorithm, trial, replica, p_value, steps) in enumerate(runs):
        done = bool(steps) and not isinstance(steps, str)
        for step, validation, tests in steps if done else [(None, None, {})]:
            values = list(tests.values())
            rows.append(
                {
                    "run": run, "data": "d", "test_environments": tuple(test), "algorithm": algorithm,
                    "trial": trial, "replica": replica, "state": "done" if done else (steps or "planned"),
                    "error": "diverged" if steps == "failed" else None, "p_value": p_value, "metric": "accuracy",
                    "higher_is_better": higher_is_better, "step": step, "validation": validation,
                    "test": sum(values) / len(values) if values else None,
                    "test_worst": (min if higher_is_better else max)(values) if values else None,
                    "tests": json.dumps(tests),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


THREE_RUNS = study_table(
    (("t",), "erm", 0, 0, 1e-9, [(10, 0.70, {"t": 0.5}), (20, 0.90, {"t": 0.1}), (30, 0.85, {"t": 0.2})]),
    (("t",), "vrex", 0, 0, 0.4, [(10, 0.60, {"t": 0.4}), (20, 0.72, {"t": 0.6}), (30, 0.71, {"t": 0.65})]),
    (("t",), "vrex", 1, 0, 0.2, [(10, 0.50, {"t": 0.3}), (20, 0.65, {"t": 0.7}), (30, 0.66, {"t": 0.69})]),
)


def only_choice(results):
    (result,) = results
    assert isinstance(result.choice, SelectedRun), result.choice
    return result.choice


def test_training_validation_selects_the_step_with_the_best_validation_score():
    choice = only_choice(select(THREE_RUNS, TrainingValidation(), pooled=True))
    assert (choice.run, choice.step, choice.validation, choice.test) == (0, 20, 0.90, 0.1)
    by_algorithm = {result.algorithm: result.choice for result in select(THREE_RUNS, TrainingValidation())}
    assert (by_algorithm["vrex"].run, by_algorithm["vrex"].step) == (1, 20)


def test_oracle_selects_by_test_score_at_the_last_step_and_is_marked():
    choice = only_choice(select(THREE_RUNS, Oracle(), pooled=True))
    assert (choice.run, choice.step, choice.test) == (2, 30, 0.69)
    assert "oracle" in choice.remark
    assert Oracle.uses_test
    assert not TrainingValidation.uses_test


def test_invariance_selects_the_best_validation_score_among_runs_that_are_not_rejected():
    choice = only_choice(select(THREE_RUNS, Invariance(), pooled=True))
    assert (choice.run, choice.step) == (1, 30), "the test is run at the last step"
    assert choice.remark == "2 of 3 candidates are not rejected"


def test_invariance_selects_the_largest_p_value_if_all_runs_are_rejected():
    choice = only_choice(select(THREE_RUNS, Invariance(alpha=0.5), pooled=True))
    assert choice.run == 1
    assert choice.remark == "all 3 candidates are rejected at 0.5; this one has the largest p-value"


def test_lowest_score_is_selected_if_lower_is_better():
    errors = study_table(
        (("t",), "erm", 0, 0, 0.5, [(10, 3.0, {"t": 5.0})]),
        (("t",), "erm", 1, 0, 0.5, [(10, 2.0, {"t": 9.0})]),
        higher_is_better=0,
    )
    assert only_choice(select(errors, TrainingValidation(), pooled=True)).run == 1
    assert only_choice(select(errors, Invariance(), pooled=True)).run == 1
    assert only_choice(select(errors, Oracle(), pooled=True)).run == 0


def test_each_replica_selects_independently():
    runs = study_table(
        (("t",), "erm", 0, 0, 0.5, [(10, 0.8, {"t": 0.1})]),
        (("t",), "erm", 1, 0, 0.5, [(10, 0.7, {"t": 0.2})]),
        (("t",), "erm", 0, 1, 0.5, [(10, 0.6, {"t": 0.3})]),
        (("t",), "erm", 1, 1, 0.5, [(10, 0.9, {"t": 0.4})]),
    )
    assert [result.choice.trial for result in select(runs, TrainingValidation())] == [0, 1]


PAIRS = (
    (("a",), "erm", 0, 0, 0.5, [(10, 0.9, {"a": 0.11}), (20, 0.9, {"a": 0.12})]),
    (("a",), "erm", 1, 0, 0.5, [(10, 0.8, {"a": 0.21}), (20, 0.8, {"a": 0.22})]),
    (("a", "b"), "erm", 0, 0, 0.5, [(10, 0.9, {"a": 0.99, "b": 0.5}), (20, 0.9, {"a": 0.99, "b": 0.4})]),
    (("a", "b"), "erm", 1, 0, 0.5, [(10, 0.9, {"a": 0.01, "b": 0.6}), (20, 0.9, {"a": 0.01, "b": 0.5})]),
    (("a", "c"), "erm", 0, 0, 0.5, [(10, 0.9, {"a": 0.99, "c": 0.5}), (20, 0.9, {"a": 0.99, "c": 0.4})]),
    (("a", "c"), "erm", 1, 0, 0.5, [(10, 0.9, {"a": 0.01, "c": 0.5}), (20, 0.9, {"a": 0.01, "c": 0.8})]),
)


def test_leave_one_out_averages_left_out_environments_and_ignores_the_test_environment():
    """Trial 1 has (0.6 + 0.5)/2 at step 10 and (0.5 + 0.8)/2 at step 20; trial 0 has less. Scores in a are ignored."""
    results = select(study_table(*PAIRS), LeaveOneOut(), pooled=True)
    assert [result.test_environments for result in results] == [("a",)], "pairs are not reported"
    choice = only_choice(results)
    assert (choice.run, choice.step, choice.test) == (1, 20, 0.22)


def test_leave_one_out_names_missing_runs():
    alone = select(study_table(*PAIRS[:2]), LeaveOneOut())
    assert "no run has both a and any other as test environments" in alone[0].choice.reason
    incomplete = study_table(*PAIRS[:4], (("c",), "erm", 0, 0, 0.5, [(10, 0.9, {"c": 0.1})]))
    reason = select(incomplete, LeaveOneOut())[0].choice.reason
    assert "no run has both a and c as test environments; plan the study with" in reason
    failed = study_table(*PAIRS[:4], *[(*run[:5], "failed") for run in PAIRS[4:]])
    reason = select(failed, LeaveOneOut())[0].choice.reason
    assert reason == "no run with test environments a and c is done (failed)"


def test_reason_is_given_if_no_run_is_done():
    runs = study_table((("t",), "erm", 0, 0, None, "failed"), (("t",), "erm", 1, 0, None, "planned"))
    (result,) = select(runs, TrainingValidation())
    assert isinstance(result.choice, NoSelection)
    assert result.choice.reason == "no run is done (1 failed, 1 planned); first error: diverged"


def test_empty_table_and_invalid_level_are_rejected():
    with pytest.raises(EnvariantError, match="the study has no run"):
        select(THREE_RUNS[:0], Oracle())
    with pytest.raises(EnvariantError, match=r"Invariance: alpha must be in \(0, 1\), got 1"):
        Invariance(alpha=1.0)


def test_a_finished_run_without_scores_is_one_line():
    # As in a damaged store, whose scores are of another metric.
    table = study_table((("t",), "erm", 0, 0, None, [(1, 0.5, {"t": 0.4})]))
    with pytest.raises(EnvariantError, match="run 0: has no scores"):
        list(select(table.assign(step=float("nan")), TrainingValidation()))
