"""Schedules: finite at every step, equal to their formulas, and unchanged by a round trip through text."""

import math
import re
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from envariant.core.errors import EnvariantError
from envariant.core.schedules import (
    CAP,
    SCHEDULES,
    Constant,
    Cosine,
    CosineRestarts,
    Exponential,
    Linear,
    OneCycle,
    Polynomial,
    Stages,
    Step,
    schedule,
)
from envariant.core.specs import Percent

NUMBERS = st.floats(-CAP, CAP) | st.integers(-(10**12), 10**12)
SWITCHES = st.integers(0, 10**6)
RISING = st.lists(SWITCHES, unique=True, max_size=4).map(lambda at: tuple(sorted(at)))
PERCENTS = st.builds(Percent, st.integers(0, 100) | st.floats(0, 100))

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
    st.builds(
        lambda value, end, warmup, length, start, offset: Cosine(
            value, end, warmup, warmup + length, start, offset
        ),
        NUMBERS, NUMBERS, SWITCHES, st.integers(1, 10**6), st.floats(0, 1), st.sampled_from([0, 1]),
    ),
    st.builds(CosineRestarts, NUMBERS, st.integers(1, 10**6), st.integers(1, 3), NUMBERS, SWITCHES),
    st.builds(
        OneCycle, NUMBERS, st.floats(0, 1), st.floats(1, CAP), st.floats(1, CAP), st.integers(1, 10**6)
    ),
)  # fmt: skip


RELATIVE = st.one_of(
    st.builds(Step, NUMBERS, NUMBERS, PERCENTS),
    st.lists(PERCENTS, unique=True, min_size=1, max_size=4).flatmap(
        lambda at: st.lists(NUMBERS, min_size=len(at) + 1, max_size=len(at) + 1).map(
            lambda values: Stages(tuple(values), tuple(sorted(at, key=lambda point: point.value)))
        )
    ),
    st.builds(lambda start, end, until: Linear(start, end, until), NUMBERS, NUMBERS, PERCENTS.filter(lambda p: p.value > 0)),
    st.builds(lambda start, end, at: Linear(start, end, max(at), min(at)), NUMBERS, NUMBERS,
              st.lists(st.integers(0, 100), min_size=2, max_size=2, unique=True)).map(
        lambda s: Linear(s.start, s.end, Percent(s.until), Percent(s.after))
    ),
    st.builds(Polynomial, NUMBERS, st.floats(-9, 9), PERCENTS, NUMBERS),
    st.builds(Exponential, NUMBERS, st.floats(0.5, 2), PERCENTS, NUMBERS),
    st.builds(lambda value, end, warmup: Cosine(value, end, Percent(warmup)), NUMBERS, NUMBERS, st.integers(0, 99)),
    st.builds(CosineRestarts, NUMBERS, PERCENTS, st.integers(1, 3), NUMBERS, SWITCHES),
    st.builds(OneCycle, NUMBERS, until=PERCENTS.filter(lambda p: p.value > 0)),
)  # fmt: skip


def test_the_strategy_covers_every_schedule_there_is():
    assert set(SCHEDULES.values()) == {
        Constant, Step, Stages, Linear, Polynomial, Exponential, Cosine, CosineRestarts, OneCycle
    }  # fmt: skip


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
def test_text_round_trip_preserves_a_schedule(s, step):
    read = schedule(str(s))
    assert read == s
    assert read(step) == s(step)


@given(RELATIVE)
def test_text_round_trip_preserves_relative_switch_points(s):
    assert schedule(str(s)) == s
    assert schedule(str(s)).is_relative


@given(SCHEDULE, st.integers(1, 10**6))
def test_absolute_schedules_do_not_depend_on_the_run_length(s, steps):
    assert s.resolve(steps) is s
    assert not s.is_relative


def nearest_step(percent, steps):
    """Round a share of the run to the nearest step, halves up, in exact arithmetic of the written decimals."""
    return (2 * Fraction(percent.value) * steps + 100) // 200


