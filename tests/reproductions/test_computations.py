"""Computations are performed once, stored whole, and checked when they are read back."""

import json
import math

import numpy as np
import pytest

from envariant.core.errors import EnvariantError
from envariant.reproductions.runner import Run, Runner, RunNotStoredError, _folder


def test_a_computation_is_performed_once_and_its_result_is_the_same_when_loaded(tmp_path):
    calls = []

    def function(n, scale):
        calls.append(n)
        return {"values": (n * scale, math.inf), 3: "three"}

    inputs = {"n": 2, "scale": 1.5}
    lines = []
    first = Runner(tmp_path, "quick", report=lines.append).compute("double", inputs, function)
    assert first == {"values": [3.0, math.inf], "3": "three"}
    runner = Runner(tmp_path, "full", stored_only=True)
    assert runner.compute("double", dict(reversed(inputs.items())), function) == first
    assert calls == [2]
    assert lines == ["computation: double"]
    (computation,) = runner.computations.values()
    assert computation.inputs == inputs
    assert {"processor", "torch", "python"} <= set(computation.machine)


def test_other_inputs_and_versions_are_other_computations(tmp_path):
    runner = Runner(tmp_path, "quick")
    results = [
        runner.compute("sum", {"x": 1}, lambda x: x),
        runner.compute("sum", {"x": 2}, lambda x: x),
        runner.compute("sum", {"x": 1}, lambda x: -x, version=2),
    ]
    assert results == [1, 2, -1]
    with pytest.raises(RunNotStoredError):
        Runner(tmp_path, "quick", stored_only=True).compute("sum", {"x": 3}, lambda x: x)


def test_a_changed_file_is_rejected(tmp_path):
    Runner(tmp_path, "quick").compute("sum", {"x": 1}, lambda x: x)
    (path,) = tmp_path.iterdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), "result": 2}))
    with pytest.raises(EnvariantError, match="was changed after it was written; delete it"):
        Runner(tmp_path, "quick").compute("sum", {"x": 1}, lambda x: x)
    path.write_text(path.read_text()[:40])
    with pytest.raises(EnvariantError, match="is damaged; delete it"):
        Runner(tmp_path, "quick").compute("sum", {"x": 1}, lambda x: x)


@pytest.mark.parametrize("value", [object(), math.nan, {1, 2}])
def test_inputs_that_are_not_json_are_rejected(tmp_path, value):
    with pytest.raises(EnvariantError, match="sum: inputs must be finite numbers"):
        Runner(tmp_path, "quick").compute("sum", {"x": value}, lambda x: x)


def test_a_result_that_is_not_json_is_rejected_and_nothing_is_stored(tmp_path):
    with pytest.raises(EnvariantError, match="sum: the result must consist of"):
        Runner(tmp_path, "quick").compute("sum", {"x": 1}, lambda x: object())
    assert not list(tmp_path.iterdir())


def test_settings_that_might_have_equal_texts_are_refused():
    for setting in (object(), np.int64(3), lambda: 0):
        with pytest.raises(TypeError, match="must be a number, a string or an optimizer"):
            _folder(Run("colored-digits", "erm", {"steps": setting}), {"steps": setting})
