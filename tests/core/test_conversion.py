"""Sets from arrays, datasets and columns: what is inferred, in which order, and what is refused with the mend."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import IterableDataset, TensorDataset

import envariant
from envariant import EnvironmentSet
from envariant.core.conversion import in_order, look_alikes
from envariant.core.errors import EnvariantError, EnvariantWarning
from envariant.core.tasks import Binary, Multiclass, Regression

X = np.arange(18, dtype=np.float64).reshape(6, 3)
Y = [0, 1, 1, 0, 1, 0]
SITES = ["south", "north", "south", "north", "east", "south"]


def refusal(call, *arguments, **settings):
    with pytest.raises(EnvariantError) as caught:
        call(*arguments, **settings)
    return str(caught.value)


def arrays(inputs=X, targets=Y, environments=SITES, **settings):
    return EnvironmentSet.from_arrays(inputs, targets, environments, **settings)


@pytest.mark.parametrize(
    "kind",
    [lambda x: x, torch.tensor, np.ndarray.tolist, pd.DataFrame],
    ids=["array", "tensor", "lists", "frame"],
)
def test_rows_go_to_their_environment_in_the_order_they_came(kind):
    found = arrays(kind(X), label="mine", test=("east",))
    assert found.name == "mine"
    assert found.names == ("east", "north", "south")
    assert found.roles() == {"east": "test", "north": "train", "south": "train"}
    assert found["south"].inputs.tolist() == X[[0, 2, 5]].tolist()
    assert found["south"].targets.tolist() == [0, 1, 0]
    assert found["north"].inputs.dtype == torch.float32


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([10, 9, 100, 9, 10, 9], ("9", "10", "100")),
        ([2019.0, 2021.0, 2019.0, 2020.0, 2020.0, 2020.0], ("2019", "2020", "2021")),
        (["10", "9", "100", "9", "10", "9"], ("9", "10", "100")),
        (["b10", "b9", "b100", "b9", "b10", "b9"], ("b10", "b100", "b9")),
        ([True, False, True, True, True, False], ("false", "true")),
        (torch.tensor([3, 1, 2, 1, 1, 1]), ("1", "2", "3")),
        (pd.Series(list("babaab")).astype("category"), ("a", "b")),
        ([["x"], ["y"], ["x"], ["y"], ["x"], ["y"]], ("x", "y")),
        (["<b>1</b>", "a & b", "a & b", "a & b", "a & b", "a & b"], ("<b>1</b>", "a & b")),
    ],
)
def test_environments_are_sorted_by_number_or_text(labels, names):
    assert arrays(environments=labels).names == names


def test_number_like_words_are_quoted():
    assert in_order(["nan", "2", "10"]) == ("2", "10", "nan")
    assert in_order(["b", "a", "b"]) == ("a", "b")


def test_environments_can_be_renamed_and_held_out_by_label():
    found = arrays(environments=[0, 1, 0, 1, 2, 2], names={0: "land", 1: "water"}, test=(1, 2))
    assert found.names == ("land", "water", "2")
    assert list(found.roles().values()) == ["train", "test", "test"]


@pytest.mark.parametrize(
    ("targets", "task", "classes", "coded"),
    [
        ([0, 1, 1, 0, 1, 0], Binary(), ("0", "1"), [0, 1, 1, 0, 1, 0]),
        ([-1.0, 1.0, 1.0, -1.0, 1.0, -1.0], Binary(), ("-1", "1"), [0, 1, 1, 0, 1, 0]),
        ([False, True, True, False, True, False], Binary(), ("false", "true"), [0, 1, 1, 0, 1, 0]),
        (["yes", "no", "no", "yes", "no", "no"], Binary(), ("no", "yes"), [1, 0, 0, 1, 0, 0]),
        (["cow", "cat", "dog", "cow", "cow", "cat"], Multiclass(3), ("cat", "cow", "dog"), [1, 0, 2, 1, 1, 0]),
        ([7, 3, 5, 5, 3, 7], Multiclass(3), ("3", "5", "7"), [2, 0, 1, 1, 0, 2]),
        (torch.tensor([7, 3, 5, 5, 3, 7], dtype=torch.uint8), Multiclass(3), ("3", "5", "7"), [2, 0, 1, 1, 0, 2]),
        ([0.5, 1.5, 2.0, 0.5, 1.5, 2.5], Regression(), (), [0.5, 1.5, 2.0, 0.5, 1.5, 2.5]),
    ],
)  # fmt: skip
def test_the_task_follows_from_the_targets_and_the_classes_are_kept(targets, task, classes, coded):
    found = arrays(targets=targets, environments=[0, 0, 0, 1, 1, 1])
    assert (found.task, found.classes) == (task, classes)
    assert torch.cat([e.targets for e in found.environments]).tolist() == coded


def test_many_integers_are_a_regression():
    rows = np.arange(42)
    few = EnvironmentSet.from_arrays(rows[:, None], rows % 20, rows % 2)
    many = EnvironmentSet.from_arrays(rows[:, None], rows % 21, rows % 2)
    assert (few.task, many.task) == (Multiclass(20), Regression())


def test_a_given_task_keeps_numbers_and_encodes_words():
    assert arrays(task=Multiclass(5)).environments[0].targets.tolist() == [1]
    assert arrays(task=Regression()).task == Regression()
    words = arrays(targets=list("cabcab"), task=Multiclass(4))
    assert (words.task, words.classes) == (Multiclass(4), ("a", "b", "c"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": Y[:5]}, "arrays: lengths must be equal; got 6 inputs, 5 targets, 6 environments"),
        ({"inputs": [["a"]] * 6}, "arrays: inputs must be numbers in a tensor, an array or a list; encode words "
         "as numbers first"),
        ({"inputs": X[:, 0]}, "environment 'east': inputs must be real numbers of shape [rows, …]; got shape (1,)"),
        ({"targets": [1] * 6}, "arrays: all targets are 1; there is nothing to predict"),
        ({"targets": [0.0, 1.0, math.nan, 2.5, 1.0, math.nan]}, "arrays: targets are missing in 2 of 6 rows "
         "(first: row 2); fill in or remove them"),
        ({"environments": ["a", None, "b", "a", math.nan, "b"]}, "arrays: environments are missing in 2 of 6 "
         "rows (first: row 1); fill in or remove them"),
        ({"environments": X}, "arrays: environments must hold one number or string per row; got shape (6, 3)"),
        ({"environments": []}, "arrays: environments hold no rows"),
        ({"targets": list("abcdef"), "task": Binary()}, "arrays: binary targets must be at most 2 classes; got "
         "a, b, c, d, e, …"),
        ({"targets": list("ababab"), "task": Regression()}, "arrays: regression targets must be numbers; got a, b"),
        ({"test": ("est",)}, "arrays: unknown environment 'est'; did you mean 'east'? known: east, north, south"),
        ({"test": "east", "names": {"west": "w"}}, "arrays: unknown environment 'west'; did you mean 'east'? "
         "known: east, north, south"),
        ({"environments": ["worst", "b"] * 3}, "environment 'worst': a name must be one line of text and not * or "
         "worst"),
        ({"label": "mine", "names": dict.fromkeys(SITES, "one")}, "mine: environment name 'one' is used twice"),
    ],
)  # fmt: skip
def test_invalid_arrays_are_rejected(settings, message):
    assert refusal(arrays, **settings) == message


def test_as_many_words_as_rows_are_rejected():
    words = [f"patient {k}" for k in range(30)]
    said = refusal(EnvironmentSet.from_arrays, np.zeros((30, 1)), words, ["a", "b"] * 15)
    assert said == (
        "arrays: targets hold 30 different strings in 30 rows; use numbers, or set task=Multiclass(30) if they "
        "are classes"
    )


def test_a_single_test_environment_may_be_a_word():
    assert arrays(test="east").test == ("east",)


def test_a_set_from_arrays_trains():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(60, 4))
    words = np.where(inputs[:, 0] > 0, "ill", "well")
    found = EnvironmentSet.from_arrays(inputs, words, rng.integers(0, 3, 60), test=(2,))
    result = envariant.train(found, "erm", model="linear", steps=3, evaluate_every=3)
    assert {row.environment for row in result.rows} >= {"0", "1", "2"}


class Streamed(IterableDataset):
    def __init__(self, items):
        self.items, self.reads = items, 0

    def __iter__(self):
        self.reads += 1
        return iter(self.items)


def test_each_dataset_is_an_environment_and_is_read_once():
    stream = Streamed([(np.ones(3), "cat"), (np.zeros(3), "dog"), (torch.ones(3), "cow")])
    found = EnvironmentSet.from_datasets(
        {"b": stream, "a": [([1, 2, 3], "cat", "more"), ([4, 5, 6], "cat", "more")]}, label="own", test="a"
    )
    assert found.names == ("b", "a")
    assert stream.reads == 1
    assert (found.task, found.classes) == (Multiclass(3), ("cat", "cow", "dog"))
    assert found["b"].targets.tolist() == [0, 2, 1]
    assert found["a"].inputs.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert found.roles() == {"b": "train", "a": "test"}


def test_pytorch_datasets_are_accepted():
    images, labels = torch.rand(5, 1, 4, 4), torch.tensor([0, 1, 0, 1, 1])
    found = EnvironmentSet.from_datasets(
        {"x": TensorDataset(images, labels), "y": TensorDataset(images, labels)}
    )
    assert torch.equal(found["x"].inputs, images)
    assert found["y"].targets.tolist() == [0, 1, 0, 1, 1]
    assert found.task == Binary()


def test_a_dataset_of_scalars_has_one_column():
    found = EnvironmentSet.from_datasets({"x": [(1.0, 0.5), (2.0, 0.7), (3.0, 0.1)]})
    assert found["x"].inputs.tolist() == [[1], [2], [3]]
    assert found.task == Regression()


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ({}, "datasets: has no environments"),
        ({"x": []}, "datasets: 'x': has no rows; leave it out"),
        ({"x": [5]}, "datasets: 'x': item 0 must be (input, target); got int"),
        ({"x": [([1.0, 2.0], 0), ([1.0], 1)]}, "datasets: 'x': item 1 has shape (1,), but earlier items have (2,)"),
        ({"x": [(["a"], 0)]}, "datasets: 'x': item 0 must be numbers in a tensor, an array or a list; encode words "
         "as numbers first"),
        ({"x": [([1.0], 0), ([2.0], 1)], "y": [([1.0, 2.0], 1)]},
         "datasets: environment 'y' has inputs of shape (2,), but 'x' has (1,)"),
    ],
)  # fmt: skip
def test_invalid_datasets_are_rejected(datasets, message):
    assert refusal(EnvironmentSet.from_datasets, datasets) == message


@pytest.mark.parametrize("count", [1, 4])
def test_items_larger_than_memory_are_one_line(count):
    huge = torch.zeros(1).expand(10**12)
    message = refusal(EnvironmentSet.from_datasets, {"x": [(huge, k % 2) for k in range(count)]})
    items = "1 item" if count == 1 else "4 items"
    start = f"memory: datasets: 'x': {items} of shape 1000000000000 would need at least {count * 4},000 GB, but only "
    assert message.startswith(start)
    assert message.endswith(" GB are free; use smaller or fewer items")


def test_iterables_larger_than_memory_are_one_line():
    part = torch.zeros(1).expand(10**9)
    message = refusal(EnvironmentSet.from_datasets, {"x": ((part, k % 2) for k in range(1000))})
    assert message.startswith("memory: datasets: 'x': 1,000 items of shape 1000000000 would need")


def test_images_need_a_transform():
    image = pytest.importorskip("PIL.Image").new("RGB", (4, 4))
    assert refusal(EnvironmentSet.from_datasets, {"x": [(image, 0)]}) == (
        "datasets: 'x': item 0 is an image; give the dataset a transform that converts images to tensors"
    )


class Lazy:
    """A column as Hugging Face gives it: neither a list nor an array."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, k):
        return self.values[k]


