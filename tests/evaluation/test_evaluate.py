"""Predictions made elsewhere get the numbers that `compare` and scikit-learn compute for them."""

import json

import numpy as np
import pandas as pd
import polars
import pyarrow
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn import metrics as sk
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB

import envariant
from envariant.analysis.calibration import measure_calibration
from envariant.comparison.subgroups import find_subgroups
from envariant.data.tables.source import TableSource
from envariant.data.tables.table import read
from envariant.evaluation.results import is_known
from envariant.saved_model import SavedModel
from envariant.studies import Store

SITES = ("north", "south", "east")


def patients(n=60, seed=0, regression=False):
    """Return a table of three sites, with a class or a number as target; in the east, a column misleads."""
    rng, parts = np.random.default_rng(seed), []
    for site in SITES:
        x = rng.normal(size=(n, 2))
        z = x @ [1.5, -2.0 if site == "east" else 1.0]
        y = (
            50 + 10 * z + rng.normal(size=n)
            if regression
            else np.where(z + rng.logistic(size=n) > 0, "ill", "well")
        )
        parts.append(
            pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "sex": rng.choice(["f", "m"], n), "y": y, "site": site})
        )
    return pd.concat(parts, ignore_index=True)


def compared(frame, folder, **options):
    return envariant.compare(
        frame,
        target="y",
        environment="site",
        algorithms=[],
        n_trials=1,
        replicas=2,
        steps=5,
        out=folder,
        **options,
    )


def given_predictions(comparison):
    """Return predictions by method and replica, targets and environments, as stored by a comparison."""
    results = comparison.results
    methods = [results.baseline_method, *(m for m in results.cells if m != results.baseline_method)]
    rows = {m: [results.rows[m, name].out_of_domain for name in results.environments] for m in methods}
    predictions = {
        m: {k: np.concatenate([each[k].logits for each in own]) for k in range(len(own[0]))}
        for m, own in rows.items()
    }
    first = [each[0] for each in rows[methods[0]]]
    names = np.repeat(results.environments, [len(each.targets) for each in first])
    return predictions, np.concatenate([each.targets for each in first]), names


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    return compared(
        patients(), folder, candidates={"bayes": GaussianNB()}, subgroups=["sex"], metric="accuracy"
    )


def assert_same(cells, expected, rel=1e-5):
    assert cells.keys() == expected.keys()
    for model, own in expected.items():
        assert cells[model].keys() == own.keys()
        for name, cell in own.items():
            found = cells[model][name]
            for first, second in ((found.ood_score, cell.ood_score), (found.gain, cell.gain)):
                if second is None:
                    assert first is None
                    continue
                ends = (first.mean, first.low, first.high), (second.mean, second.low, second.high)
                assert ends[0] == pytest.approx(ends[1], rel=rel, abs=1e-6), (model, name)
            assert (found.p_value is None) == (cell.p_value is None)
            if cell.p_value is not None:
                assert found.p_value == pytest.approx(cell.p_value, rel=1e-3)


@pytest.mark.parametrize("metric", ["accuracy", "log loss"])
@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_runs_and_scikit_learn_models_of_a_comparison_get_its_scores_intervals_gains_and_p_values(
    comparison, metric, kind
):
    predictions, targets, environments = given_predictions(comparison)
    assert {"erm", "linear", "boosted-trees", "bayes"} == set(predictions)
    if kind == "probabilities":
        predictions = {
            m: {k: expit(z.astype(float)) for k, z in own.items()} for m, own in predictions.items()
        }
    evaluation = envariant.evaluate(predictions, targets, environments, kind=kind, metric=metric)
    expected = comparison.results if metric == "accuracy" else comparison.results.second
    assert evaluation.results.metric == expected.metric
    assert_same(evaluation.results.cells, expected.cells, rel=1e-4)
    frame = evaluation.table().to_frame()
    pd.testing.assert_frame_equal(
        frame[list(expected.environments)],
        expected.scores().to_frame().loc[frame.index, list(expected.environments)],
        check_exact=False,
        rtol=1e-4,
    )


