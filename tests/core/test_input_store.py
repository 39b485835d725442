"""Input stores: bytes that are decoded when they are used give the bits of the same inputs as float32."""

import pytest
import torch

import envariant
from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.core.input_store import ByteStore, FloatStore
from envariant.core.tasks import Binary
from envariant.data.validation_split import ValidationSplit
from envariant.training.batch_sampler import Rows, StackingError

CPU = torch.device("cpu")
MEAN, DEVIATION = (0.4, 0.5), (0.2, 0.3)


def pixels(seed=0, rows=60):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (rows, 2, 14, 14), dtype=torch.uint8, generator=generator)


def by_hand(values, normalized=True):
    inputs = values.float() / 255
    if not normalized:
        return inputs
    return (inputs - torch.tensor(MEAN).view(2, 1, 1)) / torch.tensor(DEVIATION).view(2, 1, 1)


def pair(as_bytes, seed=0) -> EnvironmentSet:
    """The same images as bytes or as floats that were decoded by hand."""
    parts = []
    for k, name in enumerate("abc"):
        values = pixels(3 * seed + k)
        inputs = ByteStore(values, MEAN, DEVIATION) if as_bytes else by_hand(values)
        parts.append(Environment(name, inputs, (values[:, 0, 0, 0] > 127).float()))
    return EnvironmentSet("images", tuple(parts), Binary(), test=("c",))


class Source(envariant.EnvironmentSource):
    """New images for every seed."""

    name = "images"

    def __init__(self, as_bytes):
        self.as_bytes = as_bytes

    def sample(self, seed):
        return pair(self.as_bytes, seed % 97)


@pytest.mark.parametrize("normalized", [True, False])
def test_bytes_are_decoded_as_by_hand(normalized):
    values = pixels()
    store = ByteStore(values, MEAN, DEVIATION) if normalized else ByteStore(values)
    index = torch.tensor([5, 0, 5])
    assert torch.equal(store.decode(store.gather()), by_hand(values, normalized))
    assert torch.equal(store.decode(store.gather(index)), by_hand(values[index], normalized))
    stacked = torch.stack([values, values.flip(0)])
    assert torch.equal(store.decode(stacked)[1], by_hand(values.flip(0), normalized)), "replicas first"
    assert (len(store), store.shape, store.dtype) == (60, (2, 14, 14), torch.uint8)
    selected = store.select(index)
    assert torch.equal(selected.gather(), values[index])
    assert selected.encoding == store.encoding


def test_environment_of_bytes_looks_like_one_of_floats():
    ours, theirs = pair(True)["a"], pair(False)["a"]
    assert torch.equal(ours.inputs, theirs.inputs)
    index = torch.tensor([3, 1])
    for a, b in zip(ours.rows(index), theirs.rows(index), strict=True):
        assert torch.equal(a, b)
    assert ours.input_store.gather().dtype == torch.uint8
    some = ours.select(index, name="some", origin="a")
    assert (some.name, some.origin, some.input_store.dtype) == ("some", "a", torch.uint8)
    assert torch.equal(some.inputs, theirs.inputs[index])
    assert pair(True).input_shape == (2, 14, 14)


def test_held_out_rows_stay_bytes():
    split = ValidationSplit(pair(True), 0.25).sample(0)
    assert {e.input_store.dtype for e in split.environments} == {torch.uint8}
    assert [e.origin for e in split.environments if "held-out" in e.name] == ["a", "b"]


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 16},
        {"batch_size": "full"},
        {"batch_size": 16, "augmentation": "affine(rotation=15)"},
        {"batch_size": "full", "precision": "bfloat16"},
        {"batch_size": 16, "execution": "stacked"},
        {"batch_size": "full", "execution": "stacked"},
        {"batch_size": 16, "holdout_fraction": 0.2},
        {"algorithm": "eiil", "batch_size": "full"},
        {"init": "rfc(first_steps=2, steps=3, synthesis_steps=3)", "batch_size": "full"},
    ],
    ids=str,
)
@pytest.mark.parametrize("fixed", [True, False], ids=["fixed", "drawn"])
def test_training_on_bytes_is_bit_identical_to_training_on_floats(settings, fixed):
    call = {
        "algorithm": "irm",
        "model": "mlp(hidden=8)",
        "steps": 4,
        "replicas": 2,
        "execution": "sequential",
    }
    ours, theirs = (
        envariant.train(pair(as_bytes) if fixed else Source(as_bytes), **{**call, **settings})
        for as_bytes in (True, False)
    )
    assert ours.rows == theirs.rows
    for k, state in theirs.checkpoints.items():
        assert all(torch.equal(ours.checkpoints[k].params[n], v) for n, v in state.params.items())


def test_rows_of_bytes_take_a_quarter_of_the_memory():
    sizes = {}
    for as_bytes in (True, False):
        data = pair(as_bytes)
        inputs, _ = Rows([data, data], data.roles(), CPU).of(["a", "b", "c"])
        sizes[as_bytes] = inputs.untyped_storage().nbytes()
    assert 4 * sizes[True] == sizes[False]


def test_fingerprints_tell_encodings_apart():
    def fingerprint(*arguments):
        environment = Environment("a", ByteStore(pixels(), *arguments), torch.arange(60) % 2)
        return EnvironmentSet("s", (environment,), Binary()).fingerprint()

    assert fingerprint(MEAN, DEVIATION) == fingerprint(MEAN, DEVIATION)
    assert len({fingerprint(MEAN, DEVIATION), fingerprint(MEAN), fingerprint()}) == 3
    assert pair(False).fingerprint() != pair(True).fingerprint()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: ByteStore(torch.zeros(3, 2)),
            "ByteStore: values must be uint8 of shape [rows, …]; got torch.float32",
        ),
        (lambda: ByteStore(pixels(), (0.5,)), "mean must have one number per channel, 2 of them; got 1"),
        (lambda: ByteStore(pixels(), MEAN, (0.0, 1.0)), "deviation must be above 0"),
        (
            lambda: EnvironmentSet(
                "mixed",
                (
                    Environment("a", ByteStore(pixels()), torch.arange(60) % 2),
                    Environment("b", by_hand(pixels()), torch.arange(60) % 2),
                ),
                Binary(),
            ),
            "mixed: environments 'a' and 'b' store their inputs with different data types or normalization",
        ),
    ],
)
def test_invalid_store_is_rejected(call, message):
    with pytest.raises(EnvariantError) as error:
        call()
    assert message in str(error.value)


def test_draws_with_different_encodings_are_not_stacked():
    sets = [
        EnvironmentSet("s", (Environment("a", ByteStore(pixels(), mean), torch.arange(60) % 2),), Binary())
        for mean in (MEAN, None)
    ]
    with pytest.raises(StackingError, match="in different ways"):
        Rows(sets, {"a": "train"}, CPU)


def test_float_inputs_are_not_copied():
    inputs = torch.rand(4, 3)
    environment = Environment("a", FloatStore(inputs), torch.arange(4))
    assert environment.inputs is inputs
    assert environment.rows()[0] is inputs