class Dataset:
    """As much of a Hugging Face dataset as is asked for."""

    def __init__(self, columns):
        self._columns = columns
        self.column_names = list(columns)

    def __getitem__(self, name):
        return Lazy(self._columns[name])


COLUMNS = {
    "age": [1, 2, 3, 4],
    "dose": [0.5, 0.1, 0.2, 0.9],
    "scan": [[[1, 2], [3, 4]]] * 4,
    "ill": ["no", "yes", "no", "yes"],
    "ward": ["b", "a", "b", "a"],
}


@pytest.mark.parametrize("kind", [Dataset, dict], ids=["huggingface", "dictionary"])
def test_columns_are_found_by_name(kind):
    read = EnvironmentSet.from_huggingface
    found = read(kind(COLUMNS), inputs=("age", "dose"), target="ill", environment="ward", test=("a",))
    assert found.names == ("a", "b")
    torch.testing.assert_close(found["a"].inputs, torch.tensor([[2, 0.1], [4, 0.9]]))
    assert found["a"].targets.tolist() == [1, 1]
    assert found.classes == ("no", "yes")
    assert read(kind(COLUMNS), inputs="scan", target="dose", environment="ward").input_shape == (2, 2)
    assert read(kind(COLUMNS), inputs="age", target="dose", environment="ward").input_shape == (1,)