@given(RELATIVE.filter(lambda s: not isinstance(s, Stages)), st.integers(1, 10**6))
def test_relative_switch_points_become_the_nearest_step(s, steps):
    resolved = s.resolve(steps)
    assert type(resolved) is type(s)
    for key in s.switch_fields:
        before, after = getattr(s, key), getattr(resolved, key)
        if isinstance(before, Percent):
            expected = nearest_step(before, steps)
            exact = Fraction(before.value) * steps / 100
            # A ramp, a period and a cycle take at least one step; floats may round an exact half either way.
            assert (
                after == expected
                or (after == 1 > expected and not isinstance(s, Linear))
                or (key == "warmup" and after == resolved.until - 1)
                or (key == "until" and after == resolved.after + 1)
                or abs(exact - after) <= Fraction(1, 2) + Fraction(1, 10**6)
            )
        else:
            assert after == before


@pytest.mark.parametrize(
    ("text", "steps", "resolved"),
    [
        ("step(1, 1e4, at=40%)", 500, "step(1, 10000, at=200)"),
        ("step(1, 1e4, at=12.5%)", 100, "step(1, 10000, at=13)"),
        ("step(1, 1e4, at=0%)", 100, "step(1, 10000, at=0)"),
        ("step(1, 1e4, at=100%)", 100, "step(1, 10000, at=100)"),
        ("stages(1, 2, 3, at=(10%, 50%))", 200, "stages(1, 2, 3, at=(20, 100))"),
        ("stages(1, 2, at=50%)", 7, "stages(1, 2, at=(4,))"),
        ("stages(1, 2, 3, at=(10, 50%))", 200, "stages(1, 2, 3, at=(10, 100))"),
        ("stages(1, 2, 3, at=(1%, 2%))", 10, "stages(1, 3, at=(0,))"),
        ("linear(0, 1, until=100%)", 300, "linear(start=0, end=1, until=300, after=0)"),
        ("linear(0, 1, until=20%, after=10%)", 300, "linear(start=0, end=1, until=60, after=30)"),
        ("linear(0, 1, until=20%, after=10%)", 2, "linear(start=0, end=1, until=1, after=0)"),
        ("poly(k=1, p=3, after=25%)", 400, "poly(k=1, p=3, after=100, before=1)"),
        ("exp(1, 1.1, after=25%)", 400, "exp(start=1, factor=1.1, after=100, before=1)"),
    ],
)
def test_resolve_examples(text, steps, resolved):
    assert str(schedule(text).resolve(steps)) == resolved


@given(RELATIVE, st.integers(0, 1000))
def test_an_unresolved_schedule_cannot_be_evaluated(s, step):
    with pytest.raises(EnvariantError, match=r"% depends on the run's length; call resolve\(steps\) first$"):
        s(step)
    if not isinstance(s, Linear) or isinstance(s.after, Percent):
        with pytest.raises(EnvariantError, match=r"call resolve"):
            _ = s.switch_points


@pytest.mark.parametrize(
    "text",
    [
        "stages(1, 2, 3, at=(190, 40%))",
        "linear(0, 1, until=40%, after=190)",
        "linear(0, 1, until=10, after=40%)",
    ],
)
def test_switch_points_out_of_order_in_a_short_run_are_rejected(text):
    with pytest.raises(EnvariantError, match=rf"^{re.escape(str(schedule(text)))} in a run of 100 steps: "):
        schedule(text).resolve(100)
    assert schedule(text).resolve(1000 if "until=10," not in text else 2)


DISTINCT = st.one_of(
    st.builds(Constant, st.just(5)),
    st.builds(Step, st.just(1), st.just(2), SWITCHES | PERCENTS),
    RISING.map(lambda at: Stages(tuple(range(len(at) + 1)), at)),
    st.builds(
        Linear, st.just(1), st.just(2), st.integers(101, 200) | st.just(Percent(100)), st.integers(0, 100)
    ).filter(lambda s: isinstance(s.until, int) or s.after < 50),
    st.builds(Polynomial, st.just(3), st.just(1), st.integers(1, 100) | PERCENTS, st.just(2)),
    st.builds(Exponential, st.just(3), st.just(1.1), st.integers(1, 100) | PERCENTS, st.just(2)),
    st.builds(OneCycle, st.just(3)),
)


