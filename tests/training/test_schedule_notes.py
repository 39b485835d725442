"""Suggested schedules are scaled to the number of steps; schedules without effect are reported at the start."""

import warnings
from dataclasses import replace

import numpy as np
import pytest

import envariant
from envariant import InvariantClassifier
from envariant.algorithms import EQRM, IRM, TRM, Composition, ERMPlus, Recipe, recipe, rescale
from envariant.core.environments import DefaultSettings
from envariant.core.errors import EnvariantWarning
from envariant.data import ColoredMNIST, colored_digits
from envariant.studies.study import Study
from envariant.training.averaging import averaging
from envariant.training.resolution import resolve, resolve_algorithm
from envariant.training.run_spec import RunSpec

MNIST = ColoredMNIST("irm")


def coefficient(algorithm, steps, source=MNIST, **hyperparameters):
    """Coefficient of the first penalty in a run of some steps, as resolved."""
    resolved = resolve_algorithm(algorithm, hyperparameters, source, steps)
    return str(resolved.trained.penalties[0].coefficient)


@pytest.mark.parametrize(
    ("algorithm", "weight", "switch", "scaled"),
    [
        ("irm", "91257.18613115903", 190, 57),
        ("vrex", "10000", 100, 30),
        (recipe("irm"), "91257.18613115903", 190, 57),
    ],
)
def test_suggested_switch_scales_with_the_steps(algorithm, weight, switch, scaled):
    paper, short = (coefficient(algorithm, steps) for steps in (501, 150))
    assert paper == f"step(1, {weight}, at={switch})"
    assert short == f"step(1, {weight}, at={scaled})"


def test_switch_of_the_algorithm_scales_where_the_data_suggest_none():
    # Fishr's default is meant for 500 steps; the protocol suggests 501.
    assert coefficient("fishr(coefficient=step(0, 1e3, at=100))", 50) == "step(0, 1000, at=100)"
    assert coefficient("ib-erm", 50) == "step(0, 100, at=10)"
    assert coefficient("erm + ib-erm", 50) == "step(0, 100, at=10)"


@pytest.mark.parametrize(
    ("algorithm", "hyperparameters"),
    [("irm(coefficient=step(1, 7, at=190))", {}), ("irm", {"coefficient": "step(1, 7, at=190)"}),
     (IRM("step(1, 7, at=190)"), {}), (recipe("irm"), {"coefficient": "step(1, 7, at=190)"})],
)  # fmt: skip
def test_given_schedule_is_never_scaled_but_reported(algorithm, hyperparameters):
    assert coefficient(algorithm, 150, **hyperparameters) == "step(1, 7, at=190)"
    spec = RunSpec(data=MNIST, algorithm=algorithm, hyperparameters=hyperparameters, steps=150)
    (remark,) = resolve(spec).remarks()
    assert remark.startswith("irm coefficient: step(1, 7, at=190) changes only after this run of 150 steps")


def test_scaled_schedule_is_stated_and_is_no_change_of_the_protocol():
    run = resolve(RunSpec(data=MNIST, algorithm="irm", steps=150))
    assert run.remarks() == (
        "irm coefficient: step(1, 91257.18613115903, at=190) is suggested for 501 steps; scaled to "
        "step(1, 91257.18613115903, at=57) for 150 steps",
    )
    assert run.spec.hyperparameters["coefficient"] == "step(1, 91257.18613115903, at=57)"
    assert run.reference.hyperparameters == run.spec.hyperparameters
    assert resolve(RunSpec(data=MNIST, algorithm="irm")).remarks() == ()
    assert resolve(RunSpec(data=MNIST, algorithm="irm", steps=501)).remarks() == ()


def test_other_step_numbers_scale_as_well():
    parts = Composition(EQRM(burn_in=100)), TRM(warm_up=200), ERMPlus(head_steps=100)
    assert rescale(parts[0], 500, 50).risk_aggregator.burn_in == 10
    assert rescale(parts[1], 500, 50).warm_up == 20
    assert rescale(parts[2], 500, 50) == ERMPlus(head_steps=10)
    assert rescale(parts[2], 500, 500) is parts[2]
    # Negative: no warm-up.
    assert rescale(ERMPlus(head_steps=-1), 5000, 50).head_steps == -1


def test_step_numbers_that_data_suggest_scale_as_well():
    _, scaled = recipe("trm").rescale({"warm_up": 300, "inner_steps": 9}, 1000, 100)
    assert scaled == {"warm_up": 30, "inner_steps": 9}


@pytest.mark.parametrize(
    ("algorithm", "start"),
    [
        ("eqrm(burn_in=60)", "eqrm burn_in: 60 takes effect only after this run of 50 steps"),
        ("trm(warm_up=50)", "trm warm_up: 50 takes effect only after this run of 50 steps"),
    ],
)
def test_other_step_numbers_beyond_the_run_are_reported(algorithm, start):
    (remark,) = resolve(RunSpec(data=colored_digits(), algorithm=algorithm, steps=50)).remarks()
    assert remark.startswith(start)


def test_step_numbers_within_the_run_are_not_reported():
    for algorithm in ("eqrm(burn_in=49)", "trm(warm_up=49)"):
        assert resolve(RunSpec(data=colored_digits(), algorithm=algorithm, steps=50)).remarks() == ()


