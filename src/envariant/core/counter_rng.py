"""Counter-based random number generator: a pure function of seed, step, stream and index.

There is no generator state. A replica therefore gets the same numbers whether it runs alone, in a stack of
replicas, or in a resumed run. The numbers for a whole stack are computed in a few tensor operations. The
mixing function is that of splitmix64 (Steele, Lea & Flood 2014). Unsigned 64-bit integers are stored as
signed integers, because PyTorch lacks many operations on unsigned integers.
"""

import random
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = (1 << 64) - 1
# Truth values per random number.
_LANES = 4
# Random numbers that are computed together. On a CPU, the intermediate results of a block stay in its cache.
_BLOCK, _GPU_BLOCK = 1 << 14, 1 << 28


def mixed(z: int) -> int:
    """Apply the finalizer of splitmix64 to an unsigned 64-bit number."""
    z &= _MASK
    z = ((z ^ (z >> 30)) * _FIRST) & _MASK
    z = ((z ^ (z >> 27)) * _SECOND) & _MASK
    return z ^ (z >> 31)


def step_key(seed: int, step: int) -> int:
    """Return the unsigned 64-bit key that determines all random numbers of one step of a run."""
    return mixed(seed + _GOLDEN * (step + 1))


def step_keys(
    seeds: Sequence[int], first: int, steps: int, device: torch.device
) -> Int[Tensor, "steps replicas"]:
    """Return the random-number keys of consecutive steps for several seeds, `[steps, replicas]`."""
    counts = torch.arange(first + 1, first + 1 + steps, device=device)[:, None]
    return _mixed(torch.tensor(seeds, device=device) + counts * _signed(_GOLDEN))


def integers(
    keys: Int[Tensor, "*keys"], stream: int, below: Int[Tensor, " count"]
) -> Int[Tensor, "*keys count"]:
    """Return one random integer from 0 to `below - 1` for every key and every entry of `below`.

    Each integer is a random 63-bit number modulo the entry of `below`. For entries up to a million, the
    probabilities of any two integers differ by less than 10⁻¹².

    Args:
        keys: Keys returned by `step_keys`.
        stream: Number of the stream; different streams have independent numbers.
        below: Exclusive upper bounds of the integers.
    """
    return _drawn(keys, stream, len(below)).bitwise_and(2**63 - 1) % below


def uniforms(keys: Int[Tensor, "*keys"], stream: int, count: int) -> Float[Tensor, "*keys count"]:
    """Return `count` random numbers in [0, 1) for every key; all are multiples of 2⁻²⁴.

    Args:
        keys: Keys returned by `step_keys`.
        stream: Number of the stream; different streams have independent numbers.
        count: Number of values per key.
    """
    return _shifted(_drawn(keys, stream, count), 40).float() * 2.0**-24