@given(DISTINCT, st.integers(51, 150))
@example(Linear(1, 2, until=200, after=99), 100)
@example(Linear(1, 2, until=200, after=98), 100)
@example(Step(1, 2, at=100), 100)
@example(Step(1, 2, at=99), 100)
@example(Stages((1, 2, 3), at=(50, 120)), 100)
def test_takes_effect_within_agrees_with_the_values_of_every_step(s, steps):
    values = [s.resolve(steps)(t) for t in range(steps)]
    if isinstance(s, Stages):
        reached = s.values[-1] in values
    elif isinstance(s, Constant):
        reached = True
    else:
        # A switch at the very first step leaves no value before it.
        reached = len(set(values)) > 1 or s.resolve(steps).switch_points == (0,)
    assert s.takes_effect_within(steps) == reached


def test_with_final_value_replaces_the_last_value_only():
    assert Constant(1).with_final_value(7) == Constant(7)
    assert Step(1, 2, at=3).with_final_value(7) == Step(1, 7, at=3)
    assert Stages((1, 2, 3), (4, 5)).with_final_value(7) == Stages((1, 2, 7), (4, 5))
    assert Linear(1, 2, until=9, after=3).with_final_value(7) == Linear(1, 7, until=9, after=3)
    assert Polynomial(1, 2).with_final_value(7) is Exponential(1, 2).with_final_value(7) is None


def test_schedules_are_built_from_schedules_numbers_and_text():
    assert schedule(3.5) == schedule("3.5") == schedule("constant(3.5)") == Constant(3.5)
    step = Step(1, 1e4, at=190)
    assert schedule(step) is step
    assert schedule("step(1, 1e4, at=190)") == schedule("step(before=1, after=1e4, at=190)") == step
    assert schedule("stages(1, 2, at=5)") == schedule("stages((1, 2), at=(5,))") == Stages((1, 2), (5,))


def test_a_step_switches_at_its_switch_point():
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


def test_linear_interpolates_and_is_constant_outside():
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
         "known: constant, cosine, cosine-restarts, exp, linear, one-cycle, poly, stages, step"),
        ("poly(k=1, p=3, aftr=190)", "poly: unknown setting 'aftr'; did you mean 'after'? "
         "known: after, before, k, p"),
        ("step(1)", "step: needs after, at, as in step(after=…)"),
        ("step(1, 2, 3, 4)", "step: takes at most 3 unnamed values; got 4"),
        ("step(1, 2, 3, at=3)", "step: 'at' is given twice"),
        ("step(1, much, at=3)", "step: after must be a number; got much"),
        ("true", "constant: value must be a number; got 'true'"),
        ("none", "constant: value must be a number; got 'none'"),
        ("constant(step(1, 2, at=3))", "constant: value must be a number; got step(1, 2, at=3)"),
        ("inf", "constant: value must lie within ±1e+12; got inf"),
        ("-2e12", "constant: value must lie within ±1e+12; got -2000000000000.0"),
        ("stages(1, 2, at=(2, 3))", "stages: 'at' must contain increasing step numbers, one fewer than there are values; "
         "got 2 values and at=(2, 3)"),
        ("stages(1, 2, 3, at=(3, 2))", "stages: 'at' must contain increasing step numbers, one fewer than there are values; "
         "got 3 values and at=(3, 2)"),
        ("stages(1, 2, 3, at=(2, 2))", "stages: 'at' must contain increasing step numbers, one fewer than there are values; "
         "got 3 values and at=(2, 2)"),
        ("linear(1, 2, until=5, after=5)", "linear: 'until' must exceed 'after'; got 5 and 5"),
        ("exp(1, 0)", "exp: factor must be positive; got 0"),
        ("40%", "constant: value must be a number; got '40%'"),
        ("step(1, 40%, at=3)", "step: after must be a number; got 40%"),
        ("step(1, 2, at=140%)", "a percentage must be in [0, 100], got 140%"),
        ("step(1, 2, at=-4%)", "cannot read 'step(1, 2, at=-4%)': expected numbers, words, tuples or "
         "name(key=value, …)"),
        ("step(1, 2, at=1.5)", "step: at must be a step number, or a share of the run such as 40%; got 1.5"),
        ("linear(1, 2, until=5%, after=5%)", "linear: 'until' must exceed 'after'; got 5% and 5%"),
        ("stages(1, 2, 3, at=(30%, 20%))", "stages: 'at' must contain increasing step numbers, one fewer than there are values; "
         "got 3 values and at=(30%, 20%)"),
        ("linear(1, 0, until=5, warmup=7)", "linear: 'until' must exceed 'warmup'; got 5 and 7"),
        ("cosine(1, warmup=7, until=7)", "cosine: 'until' must exceed 'warmup'; got 7 and 7"),
        ("cosine(1, start=2)", "cosine: start must be in [0, 1], got 2"),
        ("cosine(1, offset=2)", "cosine: offset must be 0 or 1, got 2"),
        ("cosine-restarts(1, period=0)", "cosine-restarts: period must be at least 1 step, got 0"),
        ("cosine-restarts(1, 5, factor=1.5)", "cosine-restarts: factor must be a whole number; got 1.5"),
        ("cosine-restarts(1, 5, factor=0)", "cosine-restarts: factor must be a whole number of at least 1, got 0"),
        ("one-cycle(1, share=2)", "one-cycle: share must be in [0, 1], got 2"),
        ("one-cycle(1, div=0)", "one-cycle: div must be at least 1, got 0"),
        ("one-cycle(1, until=0)", "one-cycle: until must be at least 1 step, got 0"),
        ("1 +", "cannot read '1 +': expected name or name(key=value, …)"),
    ],
)  # fmt: skip
def test_an_invalid_schedule_is_rejected(text, message):
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
def test_tuples_and_numbers_are_not_interchangeable(text):
    with pytest.raises(EnvariantError, match=r"must be|needs"):
        schedule(text)(0)