def test_regressions_of_a_comparison_get_its_scores_in_the_unit_of_the_target(tmp_path):
    frame = patients(60, regression=True)
    results = compared(frame, tmp_path, metric="RMSE").results
    names, baseline = results.environments, results.baseline_method

    def in_unit(method, name, k):
        others = frame["y"][frame["site"] != name]
        z = results.rows[method, name].out_of_domain[k].logits.astype(float)
        return z * others.std(ddof=0) + others.mean()

    predictions = {
        m: {k: np.concatenate([in_unit(m, name, k) for name in names]) for k in range(2)}
        for m in sorted(results.cells, key=lambda m: m != baseline)
    }
    targets = np.concatenate([frame["y"][frame["site"] == name] for name in names])
    evaluation = envariant.evaluate(predictions, targets, np.repeat(names, 60))
    assert evaluation.results.metric.name == "RMSE"
    assert_same(evaluation.results.cells, results.cells, rel=1e-3)


def test_invariance_test_is_that_of_a_stored_run(comparison):
    with Store(comparison.folder) as store:
        runs = store.listing()
        for run in runs["id"][:4]:
            rows = [each for (_, role), each in store.predictions(run).items() if role == "validation"]
            found = envariant.evaluate(
                np.concatenate([each.logits for each in rows]),
                np.concatenate([each.targets for each in rows]),
                np.repeat([each.environment for each in rows], [len(each.targets) for each in rows]),
                kind="logits",
            )
            expected = float(runs["p_value"][runs["id"] == run].iloc[0])
            assert found.results.invariance["model"].p_value == pytest.approx(expected, rel=1e-3)


def test_groups_get_the_scores_that_a_comparison_gives_to_subgroups(comparison):
    source = TableSource(read(patients(), "y", "site", subgroups=["sex"]), "table")
    study = comparison.study
    expected = find_subgroups(
        source, comparison.results, study.test_environments, study.holdout_fraction, (0, 1)
    )
    predictions, targets, environments = given_predictions(comparison)
    baseline = comparison.results.baseline_method
    frame = patients()
    sex = np.concatenate([frame["sex"][frame["site"] == name] for name in comparison.results.environments])
    found = envariant.evaluate(
        {baseline: predictions[baseline]},
        targets,
        environments,
        kind="logits",
        metric="accuracy",
        groups={"sex": sex},
    ).results.groups
    assert [(g.name, g.n_rows) for g in found] == [
        (g.name, g.n_rows) for g in expected if g.method == baseline
    ]
    for own, other in zip(found, expected, strict=False):
        assert own.score.mean == pytest.approx(other.score.mean)
        assert (own.score.low, own.p_value) == pytest.approx((other.score.low, other.p_value))


