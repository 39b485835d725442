"""What is measured beside training: another metric, what columns are worth, boosted trees, and answers kept."""

import numpy as np
import pandas as pd
import pytest
import torch
from envariant.studies.baselines import boosted_trees
from sklearn.ensemble import HistGradientBoostingClassifier

from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Multiclass, Regression
from envariant.data.tables import table as tables
from envariant.data.tables.source import TableSource
from envariant.studies import Store, Study, sweep
from envariant.studies.permutation_importance import AS_IT_IS, ELSEWHERE, SHUFFLED
from envariant.studies.selection import Invariance, select

SITES = ("north", "south", "west")


def table(rows=300, seed=0):
    """'sign' tells the target and 'noise' does not; 'clock' tells it in two sites and lies in the third."""
    rng = np.random.default_rng(seed)
    parts = []
    for site, lies in zip(SITES, (False, False, True), strict=True):
        sick = rng.random(rows) < 0.5
        clock = sick ^ (rng.random(rows) < 0.05) ^ lies
        parts.append(
            pd.DataFrame(
                {
                    "sign": sick + 0.7 * rng.normal(size=rows),
                    "clock": np.where(clock, "late", "early"),
                    "noise": rng.normal(size=rows),
                    "sick": sick,
                    "site": site,
                }
            )
        )
    return tables.read(pd.concat(parts), "sick", "site")


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measures")
    table().write(folder / "table")
    study = Study(
        (f"table({str(folder / 'table')!r})",),
        ("erm", boosted_trees.NAME),
        n_trials=2,
        replicas=2,
        test_environments=(("west",), ("north",)),
        metric="AUROC",
        store_predictions=True,
        settings={"steps": 60, "evaluate_every": 60},
    )
    Store.begin(folder / "study", study).close()
    sweep(folder / "study", execution="stacked")
    with Store(folder / "study") as store:
        yield store


def test_runs_are_compared_in_the_metric_that_was_asked_for(swept):
    found = swept.table()
    assert set(found["metric"]) == {"AUROC"}
    assert set(found["state"]) == {"done"}
    last = found[found["step"] > 0]
    assert last["validation"].between(0, 1).all()
    # Of trees there is one draw: they have nothing to draw from.
    assert len(found[found["algorithm"] == boosted_trees.NAME]["run"].unique()) == 2 * 2


def test_a_column_is_worth_what_a_model_loses_without_it(swept):
    history = swept.history()
    erm = swept.listing().query("algorithm == 'erm' and test_environments == '[\"west\"]'")["id"]
    own = history[history["run"].isin(erm)].pivot_table(
        index=["run", "environment"], columns="metric", values="value"
    )
    inside = own.loc[(slice(None), ["north (held-out rows)", "south (held-out rows)"]), :]
    lost = inside.rsub(inside[AS_IT_IS], axis=0)
    assert (lost[SHUFFLED + "clock"] > 0.1).all()
    assert (lost[SHUFFLED + "noise"].abs() < 0.05).all()
    # At the site where it lies, a model is better off with the clock of another.
    west = own.loc[(slice(None), "west"), :]
    assert (west[ELSEWHERE + "clock"] > west[AS_IT_IS] + 0.1).all()
    assert (west[ELSEWHERE + "sign"] < west[AS_IT_IS]).all()


def test_answers_are_kept_of_the_same_rows_in_every_run(swept):
    runs = swept.listing().query("test_environments == '[\"west\"]'")["id"].tolist()
    kept = [swept.answers(run) for run in runs]
    assert all(set(a) == {"west", "north (held-out rows)", "south (held-out rows)"} for a in kept)
    drawn = TableSource(table()).sample(0)["west"]
    for each in kept:
        np.testing.assert_array_equal(each["west"].targets, drawn.targets.numpy())
        assert each["west"].of == len(drawn) == len(each["west"].logits)
    assert not np.array_equal(kept[0]["west"].logits, kept[-1]["west"].logits)