@pytest.mark.parametrize("kind", [torch.tensor, np.array], ids=["torch", "numpy"])
def test_columns_may_hold_a_tensor_or_an_array_a_row(kind):
    numbers = {name: [kind(value) for value in COLUMNS[name]] for name in ("age", "dose", "scan")}
    made = Dataset(numbers | {"ward": COLUMNS["ward"]})
    found = EnvironmentSet.from_huggingface(made, inputs="scan", target="age", environment="ward")
    assert found["a"].inputs.tolist() == [[[1, 2], [3, 4]]] * 2
    assert found["a"].targets.tolist() == [1, 3]
    found = EnvironmentSet.from_huggingface(made, inputs=["dose"], target="age", environment="ward")
    torch.testing.assert_close(found["b"].inputs, torch.tensor([[0.5], [0.2]]))


def test_data_frames_are_accepted():
    frame = pd.DataFrame({name: COLUMNS[name] for name in ("age", "ill", "ward")})
    found = EnvironmentSet.from_huggingface(frame, inputs="age", target="ill", environment="ward")
    assert found["b"].inputs.tolist() == [[1], [3]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inputs": "aeg"}, "dataset: unknown column 'aeg'; did you mean 'age'? known: age, dose, ill, scan, ward"),
        ({"environment": "site"}, "dataset: unknown column 'site'; known: age, dose, ill, scan, ward"),
        ({"inputs": ()}, "dataset: inputs must name at least one column"),
        ({"inputs": ("age", "scan")}, "dataset: columns cannot be concatenated: 'age' (4, 1), 'scan' (4, 2, 2)"),
        ({"inputs": "ward"}, "dataset: column 'ward' must be numbers in a tensor, an array or a list; encode words "
         "as numbers first"),
    ],
)  # fmt: skip
def test_invalid_columns_are_rejected(settings, message):
    usual = {"inputs": "age", "target": "ill", "environment": "ward"}
    assert refusal(EnvironmentSet.from_huggingface, Dataset(COLUMNS), **(usual | settings)) == message


