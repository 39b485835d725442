"""Saved models: predictions, rejected inputs, storage, ONNX export, and comparison of new rows."""

import json

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

import envariant
from envariant.analysis.column_sketch import Sketch
from envariant.core.errors import EnvariantError
from envariant.core.files import write_tensors
from envariant.data.tables import loading, reading
from envariant.data.tables import table as tables
from envariant.data.tables.source import TableSource
from envariant.reporting.shift import drift_table
from envariant.saved_model import SCHEMA, TENSORS, TEXT, SavedModel, load_model
from envariant.training.result import TrainingResult

WARDS = ["A&E", "<b>Ü</b>", "3", "03"]


def patients(rows=900, seed=0, hospitals=("north", "south", "east"), older=0.0):
    """Three similar hospitals, with every kind of column and some missing values."""
    draw = np.random.default_rng(seed)
    hospital = draw.integers(len(hospitals), size=rows)
    age = np.round(draw.normal(50 + 2 * hospital + older, 10), 1)
    smoker = draw.random(rows) < 0.3
    frame = pd.DataFrame(
        {
            "hospital": np.array(hospitals)[hospital],
            "age": np.where(draw.random(rows) < 0.05, np.nan, age),
            "stays": draw.poisson(1.0, rows),
            "smoker": np.where(smoker, "yes", "no"),
            "ward": draw.choice(WARDS, size=rows, p=[0.4, 0.3, 0.2, 0.1]),
            "seen": pd.Timestamp("2020-01-01") + pd.to_timedelta(draw.integers(0, 700, rows), unit="D"),
        }
    )
    risk = 0.08 * (age - 50) + 1.5 * smoker + draw.normal(size=rows)
    return frame.assign(
        died=np.where(risk > 0.5, "yes", "no"),
        outcome=np.digitize(risk, [-0.5, 1.0]).astype(object),
        days=1000 + 30 * risk,
    ).assign(outcome=lambda f: np.array(["home", "ward", "icu"], dtype=object)[f.outcome.astype(int)])


TARGETS = ("died", "outcome", "days")


def trained(target, algorithm="erm", model="mlp(hidden=(8,))", **more):
    source = TableSource(
        tables.read(patients(), target, "hospital", exclude=[t for t in TARGETS if t != target])
    )
    result = envariant.train(
        source, algorithm, model=model, steps=20, test_environments=["east"], precision="float32", **more
    )
    return source, result


@pytest.fixture(scope="module")
def runs():
    return {target: trained(target) for target in TARGETS}


@pytest.fixture(scope="module")
def models(runs):
    return {target: SavedModel.of(*run) for target, run in runs.items()}


@pytest.mark.parametrize("target", TARGETS)
def test_predictions_are_those_of_the_trained_network(target, runs, models):
    source, result = runs[target]
    model, held = models[target], source.with_test_environments(["east"])
    predictions = model.predict(patients())
    drawn = held.sample(0)
    frame = patients()
    for environment in drawn.environments:
        with torch.no_grad():
            logits = held.task.logits(result.model()(environment.inputs))
        rows = predictions[(frame.hospital == environment.name).to_numpy()]
        if target == "days":
            # Another batch of rows rounds differently.
            expected = logits.double() * held.task.scale + held.task.center
            np.testing.assert_allclose(rows.prediction, expected, rtol=1e-6)
            assert list(predictions.columns) == ["prediction"]
            continue
        p = torch.sigmoid(torch.stack([-logits, logits], 1)) if target == "died" else logits.softmax(1)
        np.testing.assert_allclose(rows.iloc[:, 1:], p, atol=1e-6)
        assert (rows.prediction == np.array(model.classes)[p.argmax(1).numpy()]).all()
    if target == "died":
        assert list(predictions.columns) == ["prediction", "P(no)", "P(yes)"]
        assert set(predictions.prediction) == {"no", "yes"}
    if target == "outcome":
        assert list(predictions.columns) == ["prediction", "P(home)", "P(icu)", "P(ward)"]


