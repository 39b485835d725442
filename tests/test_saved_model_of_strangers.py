"""Saved models of strangers: sizes, numbers and names are checked before a network is built."""

import json
import os
import time

import numpy as np
import pandas as pd
import pytest
import torch

import envariant
from envariant.core.errors import EnvariantError
from envariant.core.files import read_tensors, write_tensors
from envariant.data.tables import table as tables
from envariant.data.tables.source import TableSource
from envariant.saved_model import TENSORS, SavedModel, load_model
from envariant.saved_model.validation import limited_to

HEADER = "envariant.model"


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Description and tensors of a small model."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=240)
    frame = pd.DataFrame(
        {
            "site": np.repeat(["n", "s", "w"], 80),
            "x": x,
            "color": draw.choice(["red", "green"], 240),
            "seen": pd.Timestamp("2020-01-01") + pd.to_timedelta(draw.integers(0, 700, 240), unit="D"),
            "sick": np.where(x > 0, "yes", "no"),
        }
    )
    source = TableSource(tables.read(frame, "sick", "site"))
    result = envariant.train(source, "erm", model="mlp(hidden=(4,))", steps=2, test_environments=["w"])
    folder = tmp_path_factory.mktemp("model")
    SavedModel.of(source, result).save(folder)
    texts, tensors = read_tensors(folder / TENSORS, "")
    return json.loads(texts[HEADER]), tensors