@pytest.mark.parametrize(
    ("text", "old", "new", "scaled"),
    [
        ("step(1, 1e4, at=190)", 501, 150, "step(1, 10000, at=57)"),
        ("step(1, 1e4, at=190)", 501, 1002, "step(1, 10000, at=380)"),
        ("stages(1, 2, 3, at=(100, 200))", 400, 100, "stages(1, 2, 3, at=(25, 50))"),
        # Stages without steps are skipped.
        ("stages(1, 2, 3, at=(100, 101))", 400, 4, "stages(1, 3, at=(1,))"),
        ("linear(0, 1, until=100, after=50)", 100, 10, "linear(start=0, end=1, until=10, after=5)"),
        ("poly(k=1, p=2, after=190)", 500, 50, "poly(k=1, p=2, after=19, before=1)"),
        ("exp(1, 1.1, after=190)", 500, 50, "exp(start=1, factor=1.1, after=19, before=1)"),
        # A switch point near the end stays within the run.
        ("step(1, 2, at=499)", 500, 10, "step(1, 2, at=9)"),
        ("cosine(1, warmup=100)", 500, 50, "cosine(1, warmup=10, until=50)"),
        # Shares of the run, and points that the longer run does not reach, stay as they are.
        ("step(1, 2, at=40%)", 500, 50, "step(1, 2, at=40%)"),
        ("step(1, 2, at=600)", 500, 50, "step(1, 2, at=600)"),
        ("3", 500, 50, "3"),
        ("step(1, 2, at=7)", 50, 50, "step(1, 2, at=7)"),
    ],
)
def test_rescaled_schedule_switches_at_the_same_share_of_the_run(text, old, new, scaled):
    assert str(schedule(text).rescale(old, new)) == scaled