@pytest.mark.parametrize("target", TARGETS)
def test_loaded_model_gives_bit_identical_predictions(target, models, tmp_path):
    model = models[target]
    model.save(tmp_path / "model")
    again = load_model(tmp_path / "model")
    fresh = patients(seed=1)
    pd.testing.assert_frame_equal(again.predict(fresh), model.predict(fresh), check_exact=True)
    assert again.resembles(fresh) == model.resembles(fresh)
    assert again.to_dict() == model.to_dict()
    assert again.encoder == model.encoder
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [TEXT, TENSORS]
    description = json.loads((tmp_path / "model" / TEXT).read_text())
    assert description["target"] == target
    assert description["environments"] == ["north", "south"]
    assert description["about"]["test environments"] == "east"
    again.save(tmp_path / "model")
    assert load_model(tmp_path / "model").to_dict() == model.to_dict(), "an earlier model is replaced"


def test_loaded_run_gives_the_same_model(tmp_path):
    source, result = trained("died", replicas=2, holdout_fraction=0.2, out=tmp_path / "run")
    stored = TrainingResult.load(tmp_path / "run")
    fresh = patients(seed=1)
    first, other, again = (
        SavedModel.of(source, r, replica=k).predict(fresh) for r, k in ((result, 0), (result, 1), (stored, 0))
    )
    pd.testing.assert_frame_equal(first, again, check_exact=True)
    assert not first.equals(other)
    with pytest.raises(EnvariantError, match="replica 7: is not in this run"):
        SavedModel.of(source, result, replica=7)


@pytest.mark.parametrize(("algorithm", "model"), [("arm", "mlp(hidden=(8,))"), ("irm", "linear"), ("urm", "mlp(hidden=(8,))")])  # fmt: skip
def test_networks_wrapped_by_an_algorithm_are_rebuilt(algorithm, model, tmp_path):
    source, result = trained("died", algorithm, model)
    model_of_run = SavedModel.of(source, result)
    model_of_run.save(tmp_path)
    fresh = patients(seed=1)
    pd.testing.assert_frame_equal(load_model(tmp_path).predict(fresh), model_of_run.predict(fresh))
    assert len(load_model(tmp_path).predict(fresh.iloc[:0])) == 0


def test_further_facts_are_stored(runs):
    model = SavedModel.of(*runs["died"], about={"ward": "Ü <b>", "date": "2020-01-01"})
    assert model.about["ward"] == "Ü <b>"
    assert model.about["date"] == "2020-01-01"
    assert "torch" in model.about["versions"]
    assert (model.target, model.environment, model.task) == ("died", "hospital", "binary")


def test_another_table_is_rejected(runs):
    _, result = runs["died"]
    other = TableSource(tables.read(patients(seed=5), "died", "hospital", exclude=["outcome", "days"]))
    with pytest.raises(EnvariantError, match="is not the table that this run"):
        SavedModel.of(other, result)


def test_own_network_is_rejected():
    with pytest.raises(EnvariantError, match="is not a built-in model"):
        SavedModel.of(*trained("died", model=own_network))


def own_network():
    source = TableSource(tables.read(patients(), "died", "hospital", exclude=["outcome", "days"]))
    return torch.nn.Linear(len(source.with_test_environments(["east"]).encoder.names), 1)


def test_column_order_extra_columns_and_index(models, tmp_path):
    model, fresh = models["died"], patients(200, seed=2)
    expected = model.predict(fresh)
    shuffled = (
        fresh[sorted(fresh.columns, reverse=True)].assign(extra=1j).set_index(fresh.index[::-1] * 2 + 7)
    )
    predictions = model.predict(shuffled)
    assert list(predictions.index) == list(shuffled.index)
    np.testing.assert_array_equal(predictions.to_numpy(), expected.to_numpy())
    bare = fresh.drop(columns=["hospital", *TARGETS])
    pd.testing.assert_frame_equal(model.predict(bare), expected)
    bare.to_csv(tmp_path / "new.csv", index=False)
    pd.testing.assert_frame_equal(model.predict(tmp_path / "new.csv"), expected)
    pd.testing.assert_frame_equal(model.predict(str(tmp_path / "new.csv")), expected)