def coins(
    key: Int[Tensor, ""], stream: int, rows: int, width: int, probability: float, *, first_row: int = 0
) -> Bool[Tensor, "rows width"]:
    """Return random truth values, `[rows, width]`.

    The values of a row depend on its index, counted from `first_row`, but not on the number of rows. Each
    64-bit random number gives four values, so the probability is rounded to a multiple of 2⁻¹⁶, at most
    1 − 2⁻¹⁶.

    Args:
        key: Key of the step.
        stream: Number of the stream; different streams have independent numbers.
        rows: Number of rows.
        width: Number of values per row.
        probability: Probability of True.
        first_row: Index of the first row.
    """
    words = -(-width // _LANES)
    # Compared with signed 16-bit numbers, whose type cannot hold 2¹⁵.
    limit = min(round(probability * 2**16), 2**16 - 1) - 2**15
    return _coin_operation()(key, (stream << 32) + first_row * words, rows, words, limit)[:, :width]


@cache
def _coin_operation() -> Any:
    """Register `_coins` as one operation of PyTorch, and return it.

    A recorded step then has one node per mask instead of a dozen per block.
    """
    name = "envariant::coins"
    torch.library.define(name, "(Tensor keys, int first, int rows, int words, int limit) -> Tensor")
    torch.library.impl(name, "CompositeExplicitAutograd")(_coins)
    operation = torch.ops.envariant.coins

    def shape(keys: Tensor, first: int, rows: int, words: int, limit: int) -> Tensor:
        return keys.new_empty((*keys.shape, rows, words * _LANES), dtype=torch.bool)

    def over_keys(info: Any, axes: tuple[int, ...], keys: Tensor, *numbers: int) -> tuple[Tensor, int]:
        return operation(keys.movedim(axes[0], 0), *numbers), 0

    torch.library.register_fake(name)(shape)
    torch.library.register_vmap(name, over_keys)
    return operation


def _coins(keys: Tensor, first: int, rows: int, words: int, limit: int) -> Tensor:
    """Return truth values for every key, `[*keys, rows, 4 · words]`, from the position `first` on."""
    shape = (*keys.shape, rows, words * _LANES)
    drawn = torch.empty(shape, dtype=torch.bool, device=keys.device)
    block = _BLOCK if keys.device.type == "cpu" else _GPU_BLOCK
    height = max(1, block // max(1, keys.numel() * words))
    ramp = torch.arange(1, min(height, rows) * words + 1, device=keys.device).mul_(_signed(_GOLDEN))
    for start in range(0, rows, height):
        some = drawn[..., start : start + height, :]
        origin = keys + _signed((first + start * words) * _GOLDEN & _MASK)
        bits = _mixed(origin[..., None] + ramp[: some.shape[-2] * words])
        torch.lt(bits.view(torch.int16).view(some.shape), limit, out=some)
    return drawn


def default_generator(device: torch.device) -> torch.Generator:
    """Return the default random generator of PyTorch for a device."""
    if device.type == "cuda":
        # CUDA generators exist only after initialization.
        torch.cuda.init()
        return torch.cuda.default_generators[device.index or 0]
    return torch.default_generator


@contextmanager
def private_random_numbers(seed: int, device: torch.device) -> Generator[None]:
    """Seed PyTorch's default generators within a `with` block, and restore their state afterwards.

    PyTorch modules use these generators for initial weights and dropout masks.
    """
    # Initial weights may be sampled on the CPU even if the device is a GPU.
    generators = list({id(g): g for g in (torch.default_generator, default_generator(device))}.values())
    before = [generator.get_state() for generator in generators]
    for generator in generators:
        generator.manual_seed(seed)
    try:
        yield
    finally:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)


def other_generators() -> tuple[object, ...]:
    """Return the states of the global random generators of Python and NumPy."""
    state: Any = np.random.get_state(legacy=False)
    return random.getstate(), state["state"]["key"].tobytes(), state["state"]["pos"]


def _drawn(keys: Tensor, stream: int, count: int) -> Tensor:
    # Streams are 2³² positions apart: no step uses that many numbers of one stream.
    positions = torch.arange(1, count + 1, device=keys.device) + (stream << 32)
    return _mixed(keys[..., None] + positions.mul_(_signed(_GOLDEN)))


def _mixed(z: Tensor) -> Tensor:
    """Apply the finalizer of splitmix64 to all numbers of a tensor, in place."""
    z.bitwise_xor_(_shifted(z, 30)).mul_(_signed(_FIRST))
    z.bitwise_xor_(_shifted(z, 27)).mul_(_signed(_SECOND))
    return z.bitwise_xor_(_shifted(z, 31))


def _shifted(z: Tensor, by: int) -> Tensor:
    """Shift the bits of unsigned numbers to the right, filling with zeros."""
    return (z >> by).bitwise_and_((1 << (64 - by)) - 1)


def _signed(unsigned: int) -> int:
    return unsigned - (1 << 64) if unsigned >= 1 << 63 else unsigned
