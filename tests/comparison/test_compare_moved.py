"""A comparison whose table and folder were moved is resumed without training its runs again."""

import numpy as np
import pandas as pd
import pytest

import envariant
from envariant.comparison import compare
from envariant.core.errors import EnvariantWarning
from envariant.studies import Store
from envariant.training.store.records import record_of_run

SMALL = {"algorithms": (), "n_trials": 1, "replicas": 2, "steps": 4, "memory": "1GB", "weight_decay": 0.01}


def test_comparison_of_a_moved_csv_file_trains_nothing_again(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=180)
    frame = pd.DataFrame({"x": x, "y": x + rng.normal(size=180) > 0, "s": np.repeat(["a", "b", "c"], 60)})
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        frame.to_csv(tmp_path / place / "rows.csv", index=False)
    first = compare(
        tmp_path / "one" / "rows.csv", target="y", environment="s", out=tmp_path / "one" / "out", **SMALL
    )
    with Store(first.folder) as store:
        listing, history = store.listing(), store.history()
        network = int(listing.loc[listing["algorithm"] == "erm", "id"].iloc[0])
        options = record_of_run(store, network).spec
    assert (options.steps, options.weight_decay) == (4, 0.01)
    (tmp_path / "one" / "out").rename(tmp_path / "two" / "out")
    saved = {p: p.stat().st_mtime_ns for p in (tmp_path / "two" / "out" / "jobs").rglob("*.safetensors")}
    again = compare(
        tmp_path / "two" / "rows.csv", target="y", environment="s", out=tmp_path / "two" / "out", **SMALL
    )
    with Store(again.folder) as store:
        pd.testing.assert_frame_equal(store.listing(), listing)
        pd.testing.assert_frame_equal(store.history(), history)
    assert saved
    assert {
        p: p.stat().st_mtime_ns for p in (tmp_path / "two" / "out" / "jobs").rglob("*.safetensors")
    } == saved
    assert again.verdict == first.verdict
    assert len(again.best_model.predict(frame)) == 180
    assert len(envariant.load_model(tmp_path / "two" / "out" / "model").predict(frame)) == 180


def test_unknown_option_of_compare_suggests_the_closest(tmp_path):
    frame = pd.DataFrame(
        {"x": np.arange(180.0) % 7, "y": np.arange(180) % 2, "s": np.repeat(["a", "b", "c"], 60)}
    )
    with pytest.raises(envariant.EnvariantError, match="unknown setting 'stesp'; did you mean 'steps'"):
        compare(frame, target="y", environment="s", out=tmp_path, stesp=3)


def test_a_budget_below_the_least_time_is_reported_with_that_time():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"x": rng.normal(size=80), "site": np.repeat(["a", "b"], 40)})
    table["y"] = table["x"] + rng.normal(size=80)
    with pytest.warns(
        EnvariantWarning,
        match=r"time budget of 0.01 s exceeded: a comparison of this table takes at least about .* s",
    ):
        comparison = compare(table, target="y", environment="site", budget=0.01, min_rows=20, **SMALL)
    assert list(comparison.results.cells) == ["linear"]
    assert comparison.results.causes
    assert "time budget" in comparison.page.read_text(encoding="utf-8")
