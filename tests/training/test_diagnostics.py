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