@pytest.mark.parametrize(
    ("first", "second", "how"),
    [
        ("Yes", "yes ", "blanks or character form"),
        ("Hospital A", "hospital a", "capitals"),
        ("Genève", "Geneve", "accents"),
        ("Zürich", "Zu\u0308rich", "blanks or character form"),
        ("São Paulo", "SAO PAULO", "accents, capitals or blanks"),
        ("Ａ", "A", "blanks or character form"),
    ],
)
def test_labels_that_look_alike_are_one_sentence(first, second, how):
    assert look_alikes([first, "x", second]) == [f"'{first}' and '{second}' differ in {how} only"]


@pytest.mark.parametrize("labels", [("か", "が"), ("हि", "हु"), ("A", "B"), ("1", "1.5"), ("A+", "A-")])
def test_other_labels_do_not_look_alike(labels):
    assert look_alikes(labels) == []


def test_names_of_datasets_and_new_names_that_look_alike_are_said():
    message = "environments: 'Site A' and 'site a' differ in capitals only, and are treated as different"
    rows = [(X[k], Y[k]) for k in range(3)]
    with pytest.warns(EnvariantWarning, match=f"datasets: {message}"):
        EnvironmentSet.from_datasets({"Site A": rows, "site a": rows})
    with pytest.warns(EnvariantWarning, match=f"arrays: {message}"):
        arrays(names={"north": "Site A", "south": "site a"})
