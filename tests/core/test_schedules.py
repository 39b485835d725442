"""Schedules: finite everywhere, exact where a formula says so, and the same after a trip through text."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from envariant.core.errors import EnvariantError
from envariant.core.schedules import (
    CAP,
    SCHEDULES,
    Constant,
    Exponential,
    Linear,
    Polynomial,
    Stages,
    Step,
    schedule,
)

NUMBERS = st.floats(-CAP, CAP) | st.integers(-(10**12), 10**12)
SWITCHES = st.integers(0, 10**6)
RISING = st.lists(SWITCHES, unique=True, max_size=4).map(lambda at: tuple(sorted(at)))

SCHEDULE = st.one_of(
    st.builds(Constant, NUMBERS),
    st.builds(Step, NUMBERS, NUMBERS, SWITCHES),
    RISING.flatmap(
        lambda at: st.lists(NUMBERS, min_size=len(at) + 1, max_size=len(at) + 1).map(
            lambda values: Stages(tuple(values), at)
        )
    ),
    st.builds(
        lambda start, end, after, length: Linear(start, end, after + length, after),
        NUMBERS, NUMBERS, SWITCHES, st.integers(1, 10**6),
    ),
    st.builds(Polynomial, NUMBERS, NUMBERS | st.floats(-9, 9), SWITCHES, NUMBERS),
    st.builds(
        Exponential, NUMBERS, st.floats(0, CAP, exclude_min=True) | st.floats(0.5, 2), SWITCHES, NUMBERS
    ),
)  # fmt: skip


def test_the_strategy_covers_every_schedule_there_is():
    assert set(SCHEDULES.values()) == {Constant, Step, Stages, Linear, Polynomial, Exponential}


@given(SCHEDULE, st.integers(0, 10**9))
@example(Polynomial(1, -1), 0)
@example(Polynomial(-CAP, CAP), 10**9)
@example(Exponential(CAP, CAP), 10**9)
@example(Exponential(1, 5e-324), 10**9)
@example(Linear(CAP, CAP, 13), 5)
def test_every_schedule_is_finite_and_within_the_cap_at_every_step(s, step):
    for t in (0, step, 10**9):
        assert -CAP <= s(t) <= CAP


@given(SCHEDULE, st.integers(0, 10**6))
def test_a_schedule_written_down_is_read_back(s, step):
    read = schedule(str(s))
    assert read == s
    assert read(step) == s(step)


def test_a_schedule_a_number_and_a_string_all_name_a_schedule():
    assert schedule(3.5) == schedule("3.5") == schedule("constant(3.5)") == Constant(3.5)
    step = Step(1, 1e4, at=190)
    assert schedule(step) is step
    assert schedule("step(1, 1e4, at=190)") == schedule("step(before=1, after=1e4, at=190)") == step
    assert schedule("stages(1, 2, at=5)") == schedule("stages((1, 2), at=(5,))") == Stages((1, 2), (5,))


def test_a_step_switches_at_its_step():
    s = Step(1, 91257.18613115903, at=190)
    assert [s(0), s(189), s(190), s(10**9)] == [1, 1, 91257.18613115903, 91257.18613115903]


def test_the_reports_three_stages():
    s = schedule("stages(1, 1e4, 1e6, at=(190, 400))")
    assert [s(t) for t in (0, 189, 190, 399, 400, 10**9)] == [1, 1, 1e4, 1e4, 1e6, 1e6]


@pytest.mark.parametrize("k", [1, 0.5, -2])
@pytest.mark.parametrize("p", [0, 1, 1.6, 3])
def test_the_reports_polynomial_is_k_times_the_step_to_the_p(k, p):
    s = Polynomial(k, p, after=190)
    assert [s(0), s(189)] == [1, 1]
    for t in (190, 191, 500):
        assert s(t) == pytest.approx(k * t**p, rel=1e-12)


def test_a_polynomial_from_the_first_step_starts_at_its_limit():
    assert Polynomial(5, 2)(0) == 0
    assert Polynomial(5, 0)(0) == pytest.approx(5)
    assert Polynomial(5, -1)(0) == CAP
    assert Polynomial(0, -1)(0) == 0
    assert Polynomial(1, 9)(10**6) == CAP


def test_a_line_goes_straight_from_start_to_end_and_is_flat_outside():
    s = Linear(2, 10, until=30, after=10)
    assert [s(t) for t in (0, 10, 15, 20, 30, 10**9)] == [2, 2, 4, 6, 10, 10]


def test_an_exponential_grows_by_its_factor_until_the_cap():
    s = Exponential(3, 1.1, after=100, before=7)
    assert [s(0), s(99)] == [7, 7]
    assert [s(100), s(110)] == pytest.approx([3, 3 * 1.1**10], rel=1e-12)
    reached = 100 + math.ceil(math.log(CAP / 3) / math.log(1.1))
    assert s(reached - 1) < CAP
    assert s(reached) == s(10**9) == CAP
    assert Exponential(-3, 1.1)(10**9) == -CAP
    assert Exponential(3, 0.9)(10**9) == 0


def test_the_cap_squared_fits_in_a_float32():
    assert CAP**2 < 3.4e38


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stpe(1, 2, at=3)", "unknown schedule 'stpe'; did you mean 'step'? "
         "known: constant, exp, linear, poly, stages, step"),
        ("poly(k=1, p=3, aftr=190)", "poly: unknown setting 'aftr'; did you mean 'after'? "
         "known: after, before, k, p"),
        ("step(1)", "step: needs after, at, as in step(after=…)"),
        ("step(1, 2, 3, 4)", "step: takes at most 3 values without a key; got 4"),
        ("step(1, 2, 3, at=3)", "step: 'at' is given twice"),
        ("step(1, much, at=3)", "step: after must be a number; got much"),
        ("true", "constant: value must be a number; got 'true'"),
        ("none", "constant: value must be a number; got 'none'"),
        ("constant(step(1, 2, at=3))", "constant: value must be a number; got step(1, 2, at=3)"),
        ("inf", "constant: value must lie within ±1e+12; got inf"),
        ("-2e12", "constant: value must lie within ±1e+12; got -2000000000000.0"),
        ("stages(1, 2, at=(2, 3))", "stages: needs one rising switch step fewer than values; "
         "got 2 values and at=(2, 3)"),
        ("stages(1, 2, 3, at=(3, 2))", "stages: needs one rising switch step fewer than values; "
         "got 3 values and at=(3, 2)"),
        ("stages(1, 2, 3, at=(2, 2))", "stages: needs one rising switch step fewer than values; "
         "got 3 values and at=(2, 2)"),
        ("linear(1, 2, until=5, after=5)", "linear: until must exceed after; got 5 and 5"),
        ("exp(1, 0)", "exp: factor must be positive; got 0"),
        ("1 +", "cannot read '1 +': expected name or name(key=value, …)"),
    ],
)  # fmt: skip
def test_a_schedule_that_cannot_be_is_refused(text, message):
    with pytest.raises(EnvariantError) as refusal:
        schedule(text)
    assert str(refusal.value) == message


@pytest.mark.parametrize(
    "text",
    [
        "(1, 2)",
        "constant((1, 2))",
        "step(1, 2, at=(3, 4))",
        "poly(k=1, p=2, after=(1,))",
        "stages(values=5, at=())",
        "stages(1, 2, at=1.5)",
    ],
)
def test_a_tuple_is_no_number_and_a_number_no_tuple(text):
    with pytest.raises(EnvariantError, match=r"must be|needs"):
        schedule(text)(0)
