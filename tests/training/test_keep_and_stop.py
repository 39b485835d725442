"""Kept steps, early stopping, and more steps for a stored run."""

import pytest
import torch

import envariant
from envariant import TrainingResult
from envariant.core.errors import EnvariantError, EnvariantWarning
from envariant.core.tasks import Binary
from envariant.training.early_stopping import Patience
from envariant.training.history import HistoryRow
from envariant.training.keep_rules import KeepBest, KeepEvery, KeepLast, keep_rule
from envariant.training.raised_steps import check_raised_steps
from envariant.training.resolution import source_of
from envariant.training.run_spec import RunSpec
from envariant.training.validation_watch import ValidationWatch

QUICK = {
    "data": "colored-digits", "model": "mlp(hidden=4)", "batch_size": 8, "steps": 9, "evaluate_every": 3,
    "holdout_fraction": 0.3, "learning_rate": 0.03, "progress": False,
}  # fmt: skip


def equal(ours: TrainingResult, theirs: TrainingResult) -> bool:
    assert ours.rows == theirs.rows
    return all(
        torch.equal(value, theirs.checkpoints[k].params[name])
        for k, state in ours.checkpoints.items()
        for name, value in state.params.items()
    )


def validation(step, *values, metric="loss"):
    return [HistoryRow(0, step, f"e{i}", "validation", metric, v) for i, v in enumerate(values)]


def test_watch_keeps_the_first_best_and_counts_evaluations():
    watch = ValidationWatch(KeepBest("accuracy"), Patience(2), Binary(), replicas=2)
    stops = []
    for step, (loss, accuracy) in enumerate([(0.5, 0.6), (0.4, 0.8), (0.45, 0.8), (0.4, 0.7)]):
        weights = {"w": torch.full((2, 3), float(step))}
        rows = [*validation(step, loss), *validation(step, accuracy, accuracy, metric="accuracy")]
        rows += [HistoryRow(0, step, "t", "test", "accuracy", 1.0 + step)]
        stops.append(watch.observe(1, step, rows, lambda weights=weights: (weights, {})))
    assert stops[:3] == [None, None, None]
    assert stops[3] == "no better validation loss in 2 evaluations since step 1"
    assert watch.state["kept"][1].tolist() == [0.8, 1]
    assert watch.state["params"]["w"][1].tolist() == [1, 1, 1]


def test_none_is_the_default():
    """In the range of a study, "none" was accepted, and its runs failed."""
    assert RunSpec(data="x", keep=None).keep == "last"


def test_text_of_a_rule_is_read_back():
    rules = [KeepLast(), KeepBest(), KeepBest("loss"), KeepBest("squared error"), KeepEvery(5)]
    assert [keep_rule(str(rule)) for rule in rules] == rules
    assert keep_rule("best('validation accuracy')") == keep_rule("best(accuracy)") == KeepBest("accuracy")


def test_weights_of_the_best_and_of_every_third_step_can_be_loaded(tmp_path):
    best = envariant.train(keep="best(validation accuracy)", out=tmp_path / "best", **QUICK)
    every = envariant.train(keep="every(3)", out=tmp_path / "every", **QUICK)
    scores = {}
    for row in every.rows:
        if (row.role, row.metric) == ("validation", "accuracy"):
            scores[row.step] = scores.get(row.step, 0) + row.value
    step = max(scores, key=lambda step: (scores[step], -step))
    assert best.checkpoints[0].step == step
    assert best.finished == (0,)
    assert step < 9, "another step than the last"
    chosen = every.at_step(step)
    for name, value in chosen.model().state_dict().items():
        assert torch.equal(value, best.model().state_dict()[name])
    assert chosen.final("flip-0.9", "loss") == best.final("flip-0.9", "loss")
    loaded = TrainingResult.load(tmp_path / "every")
    assert list(loaded.kept) == [0, 3, 6, 9]
    assert equal(loaded.at_step(3), every.at_step(3))
    assert equal(TrainingResult.load(tmp_path / "best"), best)
    with pytest.raises(
        EnvariantError, match=r"step 4: its weights were not kept; weights are available for steps 0, 3, 6, 9"
    ):
        every.at_step(4)