def changed(value, path, new):
    """Return a copy of nested lists and dictionaries with another value at a path."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


def write(folder, description, tensors):
    text = description if isinstance(description, str) else json.dumps(description)
    write_tensors(folder / TENSORS, tensors, {HEADER: text})


NAN, INF = float("nan"), float("inf")
DESCRIPTIONS = {
    "no classes": (["classes"], []),
    "one class": (["classes"], ["a"]),
    "many classes": (["classes"], [str(k) for k in range(1000)]),
    "equal classes": (["classes"], ["a", "a"]),
    "classes that are numbers": (["classes"], [1, 2]),
    "another task": (["task"], "regression"),
    "no task": (["task"], "dance"),
    "zero scale": (["encoder", "columns", 0, "scale"], 0.0),
    "negative scale": (["encoder", "columns", 0, "scale"], -1.0),
    "NaN scale": (["encoder", "columns", 0, "scale"], NAN),
    "infinite center": (["encoder", "columns", 0, "center"], INF),
    "infinite fill": (["encoder", "columns", 0, "fill"], -INF),
    "huge number": (["encoder", "columns", 0, "fill"], 10**400),
    "tiny scale": (["encoder", "columns", 0, "scale"], 1e-320),
    "another kind": (["encoder", "columns", 0, "kind"], "category"),
    "unknown kind": (["encoder", "columns", 0, "kind"], "../x"),
    "no columns": (["encoder", "columns"], []),
    "equal columns": (["encoder", "columns", 1, "name"], "x"),
    "column of a number": (["encoder", "columns", 0], 3),
    "NaN target": (["center"], NAN),
    "zero target": (["scale"], 0.0),
    "no environments": (["environments"], []),
    "equal environments": (["environments"], ["n", "n"]),
    "many environments": (["environments"], [str(k) for k in range(1000)]),
    "wide network": (["predictor", "model"], "mlp(hidden=(40000, 40000))"),
    "million layers": (["predictor", "model"], "mlp(hidden=4, depth=1000000)"),
    "wide last layer": (["predictor", "model"], "mlp(hidden=1000000000)"),
    "deep model text": (["predictor", "model"], "mlp(" + "(" * 5000 + ")" * 5000 + ")"),
    "long model text": (["predictor", "model"], "mlp(hidden=(" + "4," * 10**6 + "))"),
    "unknown model": (["predictor", "model"], "os.system"),
    "image model": (["predictor", "model"], "timm(architecture=resnet18, pretrained=true)"),
    "NUL in the model": (["predictor", "model"], "mlp(\0)"),
    "no text as model": (["predictor", "model"], {"a": 1}),
    "long composition": (["predictor", "algorithm"], "erm + " * 10_000 + "erm"),
    "wrong hyperparameters": (["predictor", "hyperparameters"], [1]),
    "more of the network": (["predictor", "code"], "import os"),
    "reference of another column": (["reference", 0, "name"], "y"),
    "reference of another kind": (["reference", 0, "categorical"], True),
    "equal categories": (["reference", 1, "categories"], ["red", "red"]),
    "huge type": (["target_type", "dtype"], "S1000000000"),
    "category without categories": (["target_type", "dtype"], "category"),
    "values of other classes": (["target_type", "values"], [1, 2, 3]),
    "unknown field": (["trigger"], "x"),
    "provenance that is no text": (["about"], {"date": {"a": 1}}),
    "description that is a list": ([], [1, 2]),
    "deep description": ([], "[" * 10**5 + "]" * 10**5),
    "description that is no JSON": ([], "{"),
    "integer of many digits": ([], '{"schema": ' + "9" * 10**5 + "}"),
}  # fmt: skip


@pytest.mark.parametrize(("path", "new"), DESCRIPTIONS.values(), ids=DESCRIPTIONS)
def test_hostile_descriptions_are_one_line_and_soon(path, new, stored, tmp_path):
    description, tensors = stored
    try:
        description = changed(description, path, new)
    except KeyError:
        description = changed(description, path[:-1], {**changed_at(description, path[:-1]), path[-1]: new})
    write(tmp_path, description, tensors)
    start = time.process_time()
    with pytest.raises(EnvariantError) as error:
        load_model(tmp_path)
    assert "\n" not in str(error.value)
    assert TENSORS in str(error.value)
    # Without the checks, this takes minutes or all memory.
    assert time.process_time() - start < 5


def changed_at(value, path):
    for key in path:
        value = value[key]
    return value


WEIGHTS = {
    "NaN": lambda value: value * NAN,
    "infinite": lambda value: value + INF,
    "complex": lambda value: value.to(torch.complex64),
    "of another shape": lambda value: value[None],
    "empty": lambda value: value[:0],
}


@pytest.mark.parametrize("change", WEIGHTS.values(), ids=WEIGHTS)
def test_hostile_weights_are_one_line(change, stored, tmp_path):
    description, tensors = stored
    write(
        tmp_path, description, {k: change(v) if k.startswith("weights/") else v for k, v in tensors.items()}
    )
    with pytest.raises(EnvariantError, match=r"is damaged \("):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("counts", lambda v: v - 10**6),
        ("counts", lambda v: v * 2**55),
        ("counts", lambda v: v.float()),
        ("alone", lambda v: v + 10**6),
        ("knots", lambda v: v * NAN),
        ("knots", lambda v: v.flip(0)),
        ("knots", lambda v: v[:, None]),
        ("counts", lambda v: v[:0]),
    ],
)
def test_hostile_references_are_one_line(name, change, stored, tmp_path):
    description, tensors = stored
    write(tmp_path, description, {k: change(v) if k == f"{name}0" else v for k, v in tensors.items()})
    with pytest.raises(EnvariantError, match="reference of column 'x'"):
        load_model(tmp_path)


def test_the_model_itself_is_read(stored, tmp_path):
    write(tmp_path, *stored)
    assert load_model(tmp_path).classes == ("no", "yes")


def test_pipes_sparse_files_and_folders_are_not_read(tmp_path):
    for name, make in {
        "pipe": os.mkfifo,
        "folder": os.mkdir,
        "device": lambda path: path.symlink_to("/dev/zero"),
        "sparse": lambda path: (path.touch(), os.truncate(path, 1 << 42)),
    }.items():
        (tmp_path / name).mkdir()
        make(tmp_path / name / TENSORS)
        with pytest.raises(EnvariantError, match="is a pipe|is a folder|more than the available memory"):
            load_model(tmp_path / name)
    with pytest.raises(EnvariantError, match="cannot be opened"):
        load_model(tmp_path / ("a" * 5000))


def test_the_limit_ends_with_its_block_and_counts_this_thread_only():
    with limited_to({}), pytest.raises(ValueError, match="more weights than are stored"):
        torch.nn.Linear(2000, 2000)
    assert torch.nn.Linear(2000, 2000).weight.shape == (2000, 2000)
