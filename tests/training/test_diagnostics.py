"""Diagnoses: each is reported for a run that has the problem, and for no other."""

import dataclasses
import math

import pytest

import envariant
from envariant.training.diagnostics import diagnose
from envariant.training.history import HistoryRow


def train(algorithm, steps=60, **settings):
    return envariant.train(
        "colored-digits", algorithm, model="mlp(hidden=16)", steps=steps, execution="sequential", **settings
    )


def names(result):
    return [diagnosis.name for diagnosis in result.diagnoses]


@pytest.fixture(scope="module")
def healthy():
    return train("erm", steps=1)


def test_healthy_run_has_no_diagnosis(healthy):
    assert names(healthy) == []


def test_large_penalty_from_the_start_collapses_to_chance():
    result = train("irm(coefficient=1e5, normalize_loss=false)", steps=200, replicas=2)
    (found,) = [d for d in result.diagnoses if d.name == "collapsed to chance"]
    assert found.replicas == (0, 1)
    assert "where a constant prediction has 0.69" in found.evidence
    assert "step(1, 1e4, at=190)" in found.remedy
    assert str(found).startswith("collapsed to chance (replicas 0, 1): loss 0.69")


def test_erm_exceeds_the_invariant_optimum():
    result = train("erm", steps=200)
    (found,) = result.diagnoses
    assert found.name == "above the optimum"
    assert "where the best invariant predictor has 0.750" in found.evidence


def test_coefficient_at_the_cap_is_an_overflow():
    result = train("irm(coefficient=exp(1, 10, after=10))", evaluate_every=1)
    (found,) = [d for d in result.diagnoses if d.name == "coefficient overflow"]
    # 10^12 at step 22, reported by the update after it.
    assert found.evidence == "the irm coefficient reached the cap of 1e+12 by step 23"


@pytest.mark.parametrize(("last", "fires"), [(2e-8, True), (2e-6, False)])
def test_gradient_as_small_as_adams_epsilon_has_vanished(healthy, last, fires):
    found = diagnose(healthy.record, rows([1e-2, last], "*", "gradient rms"))
    assert [d.name for d in found] == (["gradient vanished"] if fires else [])
    if fires:
        assert found[0].evidence == "the gradient's root mean square is 2.0e-08; it was 1.0e-02 at step 0"
        assert "reset Adam" in found[0].remedy


def test_mask_that_keeps_nearly_nothing_is_reported():
    # Of many environments of few rows none agrees with all others.
    data = envariant.data.colored_digits(train_flips=tuple(i / 100 for i in range(10, 40)))
    result = envariant.train(
        data, "and-mask", model="mlp(hidden=16)", steps=10, batch_size=2, execution="sequential"
    )
    assert "mask keeps nearly nothing" in names(result)


def rows(values, environment="flip-0.9", metric="accuracy"):
    return [HistoryRow(0, 10 * i, environment, "test", metric, value) for i, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "fires"),
    [
        ([0.1, 0.5, 0.6, 0.7, 0.7, 0.7, 0.68, 0.66, 0.64, 0.62], True),
        ([0.1, 0.5, 0.6, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7], False),
        # A single high measurement is not a peak.
        ([0.1, 0.5, 0.65, 0.65, 0.7, 0.65, 0.65, 0.65, 0.65, 0.65], False),
        # A fall from chance has no peak.
        ([0.5, 0.5, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1, 0.1], False),
        # Too few measurements.
        ([0.7, 0.6, 0.5], False),
    ],
)
def test_decay_is_a_fall_from_a_peak_above_chance(healthy, values, fires):
    found = diagnose(healthy.record, rows(values))
    assert [d.name for d in found] == (["decay after a peak"] if fires else [])
    if fires:
        assert (
            found[0].evidence
            == "accuracy in test environment 'flip-0.9' fell from 0.700 near step 40 to 0.640"
        )
        assert "oracle selection" in found[0].remedy


def test_validation_rows_and_changed_inputs_are_not_diagnosed(healthy):
    falling = rows([0.1, 0.5, 0.6, 0.7, 0.7, 0.7, 0.68, 0.66, 0.64, 0.62])
    assert diagnose(healthy.record, [dataclasses.replace(row, role="validation") for row in falling]) == ()
    assert diagnose(healthy.record, [dataclasses.replace(row, kind="shuffled") for row in falling]) == ()


def test_measurements_before_the_first_update_are_not_diagnosed(healthy):
    untrained = [row for row in train("erm", steps=1).rows if row.step == 0]
    assert untrained
    assert diagnose(healthy.record, untrained) == ()


def test_set_without_known_optimum_has_no_such_bound(healthy):
    record = dataclasses.replace(train("erm", steps=2).record, optimum=None)
    assert diagnose(record, train("erm", steps=200).rows) == ()


