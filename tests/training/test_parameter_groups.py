"""Learning rates and weight decays by parameter group: against PyTorch's parameter groups."""

import pytest
import torch
from torch import nn

import envariant
from envariant.core.environments import EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.core.schedules import Constant, schedule
from envariant.core.tasks import Binary
from envariant.training.optimizers import StackedOptimizer, optimizer_config
from envariant.training.parameter_groups import ByGroup, ParameterGroups, norms_and_biases, segmented
from envariant.training.run_spec import RunSpec


def data(seed=0) -> EnvironmentSet:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(40, 3, generator=generator)
    return EnvironmentSet.from_arrays(inputs, (inputs[:, 0] > 0).float(), ["a", "b"] * 20, task=Binary())


class Normed(nn.Module):
    """A network with a normalization layer and its own names."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh())
        self.head = nn.Linear(4, 1)

    def forward(self, inputs):
        return self.head(self.body(inputs))


def test_texts_and_mappings_are_one_value():
    text = 'groups(("layers.0", 0.5), featurizer=1e-05, head=one-cycle(0.001, until=50%), others=0.01)'
    spec = RunSpec(data="x", learning_rate=text)
    expected = {
        "layers.0": 0.5,
        "featurizer": 1e-5,
        "head": schedule("one-cycle(0.001, until=50%)"),
        "others": 1e-2,
    }
    assert spec.learning_rate == RunSpec(data="x", learning_rate=expected).learning_rate
    assert spec.learning_rate == ByGroup((*list(expected.items())[:3],), 1e-2)
    stored = spec.to_dict()["learning_rate"]
    assert RunSpec(data="x", learning_rate=stored).learning_rate == spec.learning_rate
    assert str(spec.learning_rate.resolve(40)).endswith("head=one-cycle(0.001, until=20), others=0.01)")
    assert RunSpec(data="x", weight_decay="0.1").weight_decay == 0.1
    assert RunSpec(data="x", weight_decay={"head": "0.1"}).weight_decay == ByGroup((("head", 0.1),))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": {}}, "learning_rate must name at least one group, as in groups(featurizer=1e-5, head=1e-3); got {}"),
        ({"learning_rate": {"head": -1}}, "learning_rate of the group 'head' must be a finite number above 0; got {'head': -1}"),
        ({"learning_rate": {"head": "fast"}}, "learning_rate of the group 'head' must be a number or a schedule (unknown schedule 'fast'"),
        ({"learning_rate": {"head": 0.0}}, "learning_rate must be above 0 in at least one group"),
        ({"learning_rate": {3: 1.0}}, "learning_rate must give every group by name"),
        ({"learning_rate": "groups(1e-3)"}, "learning_rate must give every group by name"),
        ({"learning_rate": "groups(('a', 1), a=2)"}, "learning_rate must give every group once; 'a' is given twice"),
        ({"learning_rate": "groups(head=)"}, "learning_rate is not readable (cannot read 'groups(head=)'"),
        ({"weight_decay": "groups(head=-1)"}, "weight_decay of the group 'head' must be at least 0; got 'groups(head=-1)'"),
        ({"weight_decay": {"head": "cosine(1)"}}, "weight_decay of the group 'head' must be a number"),
        ({"decay_weights_only": 1}, "decay_weights_only must be true or false; got 1"),
    ],
)  # fmt: skip
def test_invalid_group_is_one_sentence(options, message):
    with pytest.raises(EnvariantError) as refusal:
        RunSpec(data="x", **options)
    assert str(refusal.value).startswith(message)
    assert "\n" not in str(refusal.value)


NAMES = ("body.0.weight", "body.0.bias", "body.10.weight", "head.weight", "head.bias")


def test_the_longest_name_decides():
    groups = ByGroup((("body.0", 2.0), ("body", 1.0), ("head.bias", 3.0)), 4.0)
    assert list(groups.of(NAMES, "x").values()) == [2.0, 2.0, 1.0, 4.0, 3.0]
    features = ByGroup((("featurizer", 1.0), ("head", 2.0)))
    assert list(features.of(NAMES, "x").values()) == [1.0, 1.0, 1.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"heda": 1.0}, "x: no parameter of the model belongs to the group 'heda'; did you mean 'head'? "
         "groups are body, head, and the beginnings of parameter names"),
        ({"body.1": 1.0}, "x: no parameter of the model belongs to the group 'body.1'; did you mean"),
        ({"head": 1.0}, "x: no group contains body.0.weight, body.0.bias, body.10.weight; add a value for all "
         "other parameters, such as others=1e-3"),
    ],
)  # fmt: skip
def test_unknown_groups_and_parameters_without_group_are_named(groups, message):
    with pytest.raises(EnvariantError) as refusal:
        ByGroup(tuple(groups.items())).of(NAMES, "x")
    assert str(refusal.value).startswith(message)


def test_adjacent_parameters_with_equal_values_form_one_segment():
    first = [(0.1, 0.0), (0.1, 0.0), (0.2, 0.0), (0.2, 0.0)]
    second = [(0.3, 0.0), (0.3, 0.0), (0.3, 0.0), (0.3, 1.0)]
    rates, decays, counts = segmented([first, second])
    assert (rates, decays) == ([(0.1, 0.2, 0.2), (0.3, 0.3, 0.3)], [(0.0, 0.0, 0.0), (0.0, 0.0, 1.0)])
    assert counts == [2, 1, 1]
    assert segmented([first[:2], second[:2]])[2] == [2], "without groups, all parameters are one segment"


def test_norms_and_biases_are_found_by_shape_and_layer():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.LayerNorm([2, 4, 4]), nn.Linear(3, 1))
    found = norms_and_biases(module, dict(module.named_parameters()))
    assert found == {"0.bias", "1.weight", "1.bias", "2.weight", "2.bias", "3.bias"}


@pytest.mark.parametrize("cls", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.ASGD])
def test_every_segment_is_updated_as_by_pytorchs_parameter_groups(cls):
    """Two replicas, three segments, one learning rate a schedule; the optimizer is rebuilt after two steps."""
    course = schedule("cosine(0.1, until=5)")
    rates = [(0.1, course, 0.02), (0.3, 0.05, course)]
    decays = [(0.0, 0.1, 0.2), (0.3, 0.0, 0.1)]
    shapes = [torch.Size([2, 2]), torch.Size([2]), torch.Size([3]), torch.Size([1])]
    ours = torch.linspace(-2, 2, 20).view(2, 10)
    theirs = [
        [part.view(s).clone() for part, s in zip(row.split([4, 2, 3, 1]), shapes, strict=True)]
        for row in ours
    ]
    optimizers = [
        cls([{"params": p, "lr": 0.1, "weight_decay": d} for p, d in zip((parts[:1], parts[1:3], parts[3:]), own, strict=True)])
        for parts, own in zip(theirs, decays, strict=True)
    ]  # fmt: skip

    def built():
        return StackedOptimizer(optimizer_config(cls), ours, rates, decays, shapes, [1, 2, 1])

    updates = built()
    for step in range(4):
        if step == 2:
            state = {key: value.clone() for key, value in updates.state().items()}
            (updates := built()).load(state)
        gradients = torch.sin(torch.arange(20.0) + step).view(2, 10)
        updates.apply(gradients, torch.ones(2, dtype=torch.bool), step)
        for parts, optimizer, gradient, own in zip(theirs, optimizers, gradients, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, own, strict=True):
                group["lr"] = rate(step) if callable(rate) else rate
            for part, values in zip(parts, gradient.split([4, 2, 3, 1]), strict=True):
                part.grad = values.view(part.shape).clone()
            optimizer.step()
    expected = torch.stack([torch.cat([p.flatten() for p in parts]) for parts in theirs])
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


GROUPS = {
    "learning_rate": {"body": "cosine(0.05, warmup=1)", "head": 0.01},
    "weight_decay": {"body.0": 0.5, "head": 0.2},
    "decay_weights_only": True,
}


def test_training_with_groups_equals_a_plain_loop():
    environments, module = data(), Normed()
    start = {name: value.detach().clone() for name, value in module.named_parameters()}
    result = envariant.train(
        environments, "erm", model=module, steps=5, optimizer="adamw", test_environments=(), precision="float32",
        progress=False, **GROUPS,
    )  # fmt: skip
    module.load_state_dict(start)
    own = dict(module.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [own["body.0.weight"]], "weight_decay": 0.5, "lr": 0.05},
            {"params": [own["head.weight"]], "weight_decay": 0.2, "lr": 0.01},
            {
                "params": [own[f"body.{k}"] for k in ("0.bias", "1.weight", "1.bias")],
                "weight_decay": 0.0,
                "lr": 0.05,
            },
            {"params": [own["head.bias"]], "weight_decay": 0.0, "lr": 0.01},
        ]
    )
    course = schedule("cosine(0.05, warmup=1)").resolve(5)
    inputs, targets = (
        torch.cat(parts) for parts in zip(*(e.rows() for e in environments.environments), strict=True)
    )
    for step in range(5):
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[2]["lr"] = course(step)
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(module(inputs)[:, 0], targets).backward()
        optimizer.step()
    for name, value in own.items():
        torch.testing.assert_close(result.checkpoints[0].params[name], value.detach(), rtol=1e-5, atol=1e-6)


def test_stacked_and_sequential_agree():
    options = {
        "model": "mlp(hidden=4)", "steps": 4, "replicas": 2, "test_environments": (), "precision": "float32",
        "learning_rate": {"featurizer": "cosine(0.05, warmup=1)", "head": 0.01},
        "weight_decay": {"featurizer": 0.5}, "decay_weights_only": True, "progress": False,
    }  # fmt: skip
    both = [envariant.train(data(), "vrex", execution=how, **options) for how in ("stacked", "sequential")]
    for k in range(2):
        for name, value in both[0].checkpoints[k].params.items():
            torch.testing.assert_close(value, both[1].checkpoints[k].params[name], rtol=1e-4, atol=1e-5)


def test_auxiliary_networks_are_in_no_group():
    module, groups = Normed(), ParameterGroups(ByGroup((("body", 1.0), ("head", 2.0))), weights_only=True)
    params = {**dict(module.named_parameters()), "critic.bias": torch.zeros(3)}
    assigned = dict(zip(params, groups.assigned(module, params, ["critic"], 9.0, 0.5), strict=True))
    assert assigned["critic.bias"] == (9.0, 0.5)
    assert assigned["body.1.weight"] == (1.0, 0.0)
    assert assigned["head.weight"] == (2.0, 0.5)


def test_equal_values_in_all_groups_keep_the_bits_of_one_value():
    options = {"model": "mlp(hidden=4)", "steps": 5, "test_environments": (), "progress": False}
    plain = envariant.train(data(), "erm", learning_rate=0.01, weight_decay=0.1, **options)
    grouped = envariant.train(
        data(), "erm", learning_rate={"featurizer": 0.01, "head": Constant(0.01)},
        weight_decay={"featurizer": 0.1, "head": 0.1}, **options,
    )  # fmt: skip
    for name, value in plain.checkpoints[0].params.items():
        assert torch.equal(value, grouped.checkpoints[0].params[name])


def test_steps_that_update_weights_themselves_take_no_groups():
    with pytest.raises(EnvariantError, match="remove optimizer, weight_decay and learning rates by group"):
        envariant.train("colored-digits", "dann", learning_rate={"head": 0.1, "others": 0.1}, progress=False)


def test_a_schedule_of_a_group_that_never_takes_effect_is_reported():
    rates = {"head": "step(1e-3, 1e-4, at=50)", "others": 1e-3}
    with pytest.warns(
        envariant.core.errors.EnvariantWarning, match="learning_rate of head: step.* changes only after"
    ):
        envariant.train("colored-digits", "erm", learning_rate=rates, steps=2, model="linear", progress=False)
