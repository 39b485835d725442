"""Checks that a data source has the properties required by training and studies."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from envariant.core.environments import EnvironmentSet, EnvironmentSource
from envariant.testing.problem import require


def check_source(source: EnvironmentSource, seeds: Sequence[int] = (0, 1)) -> None:
    """Check that a data source has the properties that training and studies require.

    Args:
        source: Data source to check. The data are loaded several times.
        seeds: Seeds passed to `source.sample`.

    Raises:
        AssertionError: If a property is violated; the message names it.

    Example:
        >>> from envariant.data import colored_digits
        >>> check_source(colored_digits())
    """
    name = source.name
    require(bool(name) and name.isprintable(), f"{name!r}: name must be one line of printable text")
    before = source.identity()
    generators = _global_generators()
    sets: list[EnvironmentSet] = []
    prints: list[str] = []
    for seed in seeds:
        sets.append(source.sample(seed))
        prints.append(sets[-1].fingerprint())
    for seed, fingerprint in zip(seeds, prints, strict=True):
        require(
            source.sample(seed).fingerprint() == fingerprint,
            f"{name}: sample({seed}) must return bit-identical data at every call",
        )
    for seed, each, fingerprint in zip(seeds, sets, prints, strict=True):
        require(
            each.fingerprint() == fingerprint,
            f"{name}: later calls of sample must not change the data that sample({seed}) returned",
        )
    require(
        _global_generators() == generators,
        f"{name}: sample must draw random numbers from its seed, not from a global generator",
    )
    require(
        source.identity() == before == copy.deepcopy(source).identity(),
        f"{name}: identity must be the same for a copy, and after sampling",
    )
    first = sets[0]
    for each in sets:
        _check_environments(name, each)
        require(
            (each.names, each.task, each.input_shape, each.roles())
            == (first.names, first.task, first.input_shape, first.roles()),
            f"{name}: every seed must give the same environment names, roles, task and input shape",
        )
    _check_roles(source, first)


def _check_environments(name: str, data: EnvironmentSet) -> None:
    for environment in data.environments:
        where = f"{name}: environment '{environment.name}'"
        require(environment.name.isprintable(), f"{name}: environment names must be printable text")
        inputs, targets = environment.rows()
        require(
            len(inputs) == len(targets) == len(environment) > 0,
            f"{where}: inputs and targets must have the same number of rows, and at least one",
        )
        require(
            inputs.shape[1:] == data.input_shape, f"{where}: inputs must have the shape {data.input_shape}"
        )
        require(bool(inputs.isfinite().all()), f"{where}: inputs must be finite")
        require(
            torch.equal(data.task.cast(targets, where), targets),
            f"{where}: targets must be those of the task {data.task.name}",
        )


def _check_roles(source: EnvironmentSource, data: EnvironmentSet) -> None:
    name, roles = source.name, data.roles()
    require(
        set(roles.values()) <= {"train", "validation", "test"} and "train" in roles.values(),
        f"{name}: roles must be train, validation or test, with at least one train, got {roles}",
    )
    training = [environment for environment, role in roles.items() if role == "train"]
    if len(training) > 1:
        test = (training[-1],)
        held_out = source.with_test_environments(test).sample(0)
        require(
            held_out.names == data.names and held_out.roles(test)[test[0]] == "test",
            f"{name}: with_test_environments({test}) must keep the environments and their names",
        )


def _global_generators() -> tuple[list[int], str]:
    state: dict[str, Any] = np.random.get_state(legacy=False)
    return torch.get_rng_state().tolist(), str((state["state"]["key"].tolist(), state["state"]["pos"]))
