"""Tests of the data source whose environments are the groups of another source."""

import pytest
import torch

import envariant
from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Binary, Regression
from envariant.data import source
from envariant.data.by_group import ByGroup

COLORED = "colored-digits(label_noise=0, train_flips=[0.05, 0.1], test_flips=[0.5])"


def made(sizes, task=None, **attributes):
    """Two training environments and one test environment with the given class sizes, attribute = row % 2."""
    environments = []
    for name in ("a", "b", "c"):
        targets = torch.cat([torch.full((count,), float(k)) for k, count in enumerate(sizes)])
        rows = torch.arange(len(targets))
        inputs = torch.stack([rows + 100.0 * len(environments), targets], dim=1)
        environments.append(Environment(name, inputs, targets, {"sex": rows % 2, **attributes}))
    return EnvironmentSet("made", tuple(environments), task or Binary(), test=("c",))


def test_groups_partition_the_rows_by_class_and_attribute():
    whole, view = made([4, 7]), ByGroup(made([4, 7]), "sex").sample(0)
    assert sum(map(len, view.environments)) == sum(map(len, whole.environments))
    rows = torch.cat([each.inputs[:, 0] for each in view.environments]).sort()[0]
    assert torch.equal(rows, torch.cat([each.inputs[:, 0] for each in whole.environments]).sort()[0])
    for each in view.environments:
        words = dict(word.split("=") for word in each.name.rpartition(": ")[2].split())
        assert each.targets.unique().tolist() == [float(words["target"])]
        assert each.attributes["sex"].unique().tolist() == [int(words["sex"])]
    assert view.test == tuple(f"c: target={y} sex={a}" for y in (0, 1) for a in (0, 1))


def test_training_environments_are_pooled_and_test_environments_are_not():
    view = source(f"by-group('{COLORED}', color)").sample(0)
    whole = source(COLORED).sample(0)
    training = [e for name, role in whole.roles().items() for e in [whole[name]] if role == "train"]
    for y in (0, 1):
        for color in (0, 1):
            size = sum(int(((e.targets == y) & (e.attributes["color"] == color)).sum()) for e in training)
            assert len(view[f"target={y} color={color}"]) == size


def test_subsampled_groups_have_the_size_of_the_smallest_and_depend_on_the_seed():
    view = ByGroup(made([4, 31]), "sex", subsample=True)
    first, again, other = (view.sample(seed) for seed in (1, 1, 2))
    sizes = {name: len(first[name]) for name, role in first.roles().items() if role == "train"}
    assert set(sizes.values()) == {4}
    inputs = [torch.cat([e.inputs for e in each.environments]) for each in (first, again, other)]
    assert torch.equal(inputs[0], inputs[1])
    assert not torch.equal(inputs[0], inputs[2])
    # All rows of test environments are used.
    assert sum(len(first[name]) for name in first.test) == 35


def test_attribute_alone_defines_groups_of_a_regression():
    view = ByGroup(made([4, 7], Regression()), "sex", classes=False).sample(0)
    assert view.names == ("sex=0", "sex=1", "c: sex=0", "c: sex=1")


def test_erm_on_groups_weights_every_group_equally():
    """RWG: the gradient is that of the mean of the groups' risks (Idrissi et al. 2021)."""
    view = source(f"by-group('{COLORED}', color)")
    result = envariant.train(view, "erm", steps=1, model="linear", evaluate_every=1, progress=False)
    losses = [r.value for r in result.rows if r.step == 0 and r.role == "train" and r.metric == "loss"]
    sizes = [len(e) for e in view.sample(0).environments[:4]]
    risks = [r.value for r in result.rows if r.metric == "risk"]
    assert len(losses) == 4
    assert risks[0] == pytest.approx(sum(losses) / 4, rel=1e-5)
    # The groups differ in size, so that the mean over rows is another number.
    pooled = sum(n * loss for n, loss in zip(sizes, losses, strict=True)) / sum(sizes)
    assert risks[0] != pytest.approx(pooled, rel=1e-3)


def test_identity_depends_on_the_values_of_the_attributes():
    """Otherwise a study would reuse runs that were trained on other groups."""
    one, other = (made([4, 7], sex=torch.arange(11) % k) for k in (2, 3))
    assert ByGroup(one, "sex").identity() != ByGroup(other, "sex").identity()
    assert ByGroup(one, "sex").identity() == ByGroup(made([4, 7]), "sex").identity()


def test_name_rebuilds_the_source():
    view = source(f"by-group('{COLORED}', color, subsample=true)")
    assert source(view.name).identity() == view.identity()
    assert "subsample=true" in view.identity()


def test_boolean_attributes_are_groups_0_and_1():
    view = ByGroup(made([4, 7], sex=torch.arange(11) % 2 == 0), "sex", classes=False).sample(0)
    assert view.names[:2] == ("sex=0", "sex=1")


def test_weights_of_some_environments_only_are_an_error_and_other_attributes_are_left_out():
    def with_attribute(name, value):
        a, b, c = made([4, 7]).environments
        b = Environment("b", b.inputs, b.targets, {**b.attributes, name: value})
        return ByGroup(EnvironmentSet("made", (a, b, c), Binary(), test=("c",)), "sex")

    with pytest.raises(EnvariantError, match=r"^by-group: some training environments have .*'weight'"):
        with_attribute("weight", torch.ones(11)).sample(0)
    view = with_attribute("age", torch.ones(11)).sample(0)
    assert {tuple(view[name].attributes) for name in view.names if ":" not in name} == {("sex",)}


def test_values_are_counted_over_all_environments():
    parts = [
        Environment(str(k), torch.rand(20, 2), torch.arange(20) % 2, {"id": 20 * k + torch.arange(20)})
        for k in range(3)
    ]
    with pytest.raises(EnvariantError, match=r"attribute 'id' has 40 values; groups need at most 20"):
        ByGroup(EnvironmentSet("ids", tuple(parts), Binary(), test=("2",)), "id").sample(0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ByGroup(made([3, 3]), "gender").sample(0), r"attribute 'gender'.*sex"),
        (lambda: ByGroup(made([3, 3], Regression()), "sex").sample(0), r"set classes=false"),
        (
            lambda: ByGroup(made([3, 3], age=torch.rand(6)), "age").sample(0),
            r"attribute 'age' must be one whole number per row",
        ),
        (
            lambda: ByGroup(made([30, 30], age=torch.arange(60)), "age").sample(0),
            r"attribute 'age' has 60 values; groups need at most 20",
        ),
        (lambda: ByGroup(3, "sex"), r"by-group: source must be a data source or its name; got 3"),
    ],
)
def test_wrong_input_is_reported_in_one_line(make, message):
    with pytest.raises(EnvariantError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