def test_trees_are_scikit_learns_on_the_same_rows(swept):
    source = TableSource(table()).with_test_environments(("west",))
    drawn = source.sample(0)
    roles = drawn.roles()
    grown = boosted_trees.fit(drawn, roles, 3)
    plain = HistGradientBoostingClassifier(random_state=3).fit(
        np.concatenate([drawn[name].inputs.numpy() for name in ("north", "south")]),
        np.concatenate([drawn[name].targets.numpy() for name in ("north", "south")]),
    )
    logits, targets = grown.answers("west")
    np.testing.assert_allclose(
        logits[0].numpy(), plain.decision_function(drawn["west"].inputs.numpy()).clip(-15, 15), rtol=1e-5
    )
    assert torch.equal(targets[0], drawn["west"].targets)


def test_trees_of_a_class_that_no_training_row_has_and_of_numbers():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(90, 2))).float()
    y = torch.tensor([0, 2] * 45)
    places = (Environment("a", x[:60], y[:60]), Environment("b", x[60:], torch.ones(30)))
    drawn = EnvironmentSet("two of three", places, Multiclass(3), test=("b",))
    grown = boosted_trees.fit(drawn, drawn.roles(), 0)
    logits, _ = grown.answers("b")
    assert logits.shape == (1, 30, 3)
    assert (logits[0, :, 1] < logits[0].max(dim=1).values).all()
    (mine,) = grown.answers("a", torch.arange(3))[0]
    odds = grown.fitted.decision_function(x[:3].numpy())
    np.testing.assert_allclose((mine[:, 2] - mine[:, 0]).numpy(), odds.clip(-15, 15), rtol=1e-5)
    numbers = EnvironmentSet(
        "numbers", (Environment("a", x[:60], x[:60, 0]), Environment("b", x[60:], x[60:, 0])),
        Regression(), test=("b",),
    )  # fmt: skip
    on_progress, truth = boosted_trees.fit(numbers, numbers.roles(), 0).answers("b")
    assert float((on_progress - truth).square().mean()) < 0.3


def test_invariance_selection_sees_trees_as_any_other(swept):
    found = select(swept.table(), Invariance(), pooled=True)
    assert {each.test_environments for each in found} == {("west",), ("north",)}


def test_a_study_keeps_its_metric_and_refuses_one_that_does_not_fit(tmp_path):
    with pytest.raises(EnvariantError, match="study: unknown metric 'auroc'"):
        Study(("colored-digits",), ("erm",), metric="auroc")
    study = Study(("colored-digits",), ("erm",), metric="RMSE", settings={"steps": 2})
    Store.begin(tmp_path, study).close()
    sweep(tmp_path)
    with Store(tmp_path) as store:
        assert store.counts()["failed"] == 3
        assert store.listing()["error"].str.startswith("metric 'RMSE' does not apply to binary").all()
    with pytest.raises(EnvariantError, match="holds runs made with metric 'RMSE', not 'AUROC'"):
        Store.begin(tmp_path, Study(("colored-digits",), ("erm",), metric="AUROC", settings={"steps": 2}))


def test_trees_of_one_class_say_that_class_and_a_class_of_one_row_is_refused_in_words():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(12_000, 2))).float()
    ones = EnvironmentSet(
        "one", (Environment("a", x[:50], torch.full((50,), 2)), Environment("b", x[50:90], torch.arange(40) % 3)),
        Multiclass(3), test=("b",),
    )  # fmt: skip
    logits, _ = boosted_trees.fit(ones, ones.roles(), 0).answers("b")
    assert (logits[0].argmax(dim=1) == 2).all()
    rare = torch.zeros(11_900).long()
    rare[:5000], rare[7] = 1, 2
    places = (Environment("a", x[:11_900], rare), Environment("b", x[11_900:], rare[:100]))
    drawn = EnvironmentSet("rare", places, Multiclass(3), test=("b",))
    with pytest.raises(EnvariantError, match="^boosted-trees: The least populated class"):
        boosted_trees.fit(drawn, drawn.roles(), 0)