def test_replicas_of_a_stack_stop_individually(tmp_path):
    options = {**QUICK, "steps": 24, "replicas": 3, "learning_rate": 0.1, "stop_early": "patience(1)"}
    apart = envariant.train(execution="sequential", **options)
    together = envariant.train(execution="stacked", out=tmp_path, **options)
    assert len({state.step for state in apart.checkpoints.values()}) > 1
    assert together.stopped == apart.stopped
    assert together.finished == (0, 1, 2)
    step = together.checkpoints[0].step
    assert together.stopped[0].startswith(f"stopped at step {step}: no better validation loss in 1 eval")
    assert max(row.step for row in together.rows if row.replica == 0) == step
    assert TrainingResult.load(tmp_path).to_dict()["stopped"] == together.to_dict()["stopped"]


@pytest.mark.filterwarnings("ignore:stop_early. patience")
def test_more_steps_resume_a_stored_run_bit_identically(tmp_path):
    options = {**QUICK, "average": "swad", "keep": "best", "stop_early": "patience(3)"}
    envariant.train(out=tmp_path, **options)
    longer = envariant.train(out=tmp_path, **{**options, "steps": 18, "evaluate_every": None})
    assert equal(longer, envariant.train(**{**options, "steps": 18}))
    assert longer.record.spec.steps == 18
    assert equal(TrainingResult.load(tmp_path), longer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "irm"}, r"irm coefficient depends on the number of steps \(step\(1, 100000, at="),
        ({"learning_rate": "step(1e-2, 1e-3, at=40%)"}, "learning_rate depends on the number of steps"),
        ({"average": "swa(start=50%)"}, r"average depends .* \(swa\(start=5, every=0\) becomes swa\(start=9"),
    ],
)
def test_more_steps_are_rejected_where_a_schedule_depends_on_them(changes, message):
    options = {key: value for key, value in QUICK.items() if key != "progress"}
    source = source_of("colored-digits")
    check_raised_steps(RunSpec(**options), source, 9, 18)
    with pytest.raises(EnvariantError, match=message) as error:
        check_raised_steps(RunSpec(**{**options, **changes}), source, 9, 18)
    assert "choose another folder to start over" in str(error.value)


def test_a_stored_run_with_other_settings_gets_no_more_steps(tmp_path):
    envariant.train(out=tmp_path, **QUICK)
    with pytest.raises(EnvariantError, match=r"other settings \(seed 0, not 1\)"):
        envariant.train(out=tmp_path, **{**QUICK, "steps": 18, "seed": 1})
    with pytest.raises(EnvariantError, match="a run of 9 steps cannot be continued to 18, because average"):
        envariant.train(out=tmp_path, **{**QUICK, "steps": 18, "average": "ma(start=50%)"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"average": "ma"}, "average: ma begins only after this run of 3 steps has ended"),
        ({"average": "swa(start=4)"}, r"average: swa\(start=4, .* begins only after"),
        (
            {"stop_early": "patience(3)"},
            r"stop_early: patience\(3\) cannot shorten this run, .* 3 times after",
        ),
    ],
)
def test_rules_without_effect_are_remarks(options, message):
    with pytest.warns(EnvariantWarning, match=message):
        envariant.train(**{**QUICK, "steps": 3, "evaluate_every": 1, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"average": "ema(1)"}, r"ema: decay must be in \[0, 1\), got 1"),
        ({"average": "emma(0.9)"}, "unknown average 'emma'; did you mean 'ema'"),
        ({"average": "swad"}, "average: swad needs validation rows .* set holdout_fraction"),
        ({"average": "swad(n_converge=0)"}, "swad: n_converge must be at least 1, got 0"),
        ({"average": 0.9}, "average must be a string such as ema"),
        ({"keep": "best"}, "keep: best needs validation rows"),
        ({"keep": "best(test accuracy)"}, "keep: the best step is chosen on validation rows"),
        ({"keep": "best(auroc)", "holdout_fraction": 0.2}, "keep: the metric must be accuracy or loss"),
        ({"keep": "every(0)"}, "every: steps must be at least 1, got 0"),
        ({"stop_early": "patience(5)"}, r"stop_early: patience\(5\) needs validation rows"),
        ({"stop_early": "patience"}, "patience: needs evaluations"),
        ({"shared_init": 1}, "shared_init must be true or false; got 1"),
        ({"algorithm": "linear", "average": "ema"}, "do not apply; remove them: average"),
        (
            {"average": "swa(start=0.5)"},
            "swa: start must be a step number, or a share .* such as 40%; got 0.5",
        ),
        ({"average": "ma(start=-1)"}, "ma: start must be at least 0, got -1"),
    ],
)
def test_wrong_values_are_one_sentence(options, message):
    with pytest.raises(EnvariantError, match=message):
        envariant.train(**{"data": "colored-digits", "steps": 3, "model": "linear", **options})
