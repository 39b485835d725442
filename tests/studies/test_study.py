"""What a study plans: the same draws for all replicas, and nothing that was planned before changes."""

from dataclasses import replace

import pytest

from envariant.core.errors import EnvariantError
from envariant.core.schedules import schedule
from envariant.data import source
from envariant.studies import Study
from envariant.studies.study import of, read

SMALL = Study(("colored-digits",), ("erm", "irm"), n_trials=4, replicas=3)


def by_place(study):
    return {(r.algorithm, r.test_environments, r.trial.number, r.replica): r.trial for r in study.runs()}


def test_the_plan_is_the_product_of_all_that_is_declared():
    runs = SMALL.runs()
    assert len(runs) == 2 * 4 * 3
    assert len({run.key for run in runs}) == len(runs)
    assert {run.test_environments for run in runs} == {("flip-0.9",)}
    assert {run.test_environments for run in replace(SMALL, test_environments="each").runs()} == {
        ("flip-0.2",),
        ("flip-0.1",),
        ("flip-0.9",),
    }
    pairs = {run.test_environments for run in replace(SMALL, test_environments="each-and-pairs").runs()}
    assert {len(names) for names in pairs} == {1, 2}
    assert len(pairs) == 6


def test_more_algorithms_draws_and_replicas_leave_what_was_planned_as_it_was():
    before = by_place(SMALL)
    after = by_place(
        Study(("colored-digits",), ("vrex", "irm", "erm"), n_trials=9, replicas=5, test_environments="each")
    )
    assert before.items() <= after.items()
    assert by_place(replace(SMALL, seed=1)) != before


def test_a_draw_is_the_same_for_every_replica_and_draw_0_is_what_the_data_suggest():
    n_trials = {}
    for run in SMALL.runs():
        assert n_trials.setdefault((run.algorithm, run.trial.number), run.trial) == run.trial
    usual = n_trials["irm", 0]
    assert usual.hyperparameters == {}
    assert usual.learning_rate == colored_digits().default_settings("irm").learning_rate
    assert len({d.learning_rate for (name, _), d in n_trials.items() if name == "irm"}) == 4


def test_of_a_schedule_the_last_value_is_drawn_within_its_range():
    mnist = source("colored-mnist")
    for trial in replace(SMALL, n_trials=40).trials_of("irm", mnist)[1:]:
        course = schedule(trial.hyperparameters["coefficient"])
        assert course(0) == 1.0, "as the protocol has it until its step 190"
        assert 1e2 <= course(10**6) <= 1e6
    rates = [d.learning_rate for d in replace(SMALL, n_trials=40).trials_of("erm", mnist)]
    usual = mnist.default_settings("erm").learning_rate
    assert usual / 10**0.5 <= min(rates) < usual < max(rates) <= usual * 10**0.5


def test_what_is_set_in_brackets_is_not_drawn():
    for trial in SMALL.trials_of("irm(coefficient=7) + and-mask", colored_digits())[1:]:
        assert "coefficient" not in trial.hyperparameters
        assert 0.5 <= trial.hyperparameters["threshold"] <= 1


def test_a_study_may_look_elsewhere_than_an_algorithm_declares():
    own = {"irm": {"coefficient": "loguniform(10, 100)", "l2": [0.5], "learning_rate": [0.25, 0.125]}}
    study, mnist = replace(SMALL, n_trials=30, ranges=own), source("colored-mnist")
    n_trials = study.trials_of("irm", mnist)
    assert n_trials[0] == replace(SMALL, n_trials=30).trials_of("irm", mnist)[0], "what the data suggest"
    coefficients = [schedule(trial.hyperparameters["coefficient"])(10**6) for trial in n_trials[1:]]
    assert 10 <= min(coefficients) < 30 < max(coefficients) <= 100
    assert {trial.hyperparameters["l2"] for trial in n_trials[1:]} == {0.5}
    assert {trial.learning_rate for trial in n_trials[1:]} == {0.25, 0.125}
    assert study.trials_of("erm", mnist) == replace(SMALL, n_trials=30).trials_of("erm", mnist)
    assert of(study.to_dict(), "again") == study


