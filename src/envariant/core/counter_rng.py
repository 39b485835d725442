"""Random numbers by counting: each is a pure function of a seed, a step, a stream and its place in it.

No generator is carried along, so a resumed run, a replica in other company and a stack of a thousand
replicas draw the same numbers, and a whole stack draws with a handful of tensor operations. The mixing is
splitmix64's (Steele, Lea & Flood 2014); PyTorch has no unsigned integers of 64 bits with all operations,
so the same bits are kept in signed ones.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = (1 << 64) - 1


def mixed(z: int) -> int:
    """splitmix64's finalizer on one unsigned 64-bit number."""
    z &= _MASK
    z = ((z ^ (z >> 30)) * _FIRST) & _MASK
    z = ((z ^ (z >> 27)) * _SECOND) & _MASK
    return z ^ (z >> 31)


def step_key(seed: int, step: int) -> int:
    """The unsigned 64-bit key of one step, from which all its random numbers follow."""
    return mixed(seed + _GOLDEN * (step + 1))


def step_keys(
    seeds: Sequence[int], first: int, steps: int, device: torch.device
) -> Int[Tensor, "steps replicas"]:
    """The keys of `steps` steps from `first` on, for each seed."""
    counts = torch.arange(first + 1, first + 1 + steps, device=device)[:, None]
    return _mixed(torch.tensor(seeds, device=device) + counts * _signed(_GOLDEN))


def integers(
    keys: Int[Tensor, "*keys"], stream: int, below: Int[Tensor, " count"]
) -> Int[Tensor, "*keys count"]:
    """For every key, one number from 0 to `below - 1` for each entry of `below`.

    The remainder of 63 random bits: for a million rows it favors none by more than one in 10¹².
    """
    return _drawn(keys, stream, len(below)).bitwise_and(2**63 - 1) % below


def uniforms(keys: Int[Tensor, "*keys"], stream: int, count: int) -> Float[Tensor, "*keys count"]:
    """For every key, `count` numbers in [0, 1), multiples of 2⁻²⁴."""
    return _shifted(_drawn(keys, stream, count), 40).float() * 2.0**-24


def default_generator(device: torch.device) -> torch.Generator:
    """The generator from which modules on a device draw, unless they are given another."""
    if device.type == "cuda":
        # They exist only once CUDA has been started.
        torch.cuda.init()
        return torch.cuda.default_generators[device.index or 0]
    return torch.default_generator


@contextmanager
def private_random_numbers(seed: int, device: torch.device) -> Generator[None]:
    """Seeds PyTorch's default generators for the block and puts them back as they were.

    Modules draw initial weights and dropout from those; nobody else should notice.
    """
    # Weights may be drawn on the CPU whatever the device.
    generators = list({id(g): g for g in (torch.default_generator, default_generator(device))}.values())
    before = [generator.get_state() for generator in generators]
    for generator in generators:
        generator.manual_seed(seed)
    try:
        yield
    finally:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)


def _drawn(keys: Tensor, stream: int, count: int) -> Tensor:
    # Streams lie 2³² places apart: no step draws as many numbers from one.
    places = torch.arange(1, count + 1, device=keys.device) + (stream << 32)
    return _mixed(keys[..., None] + places * _signed(_GOLDEN))


def _mixed(z: Tensor) -> Tensor:
    z = (z ^ _shifted(z, 30)) * _signed(_FIRST)
    z = (z ^ _shifted(z, 27)) * _signed(_SECOND)
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, by: int) -> Tensor:
    """A shift to the right that brings in zeros, as of an unsigned number."""
    return (z >> by).bitwise_and((1 << (64 - by)) - 1)


def _signed(unsigned: int) -> int:
    return unsigned - (1 << 64) if unsigned >= 1 << 63 else unsigned
