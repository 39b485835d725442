"""Training options in a random search: schedules, parameter groups, clipping and weights."""

from types import SimpleNamespace

import numpy as np
import pytest

from envariant.core.errors import EnvariantError
from envariant.core.search_space import search_range
from envariant.reporting import study_page
from envariant.studies import Store, Study
from envariant.training.run_spec import RunSpec

QUICK = {"data": "colored-digits", "algorithms": ["erm"], "replicas": 1, "n_trials": 3}


def trials(**declared):
    study = Study(**{**QUICK, **declared})
    return study.trials_of("erm", study.sources["colored-digits"])


def test_ranges_inside_a_text_are_sampled_and_checked_at_once():
    nested = search_range("groups(head=cosine(loguniform(0.1, 1), warmup=5%), others=0.5)")
    text = nested.sample(np.random.default_rng(0))
    assert text.startswith("groups(head=cosine(0.")
    assert text.endswith(", warmup=5%), others=0.5)")
    for wrong, message in (
        ("cosine(loguniform(2, 1))", "low must lie below high"),
        ("cosine(1)", "unknown range 'cosine'"),
    ):
        with pytest.raises(EnvariantError, match=message):
            search_range(wrong)


def test_a_given_learning_rate_is_that_of_the_first_trial_and_scaled_in_the_others():
    first, second, _ = trials(
        settings={"learning_rate": "groups(head=linear(0.1, 0), others=0.01)"}, lr_range=2
    )
    assert first.learning_rate == "groups(head=linear(start=0.1, end=0, until=100%, after=0), others=0.01)"
    scaled = RunSpec(data="x", learning_rate=second.learning_rate).learning_rate
    factor = scaled.others / 0.01
    assert 0.5 <= factor <= 2
    assert dict(scaled.values)["head"].start == pytest.approx(0.1 * factor)
    assert len(trials(settings={"learning_rate": "cosine(0.1)"}, lr_range=1)) == 1
    numbers = trials(settings={"learning_rate": 0.5}, lr_range=2)
    assert numbers[0].learning_rate == 0.5
    assert all(0.25 <= trial.learning_rate <= 1 for trial in numbers)


def test_options_with_a_range_are_trained_in_jobs_of_their_own(tmp_path, monkeypatch):
    ranges = {"erm": {"clip": ["norm(0.1)", "value(0.2)"], "weight_decay": "loguniform(1e-4, 1e-2)"}}
    study = Study(
        **QUICK, ranges=ranges, settings={"steps": 3, "model": "linear", "learning_rate": "cosine(0.1)"}
    )
    study.run(tmp_path, progress=False)
    monkeypatch.setattr(study_page, "runs_of", lambda selected: [SimpleNamespace(run=selected[0])])
    with Store(tmp_path) as store:
        listing = store.listing()
        command = study_page.rerun(study.to_dict(), store, [int(listing["id"][1])])
    assert list(listing["state"]) == ["done"] * 3
    assert " --clip " in command
    assert "--learning-rate 'cosine(0." in command
    specs = [study.spec_of(run) for run in study.runs()]
    assert specs[0].clip is None
    assert specs[0].weight_decay == 0
    assert {str(spec.clip) for spec in specs[1:]} <= {"norm(0.1)", "value(0.2)"}
    assert all(1e-4 <= spec.weight_decay <= 1e-2 for spec in specs[1:])
    assert all(not spec.hyperparameters for spec in specs)


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"clpi": [1, 2]}, "study: ranges of erm: unknown hyperparameter 'clpi'; did you mean 'clip'?"),
        ({"steps": [1, 2]}, "study: ranges of erm: unknown hyperparameter 'steps'"),
        ({"clip": [-1.0]}, "study: ranges of erm: clip: clip must be a number"),
    ],
)
def test_invalid_range_is_one_sentence(ranges, message):
    with pytest.raises(EnvariantError) as refusal:
        trials(ranges={"erm": ranges})
    assert str(refusal.value).startswith(message)


def test_mappings_in_settings_are_stored_as_text():
    study = Study(
        **QUICK, settings={"weight_decay": {"head": 0.1}, "class_weights": {"0": 2}, "batch_size": 8}
    )
    assert study.settings["weight_decay"] == "groups(head=0.1)"
    assert study.to_dict()["settings"]["class_weights"] == "weights(('0', 2))"
    assert study.objects == ()