def test_rate_schedules_equal_the_numbers_of_the_specification():
    """Values of the specification, B.7: learning rate 0.1, 10 updates."""

    def values(text, steps):
        return [schedule(text).resolve(10)(t) for t in steps]

    near = {"rel": 0, "abs": 1e-9}
    assert values("cosine(0.1)", (0, 1, 5, 9, 10)) == pytest.approx(
        [0.1, 0.0975528258, 0.05, 0.0024471742, 0], **near
    )
    eqrm = [0.0975528258, 0.0904508497, 0.0345491503, 0]
    assert values("cosine(0.1, offset=1)", (0, 1, 5, 9)) == pytest.approx(eqrm, **near)
    assert schedule("cosine(0.1, warmup=400, start=1, offset=1)").resolve(600)(599) == 0
    warm = [0.0333333333, 0.0666666667, 0.1, 0.1, 0.0950484434, 0.0811744901]
    assert values("cosine(0.1, warmup=3)", range(6)) == pytest.approx(warm, **near)
    assert values("cosine(0.1, warmup=30%)", range(6)) == pytest.approx(warm, **near)
    linear = [0.025, 0.05, 0.075, 0.1, 0.0950484434]
    assert values("cosine(0.1, warmup=3, start=0.25)", range(5)) == pytest.approx(linear, **near)
    assert values("one-cycle(0.1)", (0, 1, 2, 3, 9)) == pytest.approx(
        [0.004, 0.052, 0.1, 0.0950484632, 4e-7], **near
    )
    restarts = [0.1, 0.0853553391, 0.05, 0.0146446609, 0.1, 0.0961939766]
    assert values("cosine-restarts(0.1, 4, factor=2)", range(6)) == pytest.approx(restarts, **near)
    decay = [0.1 * min((t + 1) / 3, max(0, (10 - t) / 7)) for t in range(11)]
    assert values("linear(0.1, 0, warmup=3)", range(11)) == pytest.approx(decay, **near)


@pytest.mark.parametrize("steps", [1, 2, 7, 25, 40])
def test_rate_schedules_equal_those_of_pytorch(steps):
    ours = torch.optim.lr_scheduler

    def warm(optimizer):
        parts = [
            ours.LinearLR(optimizer, 0.25, total_iters=5),
            ours.CosineAnnealingLR(optimizer, max(1, steps - 5), 0.01),
        ]
        return ours.SequentialLR(optimizer, parts, [5])

    cases = {
        "cosine(0.1)": lambda o: ours.CosineAnnealingLR(o, steps),
        "cosine(0.1, end=0.02)": lambda o: ours.CosineAnnealingLR(o, steps, 0.02),
        "one-cycle(0.1)": lambda o: ours.OneCycleLR(o, 0.1, total_steps=steps),
        "one-cycle(0.1, share=0.5, div=10, final_div=100)": lambda o: ours.OneCycleLR(
            o, 0.1, total_steps=steps, pct_start=0.5, div_factor=10, final_div_factor=100
        ),
        "cosine-restarts(0.1, 3)": lambda o: ours.CosineAnnealingWarmRestarts(o, 3),
        "cosine-restarts(0.1, 2, factor=3, end=0.03)": lambda o: ours.CosineAnnealingWarmRestarts(
            o, 2, 3, 0.03
        ),
        "linear(0.1, 0.02)": lambda o: ours.LinearLR(o, 1.0, 0.2, total_iters=steps),
        "step(0.1, 0.01, at=4)": lambda o: ours.MultiStepLR(o, [4]),
    } | ({"cosine(0.1, 0.01, warmup=5, start=0.25)": warm} if steps > 5 else {})
    for text, theirs in cases.items():
        if steps <= 2 and "share" in text:
            continue  # PyTorch divides by 0.
        parameter = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
        scheduler = theirs(optimizer)
        rates = []
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if len(rates) < steps:
                scheduler.step()
        course = schedule(text).resolve(steps)
        assert [course(t) for t in range(steps)] == pytest.approx(rates, rel=0, abs=1e-12), text


def test_a_warmup_longer_than_the_run_is_rejected():
    with pytest.raises(EnvariantError) as refusal:
        schedule("cosine(5e-5, warmup=100)").resolve(50)
    assert str(refusal.value) == (
        "cosine(5e-05, warmup=100) in a run of 50 steps: cosine: 'until' must exceed 'warmup'; got 50 and 100"
    )
