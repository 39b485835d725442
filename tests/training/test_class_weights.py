"""Class weights and row weights: one mechanism, followed by minibatches and predictors."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

import envariant
from envariant.algorithms import recipe
from envariant.core.attributes import CLASS_WEIGHT, WEIGHT, training_weights
from envariant.core.class_weights import ClassWeights, class_weights
from envariant.core.environments import EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Binary, Regression
from envariant.data.class_weighting import ClassWeighting
from envariant.models import model_config
from envariant.training.batch_sampler import BatchSampler, Rows
from envariant.training.optimizers import optimizer_config
from envariant.training.pretraining import prepared
from envariant.training.replicas import Replica, Seeds
from envariant.training.run_config import RunConfig
from envariant.training.run_spec import RunSpec

QUICK = {"steps": 3, "test_environments": (), "progress": False}


def data(weights=None, kind=Binary()) -> EnvironmentSet:  # noqa: B008
    """Return two environments with 10 % and 30 % ones, and a test environment."""
    targets = np.r_[np.arange(50) < 5, np.arange(50) < 15, np.arange(20) < 19].astype(float)
    inputs = np.random.default_rng(0).normal(size=(120, 3)) + targets[:, None]
    environments = ["a"] * 50 + ["b"] * 50 + ["c"] * 20
    return EnvironmentSet.from_arrays(
        inputs, targets, environments, task=kind, test=["c"], sample_weight=weights
    )


@pytest.mark.parametrize(
    ("value", "weights", "text"),
    [
        ("balanced", ClassWeights(), "balanced"),
        ((1, 2.5), ClassWeights((1.0, 2.5)), "weights(1, 2.5)"),
        (np.array([1, 2.5]), ClassWeights((1.0, 2.5)), "weights(1, 2.5)"),
        ("weights(1, 2.5)", ClassWeights((1.0, 2.5)), "weights(1, 2.5)"),
        ({"yes": 5}, ClassWeights((), (("yes", 5.0),)), "weights(yes=5)"),
        (
            {1.0: 5, "not so": 2},
            ClassWeights((), (("1", 5.0), ("not so", 2.0))),
            "weights(('1', 5), ('not so', 2))",
        ),
    ],
)
def test_texts_and_objects_are_one_value(value, weights, text):
    assert class_weights(value) == weights
    spec = RunSpec(data="x", class_weights=value)
    assert spec.to_dict()["class_weights"] == text
    assert RunSpec(data="x", class_weights=text).class_weights == weights


@pytest.mark.parametrize(
    "value",
    ["blanced", "weights(no=-1)", "weights()", "weights(1, no=2)", [], {}, [0, 0], [True, 1], 3, "weights("],
)
def test_invalid_weights_are_one_sentence(value):
    with pytest.raises(
        EnvariantError, match='^class_weights must be "balanced", one weight per class, or a mapping'
    ):
        RunSpec(data="x", class_weights=value)


def test_balanced_weights_equal_those_of_scikit_learn():
    targets = np.r_[[0] * 7, [2] * 2, [3] * 11]
    expected = compute_class_weight("balanced", classes=np.array([0, 2, 3]), y=targets)
    ours = ClassWeights().of(["a", "b", "c", "d"], np.bincount(targets).tolist())
    assert ours == pytest.approx([expected[0], 0, expected[1], expected[2]])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1, 2, 3), "class_weights: needs one weight for each of the 2 classes (0, 1), got 3"),
        ({"2": 1}, "class_weights: unknown class '2'; known: 0, 1"),
        ({"0": 0, "1": 1}, ""),
    ],
)
def test_weights_that_do_not_fit_the_classes_are_rejected(weights, message):
    source = ClassWeighting(data(), class_weights(weights))
    if not message:
        assert source.sample(0)["a"].attributes[CLASS_WEIGHT].sum() == 5
        return
    with pytest.raises(EnvariantError) as refusal:
        source.sample(0)
    assert str(refusal.value).startswith(message)


def test_options_that_cannot_be_combined_are_rejected():
    with pytest.raises(
        EnvariantError, match="class_weights: weights act through the sampling of minibatches"
    ):
        envariant.train(data(), "erm", class_weights="balanced", **QUICK)
    with pytest.raises(
        EnvariantError,
        match="class_weights: requires a binary or multiclass task, but the task is regression",
    ):
        envariant.train(data(kind=Regression()), "linear", class_weights="balanced", **QUICK)
    one_class = EnvironmentSet.from_arrays([[0.0], [1.0], [2.0]], [0, 0, 1], ["a", "a", "b"], task=Binary())
    with pytest.raises(EnvariantError, match="class_weights: all rows of environment 'a' have weight 0"):
        ClassWeighting(one_class, class_weights({"0": 0})).sample(0)


def test_only_training_rows_are_weighted_and_sampling_weights_multiply():
    own = np.linspace(0.5, 2, 120)
    sample = ClassWeighting(data(own), class_weights("balanced")).sample(0)
    assert CLASS_WEIGHT not in sample["c"].attributes
    both = [sample[name] for name in "ab"]
    totals = sum(torch.bincount(e.targets.long(), training_weights(e.attributes), 2) for e in both)
    assert float(totals[0]) == pytest.approx(float(totals[1])), "both classes have the same total weight"
    assert torch.equal(sample["b"].attributes[WEIGHT], torch.from_numpy(own[50:100]))


def test_minibatches_follow_the_weights():
    sample = ClassWeighting(data(), class_weights({"1": 3})).sample(0)
    rows = Rows([sample], sample.roles(), torch.device("cpu"))
    batches = BatchSampler(rows, [0], 500, None, torch.float32)
    targets = torch.stack([batches.at(step)[1][0] for step in range(40)]).view(-1, 2, 500).mean(dim=(0, 2))
    # 5 ones of weight 3 among 45 zeros, and 15 among 35; 20,000 draws of each.
    assert targets.tolist() == pytest.approx([15 / 60, 45 / 80], abs=0.015)


def test_predictors_and_networks_get_the_same_weights():
    own = np.where(np.r_[np.arange(50) < 5, np.arange(50) < 15, np.arange(20) < 19], 4.0, 1.0)
    for algorithm, batch in (("linear", None), ("erm", 8)):
        by_class, by_row, plain = (
            envariant.train(
                source, algorithm, batch_size=batch, **{**QUICK, "test_environments": ("c",)}, **options
            )
            for source, options in ((data(), {"class_weights": {1: 4}}), (data(own), {}), (data(), {}))
        )
        losses = [
            [row.value for row in each.rows if row.metric == "loss"] for each in (by_class, by_row, plain)
        ]
        assert losses[0] == losses[1] != losses[2]


def test_weights_of_rows_come_with_arrays_and_columns():
    table = {"x": [1.0, 2.0, 3.0, 4.0], "y": [0, 1, 0, 1], "e": ["a", "a", "b", "b"], "w": [1, 2, 0, 4]}
    read = EnvironmentSet.from_huggingface(table, inputs="x", target="y", environment="e", sample_weight="w")
    assert [e.attributes[WEIGHT].tolist() for e in read.environments] == [[1, 2], [0, 4]]
    with pytest.raises(EnvariantError, match="sample_weight"):
        EnvironmentSet.from_arrays([[1.0], [2.0]], [0, 1], ["a", "b"], sample_weight=[1.0])
    with pytest.raises(EnvariantError, match="environment 'a': weights must be at least 0"):
        EnvironmentSet.from_arrays([[1.0], [2.0]], [0, 1], ["a", "b"], sample_weight=[-1.0, 1])
    with pytest.raises(
        EnvariantError, match=r"'a': weights must be one number per row; got the shape \(1, 1\)"
    ):
        EnvironmentSet.from_arrays([[1.0], [2.0]], [0, 1], ["a", "b"], sample_weight=[[1.0], [1.0]])


def test_inferred_environments_keep_the_weights():
    """Before, they lost the sampling weights, so that algorithms such as EIIL ignored them."""
    source = ClassWeighting(data(np.r_[0.0, np.linspace(0.5, 2, 119)]), class_weights({"1": 3}))
    config = RunConfig(
        model_config("linear").build,
        optimizer_config("adam"),
        4,
        8,
        4,
        "float32",
        None,
        None,
        torch.device("cpu"),
    )
    member = Replica(0, Seeds.of(0, 0), recipe("eiil").build({"reference_steps": 4}), 0.01, 0.0)
    inferred = prepared(member, source, config, None, lambda *_: None).start.environments
    weights = torch.cat([training_weights(e.attributes) for e in inferred.environments])
    sample = source.sample(0)
    expected = torch.cat([training_weights(sample[name].attributes) for name in "ab"])
    assert torch.equal(weights.sort().values, expected[1:].sort().values), "the row of weight 0 is left out"