def test_files_are_read_in_chunks(models, tmp_path, monkeypatch):
    fresh = patients(1000, seed=2)
    fresh.to_csv(tmp_path / "new.csv", index=False)
    monkeypatch.setattr(reading, "ROWS_PER_CHUNK", 64)
    frame, drift = (f(tmp_path / "new.csv") for f in (models["died"].predict, models["died"].resembles))
    whole = models["died"].predict(fresh)
    assert frame.index.equals(whole.index)
    np.testing.assert_allclose(frame.iloc[:, 1:], whole.iloc[:, 1:], atol=1e-6)
    assert drift == models["died"].resembles(fresh)
    fresh.astype({"age": object}).assign(age=lambda f: f.age.where(f.index != 900, "old")).to_csv(
        tmp_path / "new.csv", index=False
    )
    with pytest.raises(EnvariantError, match=r"new.csv: column 'age': holds 'old' in row 901"):
        models["died"].predict(tmp_path / "new.csv")


def test_equivalent_spellings_of_values(models):
    model = models["died"]
    fresh = patients(200, seed=2)
    expected = model.predict(fresh)
    absent = fresh.age.isna()
    for other in (
        fresh.assign(smoker=(fresh.smoker == "yes").astype(int)),
        fresh.assign(smoker=fresh.smoker == "yes"),
        fresh.assign(smoker=fresh.smoker.map({"yes": "TRUE", "no": "False"})),
        fresh.assign(age=fresh.age.map(str).where(~absent, " n/a ")),
        fresh.assign(seen=fresh.seen.dt.strftime("%Y-%m-%d")),
        fresh.assign(ward=fresh.ward.astype("category")),
    ):
        pd.testing.assert_frame_equal(model.predict(other), expected)


def test_categories_that_look_like_numbers(models, tmp_path):
    model = models["died"]
    threes = patients(200, seed=2).assign(ward="3")
    expected = model.predict(threes)
    for other in (threes.assign(ward=3), threes.assign(ward=3.0)):
        pd.testing.assert_frame_equal(model.predict(other), expected)
        assert not any(c.unseen for c in model.resembles(other).columns)
    assert model.resembles(threes.assign(ward="003")).remarks[0].startswith("ward: 200 rows with a category")
    zero = threes.assign(ward="03")
    zero.to_csv(tmp_path / "new.csv", index=False)
    pd.testing.assert_frame_equal(model.predict(tmp_path / "new.csv"), model.predict(zero))
    assert not model.predict(zero).equals(expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.rename(columns={"age": "Age"}), r"data frame: lacks column 'age' \(did you mean 'Age'\?\); its columns: hospital, Age"),
        (lambda f: f.drop(columns=["age", "ward"]), "lacks columns 'age', 'ward'; its columns:"),
        (lambda f: f.assign(age="old"), "column 'age': holds 'old' in row 1, but the model was trained on a number"),
        (lambda f: f.assign(age=f.seen), "column 'age': holds dates, but the model was trained on a number column"),
        (lambda f: f.assign(ward=f.seen), "column 'ward': holds dates, but the model was trained on a category column"),
        (lambda f: f.assign(seen=f.age), "column 'seen': holds '.*' in row .*, but the model was trained on a date"),
        (lambda f: f.assign(seen="spring"), "column 'seen': holds 'spring' in row 1"),
        (lambda f: f.assign(smoker="maybe"), "column 'smoker': holds 'maybe' in row 1, but the model was trained on a boolean"),
        (lambda f: f.assign(smoker=2), "column 'smoker': holds '2' in row 1"),
        (lambda f: f.assign(stays=1e20), "column 'stays': holds 1e\\+20 in row 1, too large"),
        (lambda f: 3, "data must be a path or a data frame"),
    ],
)  # fmt: skip
def test_invalid_values_give_one_line_errors(change, message, models):
    with pytest.raises(EnvariantError, match=message) as raised:
        models["died"].predict(change(patients(60)))
    assert "\n" not in str(raised.value)


def test_unreadable_files(models, tmp_path):
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(EnvariantError, match="is empty"):
        models["died"].predict(tmp_path / "empty.csv")
    with pytest.raises(EnvariantError, match="there is no such file"):
        models["died"].predict(tmp_path / "nowhere.csv")


