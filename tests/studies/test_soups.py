"""Means of weights of networks from one initialization: greedy and uniform soups."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import envariant
from envariant.core.errors import EnvariantError
from envariant.data import colored_digits
from envariant.training.soup import greedy, mean_of
from envariant.training.store import Store
from envariant.training.store.records import record_of_run

QUICK = {"model": "mlp(hidden=4)", "batch_size": 8, "steps": 6, "learning_rate": 0.03}
SHARED = {**QUICK, "replicas": 3, "shared_init": True, "holdout_fraction": 0.3, "progress": False}


def test_scalar_models_of_the_spec():
    order = [{"w": torch.tensor([w], dtype=torch.float64)} for w in (0.8, 1.3, 0.6, 1.9)]
    tried = []

    def score(weights):
        tried.append(weights["w"].item())
        return -((tried[-1] - 1) ** 2)

    selected = greedy(order, score)
    assert tried == pytest.approx([0.8, 1.05, 0.9, 4 / 3])
    assert mean_of([order[k] for k in selected])["w"].item() == pytest.approx(1.05, abs=1e-6)
    assert mean_of(order)["w"].item() == pytest.approx(1.15, abs=1e-6)


def test_soup_of_a_run_is_the_mean_of_its_replicas(tmp_path, here):
    result = envariant.train("colored-digits", "erm", out=tmp_path, keep="every(6)", **SHARED)
    first = result.kept[0]
    for name, value in first[0].params.items():
        assert all(torch.equal(first[k].params[name], value) for k in (1, 2)), "one initialization"
    soup = envariant.soup(result)
    networks = [result.model(k) for k in range(3)]
    for name, value in soup.model().named_parameters():
        mean = torch.stack([network.get_parameter(name) for network in networks]).mean(dim=0)
        torch.testing.assert_close(value, mean, rtol=1e-5, atol=1e-7)
    inputs, targets = result.sample["flip-0.9"].rows()
    hits = [((network(inputs)[:, 0] > 0) == targets).double().mean() for network in (soup.model(), *networks)]
    score, members = soup.scores["flip-0.9"]
    assert [score, *sorted(members)] == pytest.approx([hits[0].item(), *sorted(map(float, hits[1:]))])
    assert soup.result.final("flip-0.9", "accuracy").mean == score
    shown = json.loads(here("soup", tmp_path, "--rule", "greedy", "--json").stdout)
    assert shown == json.loads(json.dumps(envariant.soup(result, "greedy").to_dict()))


def test_soup_of_a_study_averages_all_trials_of_an_algorithm(tmp_path):
    study = envariant.Study(
        "colored-digits", ("erm", "vrex"), n_trials=2, replicas=1,
        settings={**{k: v for k, v in QUICK.items() if k != "learning_rate"}, "shared_init": True, "keep": "best",
                  "evaluate_every": 6},
    )  # fmt: skip
    results = study.run(tmp_path, progress=False)
    soup = envariant.soup(results, "greedy", algorithm="vrex")
    assert sorted(soup.members) == ["trial 0 replica 0", "trial 1 replica 0"]
    assert set(soup.selected) <= set(soup.members)
    with pytest.raises(EnvariantError, match="the study has several algorithms; choose one of erm, vrex"):
        envariant.soup(results)


def test_batch_norm_statistics_of_a_soup_are_those_of_the_training_rows():
    def build():
        return nn.Sequential(nn.Flatten(), nn.Linear(128, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))

    soup = envariant.soup(envariant.train("colored-digits", "erm", **{**SHARED, "model": build}))
    inputs = torch.cat([soup.result.sample[name].inputs for name in ("flip-0.2", "flip-0.1")])
    hidden = soup.model()[:2](inputs)
    torch.testing.assert_close(soup.model()[2].running_mean, hidden.mean(dim=0), rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("options", "rule", "message"),
    [
        ({"replicas": 2}, "uniform", "train them with shared_init=True"),
        ({"shared_init": True}, "uniform", "needs at least two finished runs; got 1"),
        ({"replicas": 2, "shared_init": True}, "greedy", "the greedy rule needs validation rows"),
        ({"replicas": 2, "shared_init": True}, "gredy", "did you mean 'greedy'"),
    ],
)
def test_runs_that_cannot_be_averaged_are_one_sentence(options, rule, message):
    result = envariant.train("colored-digits", "erm", progress=False, **QUICK, **options)
    with pytest.raises(EnvariantError, match=message):
        envariant.soup(result, rule)


def test_soup_of_a_run_with_another_loss(tmp_path):
    """Its data seemed to be others, because the loss is part of the task; loaded runs had the default loss."""
    result = envariant.train("colored-digits", "erm", loss="focal", out=tmp_path, **SHARED)
    ours = envariant.soup(result)
    theirs = envariant.soup(envariant.TrainingResult.load(tmp_path))
    assert ours.result.rows == theirs.result.rows
    losses = [row.value for row in ours.result.rows if row.metric == "loss"]
    assert max(losses) < 0.4  # The cross-entropy is about 0.69, the focal loss a quarter of it.


def test_replicas_without_any_difference_are_a_remark():
    with pytest.warns(envariant.core.errors.EnvariantWarning, match="replicas with full batches have equal"):
        envariant.train(
            "colored-digits", "erm", replicas=2, shared_init=True, steps=2, batch_size="full", model="linear"
        )


def test_predictions_of_a_study_are_those_of_the_kept_step(tmp_path):
    settings = {
        **{k: v for k, v in QUICK.items() if k != "learning_rate"},
        "evaluate_every": 2,
        "keep": "best(loss)",
    }
    study = envariant.Study(
        "colored-digits", "erm", replicas=2, settings={**settings, "stop_early": "patience(1)"},
        ranges={"erm": {"learning_rate": [0.3]}}, n_trials=2, metric="AUROC", store_predictions=True,
    )  # fmt: skip
    results = study.run(tmp_path, progress=False)
    with Store(tmp_path) as store:
        for run in results.runs["run"].unique():
            measured = store.history([run])
            loss = measured[(measured["role"] == "validation") & (measured["metric"] == "loss")]
            best = loss.groupby("step")["value"].mean().idxmin()
            assert set(measured[measured["kind"] == "subsample"]["step"]) == {best}
            last = measured[measured["metric"] == "accuracy"]["step"].max()
            assert set(
                measured[(measured["metric"] == "AUROC") & (measured["kind"] == "full")]["step"]
            ) == set(loss["step"])
            assert last == loss["step"].max()
            stored = store.predictions(int(run))["flip-0.9", "test"]
            hits = ((stored.logits > 0) == stored.targets).mean()
            at_best = measured[(measured["step"] == best) & (measured["role"] == "test")]
            assert hits == pytest.approx(at_best[at_best["metric"] == "accuracy"]["value"].item(), abs=1e-6)


def test_training_options_are_searched_and_train_apart(tmp_path):
    ranges = {"erm": {"average": ["none", "ema(0.5)", "ma(start=2)"]}}
    study = envariant.Study(
        "colored-digits", "erm", n_trials=4, replicas=1, ranges=ranges,
        settings={"model": "linear", "batch_size": 8, "steps": 2, "evaluate_every": 2},
    )  # fmt: skip
    study.run(tmp_path, progress=False)
    with Store(tmp_path) as store:
        trials = {run: store.members(job)[0].run.trial for run, job in store.jobs_of(range(9)).items()}
        used = {run: record_of_run(store, run).spec.average for run in trials}
        assert used == {run: trial.hyperparameters.get("average") for run, trial in trials.items()}
        assert len(set(used.values())) > 1
        assert store.counts()["done"] == 4
    plus = replace(study, algorithms=("erm++",), ranges={"erm++": {"average": ["none"]}})
    assert plus.trials_of("erm++", colored_digits())[1].hyperparameters["average"] == "none"
    with pytest.raises(EnvariantError, match=r"study: ranges of erm: average: unknown average 'emma'"):
        envariant.Study("colored-digits", "erm", ranges={"erm": {"average": ["emma"]}})