def test_a_range_that_cannot_be_trained_with_is_refused_when_planned():
    for own, message in (
        ({"coefficient": ["a"]}, "study: ranges of irm: step: after must be a number; got 'a'"),
        ({"form": ["thirds"]}, "study: ranges of irm: irm: form must be squared or halves or dummies"),
        (
            {"learning_rate": "uniform(-2, -1)"},
            "study: ranges of irm: learning_rate must be a positive number",
        ),
        ({"learning_rate": [True]}, "ranges of irm: learning_rate must be a positive number; got True"),
    ):
        with pytest.raises(EnvariantError) as error:
            replace(SMALL, ranges={"irm": own}).runs()
        assert message in str(error.value)


def test_with_nothing_to_draw_there_is_one_draw():
    assert len(replace(SMALL, lr_range=1.0).trials_of("erm", colored_digits())) == 1
    assert len(replace(SMALL, lr_range=1.0).trials_of("irm", colored_digits())) == 4


def test_a_file_is_read_as_it_is_written(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(
        'name = "mine"\ndata = ["colored-digits"]\nalgorithms = ["erm", "vrex + and-mask"]\nn_trials = 2\n'
        'test_environments = [["flip-0.9"], ["flip-0.1", "flip-0.9"]]\n[settings]\nsteps = 9\n'
    )
    found = read(path)
    assert found == Study(
        ("colored-digits",),
        ("erm", "vrex + and-mask"),
        name="mine",
        n_trials=2,
        test_environments=(("flip-0.9",), ("flip-0.1", "flip-0.9")),
        settings={"steps": 9},
    )
    assert of(found.to_dict(), "again") == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n_trails = 2", "unknown key 'n_trails'; did you mean 'n_trials'?"),
        ("n_trials = 0", "study: n_trials must be at least 1; got 0"),
        ('n_trials = "many"', "n_trials: input should be a valid integer"),
        ('algorithms = ["imr"]', "unknown algorithm 'imr'; did you mean 'irm'?"),
        ("algorithms = []", "study: algorithms names nothing"),
        ("holdout_fraction = 1.5", "study: holdout_fraction must lie above 0 and below 1; got 1.5"),
        ("[settings]\nstesp = 3", "unknown setting 'stesp'; did you mean 'steps'?"),
        ('test_environments = "every"', "test_environments"),
        ("n_trials = = 2", "is no TOML"),
        ("[ranges.erm]\nl2 = [2024-01-01]", "values of a range are numbers, words, true or false"),
        ('[ranges.erm]\nl2 = "integer(1, 99999999999999999999)"', "low and high must lie within 2⁶²"),
        ("[ranges.imr]", "study: ranges: unknown algorithm 'imr'"),
        ("[ranges.erm]\nl3 = [1]", "ranges of erm: unknown hyperparameter 'l3'"),
        (
            "[ranges.erm]\nl2 = 1",
            "ranges of erm: l2: a range is a list of values or one of uniform(low, high)",
        ),
        ('[ranges.erm]\nl2 = "uniform(2, 1)"', "ranges of erm: l2: Uniform: low must lie below high"),
        ('algorithms = ["irm(l2=1)"]\n[ranges."irm(l2=1)"]\nl2 = [2]', "l2 is set in its brackets; drop one"),
    ],
)
def test_a_wrong_file_is_one_clear_line(tmp_path, text, message):
    path = tmp_path / "study.toml"
    usual = 'data = ["colored-digits"]\n' + ("" if "algorithms" in text else 'algorithms = ["erm"]\n')
    path.write_text(usual + text + "\n")
    with pytest.raises(EnvariantError) as error:
        read(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(EnvariantError, match="cannot be read"):
        read(tmp_path / "nowhere.toml")
