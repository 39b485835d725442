"""Tests of `envariant.evaluate`: inputs that could be read in a wrong way without an error."""

import numpy as np
import pandas as pd
import pytest

import envariant
from envariant.core.errors import EnvariantError
from envariant.evaluation.from_table import evaluate_table

ROWS = 60
SITES = ["north", "south"] * (ROWS // 2)
WORDS = ["no", "yes", "yes"] * (ROWS // 3)
RISING = np.linspace(0.1, 0.9, ROWS)


def accuracy(predictions, targets=WORDS, **options):
    return envariant.evaluate(predictions, targets, SITES, metric="accuracy", **options)


def test_labels_and_probabilities_of_two_models_do_not_become_classes_together():
    with pytest.raises(EnvariantError, match=r"no predicted label, such as '0.1'.*, occurs in the targets"):
        accuracy({"a": WORDS, "b": RISING})


def test_columns_of_every_model_are_matched_with_the_classes():
    right = pd.DataFrame({"P(no)": 1 - RISING, "P(yes)": RISING})
    with pytest.raises(EnvariantError, match=r"columns q1, q2 are not named for the classes"):
        accuracy({"a": right, "b": pd.DataFrame({"q2": 1 - RISING, "q1": RISING})})
    other = pd.DataFrame({"P(yes)": RISING, "P(no)": 1 - RISING})
    scores = accuracy({"a": right, "b": other}).to_frame()["score"]
    assert scores["a"].tolist() == scores["b"].tolist()


def test_one_number_per_row_is_no_probability_of_three_classes():
    with pytest.raises(EnvariantError, match=r"3 classes need predicted labels, or one column per class"):
        accuracy(RISING, ["a", "b", "a"] * (ROWS // 3), classes=["a", "b", "c"], kind="probabilities")


@pytest.mark.parametrize("what", ["groups", "clusters", "sample_weight"])
def test_other_rows_in_another_order_are_an_error(what):
    frame = pd.DataFrame({"p": RISING, "y": WORDS, "of_row": np.arange(ROWS) % 3 + 1.0})
    shuffled = frame["of_row"].sort_values(kind="stable")
    with pytest.raises(EnvariantError, match=rf"predictions of model and {what} have the same index"):
        accuracy(frame["p"], frame["y"], **{what: shuffled})


def test_any_two_indices_are_compared_also_of_mixed_types():
    index = [0, "a", *range(2, ROWS)]
    targets = pd.Series(WORDS, index=index)
    weights = pd.Series(1.0, index=["a", 0, *range(2, ROWS)])
    with pytest.raises(EnvariantError, match=r"targets and sample_weight have the same index"):
        accuracy(pd.Series(RISING), targets, sample_weight=weights)


def test_whole_numbers_in_a_table_are_classes_as_in_arrays():
    generator = np.random.default_rng(0)
    targets = generator.integers(0, 3, ROWS)
    predicted = np.where(generator.random(ROWS) < 0.8, targets, generator.integers(0, 3, ROWS))
    frame = pd.DataFrame({"y": targets, "p": predicted, "site": SITES})
    of_table = evaluate_table(frame, target="y", prediction=["p"], environment="site")
    of_arrays = envariant.evaluate(predicted, targets, SITES)
    assert of_table.results.metric.name == of_arrays.results.metric.name == "accuracy"
    assert of_table.to_frame()["score"].tolist() == of_arrays.to_frame()["score"].tolist()


def test_a_hard_column_named_for_the_first_class_is_its_probability():
    targets = np.arange(ROWS) // 2 % 2
    frame = pd.DataFrame({"y": targets, "P(0)": 1 - targets, "site": SITES})
    options = {"target": "y", "prediction": ["P(0)"], "environment": "site", "metric": "accuracy"}
    scores = evaluate_table(frame, **options).to_frame()["score"]
    assert scores.tolist() == [1.0, 1.0]