def test_default_average_of_an_algorithm_scales_and_can_be_replaced(monkeypatch):
    source = colored_digits()
    monkeypatch.setattr(type(source), "default_settings", lambda *_: DefaultSettings(steps=5000))
    spec = RunSpec(data=source, algorithm="erm++(head_steps=40)", steps=50)
    run, other, none, own = (
        resolve(spec.but(average=each)) for each in (None, "ema(0.9)", "none", "ma(start=20)")
    )
    assert (run.spec.average, run.reference.average) == ("ma(start=6)", "ma(start=6)")
    assert run.remarks() == (
        "erm++: average ma(start=599) is suggested for 5000 steps; scaled to ma(start=6) for 50 steps",
    )
    assert other.remarks() == ("erm++: predicts with ema(0.9) instead of its default average ma(start=6)",)
    assert none.remarks()[0].startswith("erm++: predicts with the last weights instead of")
    assert (none.config.average, own.config.average) == (None, averaging("ma(start=20)"))
    assert resolve(spec.but(algorithm="erm", average="none")).spec.average is None


def test_restarts_at_every_step_of_a_short_run_are_reported():
    spec = RunSpec(data=colored_digits(), steps=14, learning_rate="cosine-restarts(1e-3, period=10%)")
    assert resolve(spec).remarks()[0] == (
        "learning_rate: cosine-restarts(0.001, period=1) restarts at every step of this run of 14 steps, so its "
        "value never decays; train longer, or give a longer period"
    )
    assert resolve(spec.but(steps=15)).remarks() == ()


def test_reset_of_the_optimizer_beyond_the_run_is_reported():
    spec = RunSpec(data=colored_digits(), steps=50, optimizer="adam(reset=50)")
    assert resolve(spec).remarks()[0].startswith("optimizer reset: 50 takes effect only after")
    assert resolve(spec.but(optimizer="adam(reset=49)")).remarks() == ()


def test_every_trial_of_a_study_has_a_scaled_schedule():
    study = Study("colored-digits", ("irm",), n_trials=4, settings={"steps": 50})
    source = colored_digits()
    trials = study.trials_of("irm", source)
    switches = [coefficient("irm", 50, source, **trial.hyperparameters) for trial in trials]
    assert len(switches) == 4
    assert all(text.endswith("at=20)") for text in switches)
    assert [remark.split(";")[0] for remark in study.remarks()] == [
        "irm: irm coefficient: step(1, 100000, at=60) is suggested for 150 steps"
    ]
    own = Recipe("own", "", Composition(penalties=(IRM("step(1, 9, at=60)"),)))
    trials = replace(study, algorithms=(own,)).trials_of("own", source)
    assert all(text.endswith("at=20)") for text in [t.hyperparameters["coefficient"] for t in trials[1:]])


def test_estimators_scale_the_default_schedule_of_an_algorithm():
    x = np.random.default_rng(0).normal(size=(40, 2))
    options = {"model": "linear", "steps": 20, "random_state": 0}
    for algorithm, inferred in (("irm", False), ("irm", True), ("irm(coefficient=step(1, 5, at=7))", True)):
        estimator = InvariantClassifier(algorithm, infer_environments=inferred, **options)
        if inferred and algorithm == "irm":
            estimator.set_params(hyperparameters={"reference_steps": 3})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            estimator.fit(x, x[:, 0] > 0, environments=None if inferred else np.arange(40) % 2)
        assert [w for w in caught if w.category is EnvariantWarning] == []
        scaled = (
            "irm coefficient: step(1, 10000, at=100) is suggested for 500 steps; scaled to "
            "step(1, 10000, at=4) for 20 steps"
        )
        assert estimator.result_.record.remarks == ((scaled,) if algorithm == "irm" else ())


def test_estimators_report_a_schedule_beyond_the_end():
    x = np.random.default_rng(0).normal(size=(40, 2))
    estimator = InvariantClassifier("irm(coefficient=step(1, 5, at=20))", model="linear", steps=20)
    with pytest.warns(EnvariantWarning, match="changes only after this run of 20 steps"):
        estimator.fit(x, x[:, 0] > 0, environments=np.arange(40) % 2)


def test_command_states_the_scaled_schedule_on_standard_error(here, tmp_path):
    options = ("-d", "colored-digits", "-a", "irm", "--model", "linear", "--out", tmp_path)
    done = here("train", *options, "--steps", 10)
    lines = [line for line in done.stderr.splitlines() if "is suggested for" in line]
    assert lines == [
        "envariant: irm coefficient: step(1, 100000, at=60) is suggested for 150 steps; scaled to "
        "step(1, 100000, at=4) for 10 steps"
    ]
    result = envariant.TrainingResult.load(tmp_path)
    assert result.record.remarks == (lines[0].removeprefix("envariant: "),)
    assert result.record.spec.hyperparameters["coefficient"] == "step(1, 100000, at=4)"
    assert result.record.changed == ("model", "steps")
    # As the coefficient acts, the penalty is not that of ERM.
    values = [row.value for row in result.rows if row.metric == "irm coefficient"]
    assert values[0] == 1
    assert values[-1] == 100_000
