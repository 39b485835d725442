"""Studies as objectives of Optuna: the same search space, scores and runs as the study."""

import pytest

import envariant
from envariant import EnvariantError, Study
from envariant.core.search_space import Choice, LogUniform, Nested, Uniform, UniformInteger, search_range
from envariant.integrations.optuna import StudyObjective, suggest

SETTINGS = {"steps": 4, "evaluate_every": 2, "model": "linear"}


@pytest.fixture(scope="module")
def library():
    optuna = pytest.importorskip("optuna", reason="the extra `optuna` is not installed")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def study(algorithm="vrex + and-mask", **options):
    return Study("colored-digits", algorithm, replicas=2, settings=SETTINGS, **options)


def search(library, objective, trials, seed=0):
    found = library.create_study(direction="maximize", sampler=library.samplers.TPESampler(seed=seed))
    found.optimize(objective, n_trials=trials)
    return found


def test_trials_have_the_search_space_of_the_study_and_its_scores(library):
    ranges = {
        "vrex + and-mask": {
            "coefficient": "loguniform(10, 1e3)", "learning_rate": "cosine(loguniform(1e-3, 1e-2))",
            "batch_size": [16, 32],
        }
    }  # fmt: skip
    objective = StudyObjective(study(ranges=ranges))
    found = search(library, objective, 2)
    distributions = found.trials[0].distributions
    names = {"coefficient", "learning_rate [0]", "batch_size", "threshold", "inverse_sparsity", "mean"}
    assert set(distributions) == names
    assert distributions["coefficient"] == library.distributions.FloatDistribution(10, 1e3, log=True)
    assert distributions["batch_size"] == library.distributions.CategoricalDistribution((16, 32))

    options = objective.options(found.best_trial)
    assert options["learning_rate"].startswith("cosine(")
    assert options["batch_size"] == found.best_params["batch_size"]
    result = envariant.train(
        "colored-digits", "vrex + and-mask", replicas=2, holdout_fraction=0.2, progress=False, **SETTINGS,
        **options,
    )  # fmt: skip
    rows = result.history.query("role == 'validation' and metric == 'accuracy'")
    best = [rows[rows.replica == r].groupby("step")["value"].mean().max() for r in (0, 1)]
    assert found.best_value == pytest.approx(sum(best) / 2, abs=1e-9)


def test_an_interrupted_search_resumes_with_the_same_trials(library):
    objective, storage = StudyObjective(study("erm")), library.storages.InMemoryStorage()
    sampler = library.samplers.RandomSampler(seed=1)
    whole = library.create_study(direction="maximize", sampler=library.samplers.RandomSampler(seed=1))
    whole.optimize(objective, n_trials=3)
    library.create_study(direction="maximize", sampler=sampler, storage=storage, study_name="a").optimize(
        objective, n_trials=1
    )
    again = library.load_study(study_name="a", storage=storage, sampler=sampler)
    again.optimize(objective, n_trials=2)
    assert [t.params for t in again.trials] == [t.params for t in whole.trials]
    assert [t.value for t in again.trials] == [t.value for t in whole.trials]


def test_every_kind_of_range_becomes_a_distribution(library):
    values = {"a": 0.25, "b": 20.0, "c": 3, "d": "x", "e [0]": 0.1, "e [1]": 0.01}
    trial = library.trial.FixedTrial(values)
    assert suggest(trial, "a", Uniform(0, 1)) == 0.25
    assert suggest(trial, "b", LogUniform(1, 100)) == 20
    assert suggest(trial, "c", UniformInteger(1, 3)) == 3
    assert suggest(trial, "d", Choice(("x", "y"))) == "x"
    nested = search_range("cosine(loguniform(1e-3, 1e-1), warmup=uniform(0, 0.2))")
    assert isinstance(nested, Nested)
    assert suggest(trial, "e", nested) == "cosine(0.01, warmup=0.1)"


def test_lower_scores_are_better_for_errors(library):
    regression = Study("linear-unit-tests(example1)", "erm", replicas=1, settings={"steps": 5})
    assert search(library, StudyObjective(regression), 1).best_value < 0


def test_a_metric_that_training_does_not_measure_is_rejected(library):
    message = r"^StudyObjective: log loss is not measured during training; leave the metric of the study out$"
    with pytest.raises(EnvariantError, match=message):
        search(library, StudyObjective(study("erm", metric="log loss")), 1)


def test_diverged_trials_are_pruned(library):
    objective = StudyObjective(study("erm", ranges={"erm": {"learning_rate": [1e38]}}))
    found = library.create_study(direction="maximize")
    found.optimize(objective, n_trials=1)
    assert found.trials[0].state == library.trial.TrialState.PRUNED


def test_studies_with_several_algorithms_are_rejected(library):
    message = r"^StudyObjective: needs a study with one entry in algorithms; got erm, irm$"
    with pytest.raises(EnvariantError, match=message):
        StudyObjective(study(("erm", "irm")))


def test_a_missing_library_is_named_with_the_command_that_installs_it(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(EnvariantError, match=r'^optuna is not installed; pip install "envariant\[optuna\]"$'):
        StudyObjective(study())