@pytest.mark.parametrize("target", TARGETS)
def test_no_rows_give_no_predictions(target, models, tmp_path):
    model, none = models[target], patients().iloc[:0]
    none.to_csv(tmp_path / "none.csv", index=False)
    for data in (none, tmp_path / "none.csv"):
        predictions = model.predict(data)
        assert len(predictions) == 0
        assert list(predictions.columns) == list(model.predict(patients(30)).columns)
        assert model.resembles(data).kind == "too few rows"


def test_missing_values_and_unseen_categories_are_counted(models):
    model = models["died"]
    fresh = patients(100, seed=3).assign(stays=lambda f: f.stays.astype(float))
    fresh.loc[~fresh.age.between(20, 70), "age"] = 50.0
    fresh.loc[:3, "ward"] = "<script>α</script>"
    fresh.loc[4, "ward"] = None
    fresh.loc[:9, "stays"] = np.nan
    fresh.loc[10:12, "age"] = 300.0
    predictions, drift = model.predict(fresh), model.resembles(fresh)
    assert np.isfinite(predictions["P(yes)"]).all()
    columns = {c.name: c for c in drift.columns}
    assert columns["ward"].unseen == {"<script>α</script>": 4}
    assert columns["ward"].missing == pytest.approx(0.01)
    assert columns["stays"].missing == pytest.approx(0.1)
    assert columns["age"].outside == 3
    description = "\n".join(drift.remarks)
    assert (
        "ward: 4 rows with a category that is not in the training data ('<script>α</script>')" in description
    )
    assert "stays: 10 rows with a missing value, although no training row has one" in description
    assert "age: 3 rows outside the training range" in description
    everything = fresh.assign(age=np.nan, ward=None, smoker=None, seen=pd.NaT, stays=np.nan)
    assert np.isfinite(model.predict(everything)["P(yes)"]).all()
    assert model.resembles(everything).kind == "different"


def test_rows_of_the_training_distribution_raise_no_alarm(models):
    alarms = [
        drift.differing
        for seed in range(20)
        for rows in (50, 1000)
        if (
            drift := models["died"].resembles(patients(rows, seed=100 + seed, hospitals=("north", "south")))
        ).kind
        != "alike"
    ]
    assert alarms == []


@pytest.mark.parametrize("rows", [60, 3000])
def test_only_the_shifted_column_is_reported(rows, models):
    model = models["died"]
    fresh = patients(rows, seed=4, hospitals=("north", "south"))
    older = model.resembles(fresh.assign(age=fresh.age + 15))
    assert older.kind == "different"
    assert older.differing == ("age",)
    assert older.verdict.startswith(
        "New rows differ in age, by more than training environments differ from each other: age (distance 0."
    )
    moved = model.resembles(fresh.assign(ward=np.where(fresh.index % 2, "A&E", "new"), age=np.nan))
    assert moved.differing == ("age", "ward")
    assert "age (100% missing, 6% in training)" in moved.verdict
    description = json.loads(json.dumps(older.to_dict(), allow_nan=False))
    assert description["kind"] == "different"
    assert description["differing"] == ["age"]
    assert next(c for c in description["columns"] if c["name"] == "age")["standing"] == "further"
    table = drift_table(older)
    assert {len(row) for row in table.rows} == {len(table.header)}
    assert (table.rows[0][0], table.rows[0][-1]) == ("age", "further")


def test_differences_between_training_environments_raise_no_alarm():
    frame = patients()
    apart = frame.assign(age=frame.age + 20 * (frame.hospital == "north"))
    source = TableSource(tables.read(apart, "died", "hospital", exclude=["outcome", "days"]))
    result = envariant.train(source, model="linear", steps=2, test_environments=["east"])
    drift = SavedModel.of(source, result).resembles(frame[frame.hospital == "east"])
    age = next(c for c in drift.columns if c.name == "age")
    assert age.distance > 0.1
    assert age.p_value < 0.01
    assert age.standing == "within"
    assert drift.kind == "alike"
    assert drift.verdict == (
        "New rows resemble the training environments; differences in age are no larger than those between training environments"
    )


