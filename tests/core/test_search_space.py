"""Ranges: every draw inside, every draw from the generator alone, every impossible range refused."""

import math
from typing import Annotated, ClassVar

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from envariant.core.errors import EnvariantError
from envariant.core.search_space import Choice, LogUniform, Uniform, UniformInteger, ranges, search_range

SEEDS = st.integers(0, 2**32)


def ordered(values):
    return st.tuples(values, values).filter(lambda pair: pair[0] < pair[1])


def draws(declared, seed, count=20):
    generator = np.random.default_rng(seed)
    return [declared.sample(generator) for _ in range(count)]


@given(ordered(st.floats(-1e9, 1e9)), SEEDS)
def test_uniform_samples_lie_in_range(bounds, seed):
    assert all(bounds[0] <= value <= bounds[1] for value in draws(Uniform(*bounds), seed))


@given(ordered(st.floats(1e-9, 1e9)), SEEDS)
@example((1e6, math.nextafter(1e6, 2e6)), 0)
def test_log_uniform_draws_lie_in_range(bounds, seed):
    assert all(bounds[0] <= value <= bounds[1] for value in draws(LogUniform(*bounds), seed))


@given(st.integers(-(10**9), 10**9), st.integers(0, 10**6), SEEDS)
def test_integer_samples_lie_in_range(low, width, seed):
    for value in draws(UniformInteger(low, low + width), seed):
        assert type(value) is int
        assert low <= value <= low + width


def test_all_integers_and_choices_are_sampled():
    assert set(draws(UniformInteger(2, 4), 0, 200)) == {2, 3, 4}
    assert set(draws(Choice(("a", "b", "c")), 0, 200)) == {"a", "b", "c"}
    assert set(draws(UniformInteger(7, 7), 0)) == {7}


def test_log_uniform_draws_are_uniform_in_the_logarithm():
    logs = np.log10(draws(LogUniform(1e2, 1e6), 0, 4000))
    counts, _ = np.histogram(logs, bins=4, range=(2, 6))
    assert np.abs(counts - 1000).max() < 4 * np.sqrt(4000 * 0.25 * 0.75)


@pytest.mark.parametrize(
    "declared", [Uniform(0, 1), LogUniform(1, 9), UniformInteger(0, 10**6), Choice(tuple(range(1000)))]
)
def test_samples_depend_on_the_generator_only(declared):
    assert draws(declared, 1) == draws(declared, 1) != draws(declared, 2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Uniform(1, 1), "Uniform: low must lie below high; got 1, 1"),
        (lambda: Uniform(float("nan"), 1), "Uniform: low must lie below high; got nan, 1"),
        (lambda: LogUniform(2, 1), "LogUniform: low must lie below high; got 2, 1"),
        (lambda: LogUniform(0, 1), "LogUniform: low must be positive; got 0"),
        (lambda: Choice(()), "Choice: needs at least one value"),
    ],
)
def test_an_invalid_range_is_rejected(build, message):
    with pytest.raises(EnvariantError) as refusal:
        build()
    assert str(refusal.value) == message


def test_an_invalid_integer_range_is_quoted_in_the_error():
    with pytest.raises(EnvariantError, match="got 5, 3"):
        UniformInteger(5, 3)


@pytest.mark.parametrize("bounds", [(0, float("inf")), (-float("inf"), 0)])
def test_an_infinite_range_is_rejected(bounds):
    with pytest.raises(EnvariantError, match=r"^Uniform: "):
        Uniform(*bounds)


def test_ranges_finds_the_declared_fields_and_only_those():
    class Settings:
        name: ClassVar[str] = "settings"
        plain: float = 1.0
        noted: Annotated[float, "no range"] = 1.0
        rate: Annotated[float, LogUniform(1e-4, 1)] = 0.1
        steps: Annotated[int, "noted", UniformInteger(1, 9)] = 5

    assert ranges(Settings) == {"rate": LogUniform(1e-4, 1), "steps": UniformInteger(1, 9)}


def test_ranges_are_inherited():
    class Base:
        rate: Annotated[float, Uniform(0, 1)] = 0.1

    class Derived(Base):
        size: Annotated[int, Choice((1, 2))] = 1

    assert ranges(Derived) == {"rate": Uniform(0, 1), "size": Choice((1, 2))}


def test_ranges_as_text():
    written = map(str, (Uniform(0, 0.5), LogUniform(1e2, 1e6), UniformInteger(1, 9), Choice((1, "a"))))
    assert list(written) == ["0 … 0.5", "100 … 1e+06, log", "1 … 9, whole", "1 | a"]


def test_search_range_reads_text_and_lists():
    assert search_range("loguniform(1e2, high=1e6)") == LogUniform(1e2, 1e6)
    assert search_range("uniform(0, 1)") == Uniform(0, 1)
    assert search_range("integer(1, 9)") == UniformInteger(1, 9)
    assert search_range([1, "a"]) == Choice((1, "a"))
    for wrong, message in (
        (3, "a range must be a list"),
        ("log", "unknown range 'log'"),
        ("integer(1)", "needs high"),
    ):
        with pytest.raises(EnvariantError, match=message):
            search_range(wrong)