def test_interval_of_one_model_covers_its_expected_score():
    """A replica of a comparison stands for others; given predictions are those of the model itself."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(200):
        score = envariant.evaluate(
            (rng.random(100) < 0.5).astype(int), (rng.random(100) < 0.5).astype(int), np.zeros(100), metric="accuracy",
            kind="labels", classes=(0, 1),
        ).results.overall["model"].ood_score  # fmt: skip
        covered += score.contains(0.5)
    assert 0.88 <= covered / 200 <= 0.99


# ------------------------------------------------------------------------------------------- scikit-learn


@pytest.fixture(scope="module")
def forest():
    train, test = patients(seed=1), patients(seed=2)
    model = RandomForestClassifier(20, random_state=0).fit(train[["a", "b"]], train["y"])
    return model, model.predict_proba(test[["a", "b"]]), test


@pytest.mark.parametrize(
    ("metric", "function"),
    [
        ("accuracy", lambda y, p, c: sk.accuracy_score(y, c[p.argmax(axis=1)])),
        ("balanced accuracy", lambda y, p, c: sk.balanced_accuracy_score(y, c[p.argmax(axis=1)])),
        ("AUROC", lambda y, p, c: sk.roc_auc_score(y == c[1], p[:, 1])),
        # A forest predicts probabilities of exactly 0 and 1.
        ("log loss", lambda y, p, c: sk.log_loss(y, p, labels=c)),
    ],
)
def test_scores_by_environment_are_those_of_scikit_learn(forest, metric, function):
    model, p, test = forest
    evaluation = envariant.evaluate(p, test["y"], test["site"], metric=metric)
    for name in SITES:
        own = (test["site"] == name).to_numpy()
        expected = function(test["y"][own].to_numpy(), p[own], model.classes_)
        assert evaluation.results.cells["model"][name].ood_score.mean == pytest.approx(expected, rel=1e-6)


def test_several_classes_and_regression_are_scored_as_by_scikit_learn():
    frame = patients(regression=True)
    level = pd.cut(frame["y"], [-np.inf, 40, 60, np.inf], labels=["low", "middle", "high"]).astype(str)
    inputs = frame[["a", "b"]]
    several = LogisticRegression().fit(inputs, level)
    p = several.predict_proba(inputs)
    for metric, expected in (
        ("log loss", sk.log_loss(level, p)),
        ("AUROC", sk.roc_auc_score(level, p, multi_class="ovr")),
    ):
        found = envariant.evaluate(p, level, frame["site"], metric=metric)
        assert found.results.classes == tuple(several.classes_)
        assert found.results.overall["model"].ood_score.mean == pytest.approx(expected, rel=1e-6)
    labels = envariant.evaluate(several.predict(inputs), level, frame["site"], metric="accuracy")
    assert labels.results.kind == "labels"
    assert labels.results.overall["model"].ood_score.mean == pytest.approx(several.score(inputs, level))
    values = RandomForestRegressor(10, random_state=0).fit(inputs, frame["y"] * 1e6 + 1e9)
    y = frame["y"] * 1e6 + 1e9
    for metric, function in (("RMSE", sk.root_mean_squared_error), ("R2", sk.r2_score)):
        found = envariant.evaluate(values.predict(inputs), y, frame["site"], metric=metric)
        assert found.results.overall["model"].ood_score.mean == pytest.approx(
            function(y, values.predict(inputs)), rel=1e-5
        )


def test_case_weights_and_clusters(forest):
    _, p, test = forest
    weights = np.random.default_rng(0).integers(1, 4, len(test))
    found = envariant.evaluate(p, test["y"], test["site"], metric="accuracy", sample_weight=weights)
    labels = np.where(p[:, 1] > 0.5, "well", "ill")
    expected = sk.accuracy_score(test["y"], labels, sample_weight=weights)
    assert found.results.overall["model"].ood_score.mean == pytest.approx(expected)

    def half(repeats, **options):
        rows = np.repeat(np.arange(len(test)), repeats)
        cell = envariant.evaluate(
            p[rows], test["y"].to_numpy()[rows], test["site"].to_numpy()[rows], metric="accuracy", **options
        ).results.cells["model"]["north"]
        return cell.ood_score.high - cell.ood_score.mean

    copies = np.repeat(np.arange(len(test)), 4)
    # Four copies of each row are not four times as much information.
    assert half(4) == pytest.approx(half(1) / 2, rel=0.25)
    assert half(4, clusters=copies) == pytest.approx(half(1), rel=0.25)


# --------------------------------------------------------------------------------- containers and identifiers

CONTAINERS = {
    "list": list,
    "numpy": np.asarray,
    "pandas": pd.Series,
    "polars": lambda values: polars.Series(list(values)),
    "arrow": lambda values: pyarrow.chunked_array([pyarrow.array(list(values))]),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_gives_the_same_table(forest, container):
    _, p, test = forest
    convert = CONTAINERS[container]
    usual = envariant.evaluate(p, test["y"], test["site"], groups=test[["sex"]])
    found = envariant.evaluate(
        convert(p[:, 1]), convert(test["y"]), convert(test["site"]), groups=convert(test["sex"])
    )
    pd.testing.assert_frame_equal(found.to_frame(), usual.to_frame())
    for own, other in zip(found.results.groups, usual.results.groups, strict=True):
        assert (own.value, own.n_rows, own.score.mean) == (
            other.value,
            other.n_rows,
            pytest.approx(other.score.mean),
        )
    frames = {"pandas": pd.DataFrame, "polars": polars.DataFrame, "arrow": pyarrow.table}
    if container in frames:
        # Columns are matched by name, in any order.
        frame = frames[container]({"P(well)": p[:, 1], "P(ill)": p[:, 0]})
        pd.testing.assert_frame_equal(
            envariant.evaluate(frame, test["y"], test["site"]).to_frame(), usual.to_frame()
        )


def test_tensors_and_logits_of_a_network():
    torch.manual_seed(0)
    z, y = torch.randn(60, 3, requires_grad=True), torch.randint(3, (60,))
    sites = torch.arange(60) % 3
    found = envariant.evaluate(z, y, sites, kind="logits", metric="log loss")
    assert found.results.environments == ("0", "1", "2")
    expected = torch.nn.functional.cross_entropy(z, y).detach()
    assert found.results.overall["model"].ood_score.mean == pytest.approx(float(expected))
    soft = envariant.evaluate(torch.softmax(z, 1), y, sites, metric="log loss")
    assert soft.results.overall["model"].ood_score.mean == pytest.approx(float(expected), rel=1e-6)


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b"]), st.sampled_from(["a", "b", "c"]),
            st.one_of(st.integers(-3, 3), st.tuples(st.integers(0, 2), st.text("xy", max_size=1)), st.dates()),
        ),
        min_size=3, max_size=40,
    )
)  # fmt: skip
def test_environments_are_any_hashable_identifiers_and_may_have_one_row(rows):
    targets, labels, ids = ([row[k] for row in rows] for k in range(3))
    if len(set(targets)) == 1 or not set(labels) & set(targets):
        return
    results = envariant.evaluate(labels, targets, ids, metric="accuracy").results
    texts = [str(each) for each in ids]
    assert set(results.environments) == set(texts)
    for name, cell in results.cells["model"].items():
        own = [t == p for t, p, e in zip(targets, labels, texts, strict=True) if e == name]
        assert cell.ood_score.mean == pytest.approx(np.mean(own))
        assert results.n_rows[name] == len(own)
        assert is_known(cell.ood_score) <= (len(own) >= 20)


def test_few_or_equal_rows_have_no_interval_and_an_undefined_score_no_number():
    y = np.r_[np.zeros(30), np.ones(30), np.ones(5), 0, 1, 0]
    p = np.r_[np.full(30, 0.1), np.full(30, 0.9), np.full(5, 0.9), 0.1, 0.9, 0.9]
    sites = np.r_[np.repeat("large", 60), np.repeat("one class", 5), np.repeat("small", 3)]
    found = envariant.evaluate(p, y, sites, metric="accuracy")
    assert not any(is_known(cell.ood_score) for cell in found.results.cells["model"].values())
    assert "1.000 [unknown]" in str(found.environments_table().rows)
    assert found.results.over_environments("model") is None
    assert (
        found.headline
        == "No significant difference between environments: Accuracy is 0.985 over all rows, 0.667 in the worst environment, small"
    )
    area = envariant.evaluate(p, y, sites, metric="AUROC")
    assert list(area.results.cells["model"]) == ["large", "small"]
    assert "Average over large, small." in area.table().caption()
    assert [row[2] for row in area.environments_table().rows if row[0] == "one class"] == ["–"]


# --------------------------------------------------------------------------- what the summary says is measured


def made(rng, slopes, n=400):
    """Return logits, targets and sites; the log odds of the target are `slope` times the logit."""
    z = rng.normal(size=(len(slopes), n))
    y = np.asarray(slopes)[:, None] * z + rng.logistic(size=z.shape) > 0
    return z.ravel(), y.ravel().astype(int), np.repeat([f"site {k}" for k in range(len(slopes))], n)


def test_headline_and_facts_name_a_site_that_differs_and_only_such_a_site():
    rng = np.random.default_rng(0)
    odd = envariant.evaluate(*made(rng, (2, 2, 2, -1)), kind="logits")
    assert odd.headline.startswith("Accuracy differs between environments (p < 0.001): ")
    assert odd.results.worst("model")[0] == "site 3"
    assert "site 3" in odd.headline
    assert any("depends on the environment (p < 0.001)" in line for line in odd.bullets)
    assert (
        odd.results.calibration["model"]["site 3"].slope
        < 0
        < odd.results.calibration["model"]["site 0"].slope
    )
    significant = 0
    for _ in range(40):
        equal = envariant.evaluate(*made(rng, (2, 2, 2, 2), 150), kind="logits")
        significant += equal.headline.startswith("Accuracy differs")
    assert significant <= 7


@pytest.mark.parametrize("metric", ["accuracy", "log loss"])
def test_many_small_equal_environments_are_not_called_different(metric):
    """Standard errors of 30 rows depend on the score; with them, more than half of these tests reject."""
    rng, significant = np.random.default_rng(0), 0
    for _ in range(6):
        equal = envariant.evaluate(*made(rng, (1,) * 70, 30), kind="logits", metric=metric)
        significant += equal.results.varies("model")
    assert significant <= 2
    pooled = equal.results.over_environments("model")
    assert pooled.low < equal.results.overall["model"].ood_score.mean < pooled.high
    odd = envariant.evaluate(*made(rng, (1,) * 60 + (-1,) * 10, 30), kind="logits", metric=metric)
    assert odd.results.varies("model")


def test_worst_group_is_the_combination_of_attributes_with_the_worst_score():
    rng = np.random.default_rng(0)
    sex, age = rng.choice(["f", "m"], 800), rng.choice(["old", "young"], 800)
    odd = (sex == "f") & (age == "old")
    z = rng.normal(size=800)
    y = (np.where(odd, -2, 3) * z + rng.logistic(size=800) > 0).astype(int)
    sites = rng.choice(["n", "s"], 800)
    found = envariant.evaluate(
        {"m": z}, y, sites, kind="logits", groups={"sex": sex, "age": age}, metric="accuracy"
    )
    worst = found.results.worst_group("m")
    assert worst.name == "sex × age = f × old"
    assert worst.score.mean == pytest.approx(np.mean((z > 0)[odd] == y[odd]))
    assert worst.p_value < 1e-6
    assert any("Worst group: sex × age = f × old" in line for line in found.bullets)
    missing = envariant.evaluate(
        z, y, sites, kind="logits", groups=np.where(sex == "f", None, sex), metric="accuracy"
    )
    assert [each.name for each in missing.results.groups] == ["group = m"]


def test_calibration_is_that_of_the_analysis_in_the_unit_of_the_target():
    rng = np.random.default_rng(0)
    y = rng.normal(1000, 50, 90)
    predicted, sites = y + rng.normal(5, 3, 90), np.repeat(["n", "s", "e"], 30)
    found = envariant.evaluate(predicted, y, sites).results.calibration["model"]["s"]
    expected = measure_calibration(predicted[30:60], y[30:60], regression=True)
    assert (found.bias[0], found.slope) == pytest.approx((expected.bias[0], expected.slope))


# ---------------------------------------------------------------------------------------- page, files, models


def test_report_and_numbers_are_written_and_not_over_other_files(forest, tmp_path):
    _, p, test = forest
    found = envariant.evaluate(
        {"forest": p, "coin": 0 * p + 0.5}, test["y"], test["site"], groups=test[["sex"]]
    )
    assert found.save(tmp_path / "out") == tmp_path / "out"
    text = (tmp_path / "out" / "report.html").read_text()
    for word in (
        "envariant evaluation",
        found.headline,
        "sex = f",
        "Calibration in every environment",
        "coin",
    ):
        assert word in text
    numbers = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    cell = found.results.cells["forest"]["east"]
    assert numbers["models"]["forest"]["environments"]["east"]["score"]["mean"] == cell.ood_score.mean
    found.save(tmp_path / "out")
    assert found.report(tmp_path / "page.html").is_file()
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    with pytest.raises(envariant.EnvariantError, match="already exists with other content"):
        found.report(tmp_path / "mine.html")
    assert "east" in found.summary().html()
    assert found.to_frame().loc[("forest", "east"), "score"] == cell.ood_score.mean


def test_predictions_of_a_saved_model_are_read_as_they_are(tmp_path):
    frame = patients()
    source = TableSource(read(frame, "y", "site"), "table")
    model = SavedModel.of(
        source, envariant.train(source, steps=20, test_environments=["east"], precision="float32")
    )
    predicted = model.predict(frame)
    found = envariant.evaluate(predicted, frame["y"], frame["site"], metric="accuracy")
    assert found.results.classes == ("ill", "well")
    expected = np.mean(predicted["prediction"] == frame["y"])
    assert found.results.overall["model"].ood_score.mean == pytest.approx(expected)
    model.save(tmp_path / "model")
    frame.to_csv(tmp_path / "rows.csv", index=False)
    again = envariant.evaluation.evaluate_table(
        tmp_path / "rows.csv", target="y", environment="site", model=tmp_path / "model", metric="accuracy"
    )
    assert again.to_dict()["models"] == found.to_dict()["models"]