def test_distance_approximates_kolmogorov_smirnov():
    from scipy import stats

    draw = np.random.default_rng(0)
    for first, second in (
        (draw.normal(size=5000), draw.normal(0.3, 1.2, size=700)),
        (draw.poisson(1.0, 5000), draw.poisson(1.4, 700)),
        (draw.exponential(size=5000), draw.exponential(0.7, size=40)),
    ):
        a, b = (x.astype(np.float32) for x in (first, second))
        sketch = Sketch.of("x", "number", a, np.zeros(len(a), dtype=int), 1, categorical=False, ordered=True)
        expected = stats.ks_2samp(a, b).statistic
        distance = sketch.distance(sketch.tally(b), sketch.counts[0])
        assert expected - 0.0101 <= distance <= expected + 1e-9
        assert sketch.counts.sum() == len(a)


def test_damaged_and_foreign_folders_give_one_line_errors(models, tmp_path):
    with pytest.raises(EnvariantError, match="holds no model"):
        load_model(tmp_path / "nowhere")
    models["died"].save(tmp_path)
    whole = (tmp_path / TENSORS).read_bytes()
    for wrong in (whole[:-100], whole[:50], b"", b"not tensors at all"):
        (tmp_path / TENSORS).write_bytes(wrong)
        with pytest.raises(EnvariantError, match="is damaged"):
            load_model(tmp_path)
    write_tensors(tmp_path / TENSORS, {"weight": torch.zeros(2)}, {})
    with pytest.raises(EnvariantError, match="not a model saved by envariant"):
        load_model(tmp_path)
    text = json.loads((tmp_path / TEXT).read_text())
    for change, message in (
        ({"schema": SCHEMA + 1}, f"has schema {SCHEMA + 1}, but this version reads schema {SCHEMA}"),
        ({"classes": 3}, r"is damaged \(classes: Input should be a valid tuple\)"),
        ({"extra": 3}, r"is damaged \(extra: "),
        (
            {"predictor": text["predictor"] | {"model": "mlp(hidden=(9,))"}},
            r"is damaged \(Error\(s\) in loading",
        ),
        ({"predictor": {"model": "linear"}}, "is damaged"),
        ({"environments": ["one"]}, r"is damaged \(the reference of column 'age' does not match the model\)"),
        ({"reference": text["reference"][:-1]}, "is damaged"),
        ({"reference": text["reference"] * 2}, "is damaged"),
    ):
        (tmp_path / TENSORS).write_bytes(whole)
        tensors = safetensors.torch.load_file(tmp_path / TENSORS)
        write_tensors(tmp_path / TENSORS, tensors, {"envariant.model": json.dumps({**text, **change})})
        with pytest.raises(EnvariantError, match=message) as raised:
            load_model(tmp_path)
        assert "\n" not in str(raised.value)


def test_unwritable_folder(models, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvariantError, match="cannot be written"):
        models["died"].save(tmp_path / "file")


def test_onnx_export_needs_packages_and_a_file_name(models, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(EnvariantError, match="pip install onnx onnxscript"):
        models["died"].to_onnx(tmp_path / "model.onnx")
    with pytest.raises(EnvariantError, match=r"must end in \.onnx"):
        models["died"].to_onnx(tmp_path / "model.pt")


@pytest.mark.parametrize("target", TARGETS)
def test_onnx_predictions_equal_those_of_the_model(target, models, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = models[target]
    model.to_onnx(tmp_path / "model.onnx")
    fresh = patients(300, seed=6)
    kinds = {c.name: c.kind for c in model.encoder.columns}
    ((_, columns),) = loading.read_columns(fresh, kinds)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    expected = model.predict(fresh)
    for rows in (1, 300):
        outputs = session.run(None, {"inputs": model.encoder.encode(columns)[:rows]})
        if target == "days":
            np.testing.assert_allclose(outputs[0], expected.prediction[:rows], rtol=1e-5)
        else:
            np.testing.assert_allclose(outputs[1], expected.iloc[:rows, 1:].to_numpy(), atol=1e-5)
    assert [o.name for o in session.get_outputs()] == (
        ["prediction"] if target == "days" else ["logits", "probabilities"]
    )
    description = json.loads((tmp_path / "model.json").read_text())
    assert description["inputs"] == list(model.encoder.names)
    assert len(description["encoder"]["columns"]) == len(model.encoder.columns)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.onnx"]