def test_output_spread_and_gradient_size_match_their_definitions():
    """Output spread and gradient size of a linear model, from its weights."""
    data = envariant.data.colored_digits().sample(0)
    result = envariant.train(
        data, "erm(l2=0)", model="linear", steps=3, evaluate_every=1, execution="sequential"
    )
    model = result.model()
    for environment in data.environments:
        outputs = model(environment.inputs).detach().double()
        expected = outputs.std(correction=0).item()
        assert result.final(environment.name, "output sd").mean == pytest.approx(expected, rel=1e-5)
    training = [data[name] for name in ("flip-0.2", "flip-0.1")]
    loss = sum(data.task.losses(model(e.inputs).flatten(), e.targets).mean() for e in training) / 2
    loss.backward()
    numbers = [p.grad.flatten().double() for p in model.parameters()]
    size = math.sqrt(sum(float(g.square().sum()) for g in numbers) / sum(map(len, numbers)))
    # The gradient reported after the next update is that at these weights.
    longer = envariant.train(
        data, "erm(l2=0)", model="linear", steps=4, evaluate_every=1, execution="sequential"
    )
    reported = [row.value for row in longer.rows if (row.step, row.metric) == (4, "gradient rms")]
    assert reported == [pytest.approx(size, rel=1e-4)]


def scored(record, accuracy, loss, step=100):
    """Measurements of one training environment at the end of a run."""
    values = {"accuracy": accuracy, "loss": loss, "output sd": 1.0}
    environments = [each.name for each in record.environments if each.role == "train"]
    return [
        HistoryRow(0, step, name, "train", metric, value)
        for name in environments
        for metric, value in values.items()
    ]


@pytest.mark.parametrize(
    ("accuracy", "loss", "majority", "steps", "fires"),
    [
        (0.52, 0.60, 0.52, 100, True),
        # A large loss alone does not matter if the predictions are right.
        (0.80, 0.90, 0.52, 100, False),
        # As good as the most frequent class, but with a lower loss: an imbalanced problem.
        (0.90, 0.25, 0.90, 100, False),
        (0.90, 0.70, 0.90, 100, True),
        # Always the rare class.
        (0.10, 0.60, 0.90, 100, True),
        # A few steps need not have learned anything.
        (0.52, 0.60, 0.52, 20, False),
    ],
)
def test_training_score_near_chance_is_reported(healthy, accuracy, loss, majority, steps, fires):
    environments = tuple(
        dataclasses.replace(each, majority=majority, constant_loss=0.69 if majority < 0.6 else 0.5)
        for each in healthy.record.environments
    )
    record = dataclasses.replace(
        healthy.record, spec=healthy.record.spec.but(steps=steps), environments=environments, optimum=None
    )
    found = diagnose(record, scored(record, accuracy, loss))
    assert [d.name for d in found] == (["training score near chance"] if fires else [])
    if fires:
        assert found[0].evidence.startswith(f"accuracy {accuracy:.3f} in 'flip-0.2', where a constant")
        assert "sigmoid" in found[0].cause


def test_regression_no_better_than_a_constant_is_reported(healthy):
    record = dataclasses.replace(
        healthy.record, spec=healthy.record.spec.but(steps=100), higher_is_better=False, chance=None
    )
    for loss, fires in ((0.9999, True), (0.9, False)):
        environments = tuple(dataclasses.replace(e, constant_loss=1.0) for e in record.environments)
        own = dataclasses.replace(record, environments=environments, metric="squared error")
        names = [d.name for d in diagnose(own, scored(own, 0.0, loss))]
        # "accuracy" is no metric of a regression, so give the loss as the score as well.
        rows = [dataclasses.replace(r, metric="squared error") for r in scored(own, loss, loss)
                if r.metric == "accuracy"]  # fmt: skip
        names = [d.name for d in diagnose(own, [*scored(own, 0.0, loss), *rows])]
        assert names == (["training score near chance"] if fires else [])


def test_penalty_that_never_acts_is_not_to_be_enlarged(healthy):
    with pytest.warns(envariant.core.errors.EnvariantWarning, match="changes only after"):
        idle = train("irm(coefficient=step(1, 1e4, at=500))", steps=1)
    texts = {}
    for name, result in (("idle", idle), ("erm", healthy), ("acts", train("irm(coefficient=5)", steps=1))):
        high = [dataclasses.replace(r, step=100) for r in scored(result.record, 0.95, 0.1)]
        batch = [r for r in result.rows if r.environment == "*"]
        (found,) = [d for d in diagnose(result.record, [*high, *batch]) if d.name == "above the optimum"]
        texts[name] = found
    assert "irm coefficient: step(1, 10000, at=500) changes only after" in texts["idle"].cause
    assert texts["idle"].remedy.startswith("train longer, or give the switch point as a share")
    assert "coefficient" not in texts["erm"].remedy
    assert texts["acts"].remedy.startswith("a larger coefficient")


def test_collapse_without_a_penalty_is_not_blamed_on_one(healthy):
    record = healthy.record
    rows = [
        dataclasses.replace(
            row, value=record.constant_loss[row.environment] if row.metric == "loss" else 0.01
        )
        for row in scored(record, 0.5, 0.69)
        if row.metric != "accuracy"
    ]
    (found,) = diagnose(record, rows)
    assert found.name == "collapsed to chance"
    assert "normalize_loss" not in found.remedy
