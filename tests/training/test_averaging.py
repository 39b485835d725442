"""Weight averaging: the numbers of the papers, PyTorch's averages, SWAD against two other implementations."""

import copy
from collections import deque
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import envariant
from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.tasks import Binary
from envariant.training import checkpoint, engine
from envariant.training.averaging import EMA, SWA, SWAD, MovingAverage, averaging
from envariant.training.early_stopping import Patience
from envariant.training.engine import Evaluated
from envariant.training.execution import SEQUENTIAL, Execution
from envariant.training.keep_rules import KeepBest
from tests.training.test_stacking import made, plan, replicas

RISING = [1, 0.8, 0.6, 0.5, 0.45, 0.44, 0.40, 0.42, 0.41, 0.43, 0.46, 0.5, 0.55, 0.6, 0.7, 0.8, 0.9, 1]
EARLY = [0.5, 0.6, 0.7, 0.5, 0.45, 0.44, 0.5, 0.52, 0.6, 0.66]
STACKED = Execution("stacked", 100, "")


def averages(rule, iterates, losses=(), every=1):
    """Averages after each update (with losses, after each evaluation); iterate 0 is the initial weights."""
    state, found, evaluation = rule.init(iterates[0]), [], 0
    for step, params in enumerate(iterates):
        if step:
            state = rule.update(state, params, step)
        if len(losses) and step % every == 0 and evaluation < len(losses):
            state = rule.evaluate(state, params, torch.as_tensor(losses[evaluation]).double().reshape(-1))
            evaluation += 1
            if len(params) == 1 and rule.ended(state, 0):
                return [*found, state["average"]]
        found.append(state["average"])
    return found


def scalars(*values):
    return [torch.tensor([[float(value)]], dtype=torch.float64) for value in values]


def test_averages_of_scalars_are_those_of_the_papers():
    theta = scalars(0, 1, 2, 4, 8)
    assert [a.item() for a in averages(EMA(0.9), theta)[1:]] == pytest.approx([1, 1.1, 1.39, 2.051])
    mean = averages(SWA(start=0, every=1), theta)[1:]
    assert [a.item() for a in mean] == pytest.approx([1, 1.5, 7 / 3, 3.75])
    moving = averages(MovingAverage(start=100), scalars(*range(103)))
    assert [a.item() for a in moving[98:]] == [98, 99, 100, 100.5, 101]


@pytest.mark.parametrize("every", [1, 3])
def test_ema_and_swa_equal_pytorchs_averaged_model(every):
    generator = torch.Generator().manual_seed(0)
    iterates = torch.randn(13, 2, 5, generator=generator).unbind()
    ours = [averages(EMA(0.99), iterates)[-1], averages(SWA(start=1, every=every), iterates)[-1]]
    for k in range(2):
        module = nn.Linear(4, 1)
        theirs = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.99)), AveragedModel(module)
        for step, params in enumerate(iterates[1:], 1):
            nn.utils.vector_to_parameters(params[k], module.parameters())
            theirs[0].update_parameters(module)
            if (step - 1) % every == 0:
                theirs[1].update_parameters(module)
        for average, averaged in zip(ours, theirs, strict=True):
            vector = nn.utils.parameters_to_vector(averaged.parameters())
            torch.testing.assert_close(average[k], vector.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("losses", "n_tolerance", "every", "paper", "released", "dead"),
    [
        (RISING, 6, 10, range(6, 12), (4, 5, 6, 6, 7, 8, 9, 10, 11), 17),
        (RISING[:12], 6, 10, range(6, 12), (4, 5, 6, 6, 7, 8, 9, 10, 11), None),
        (EARLY, 6, 100, range(10), (1, 2, 0, 0, 0, *range(1, 10)), None),
        (RISING, 3, 10, range(6, 12), (7, 8, 9, 10, 11), 14),
    ],
)
def test_swad_of_the_table_of_losses(losses, n_tolerance, every, paper, released, dead):
    iterates = scalars(*range(every * len(losses)))
    for variant, segments in (("paper", paper), ("released", released)):
        rule = SWAD(n_tolerance=n_tolerance, variant=variant)
        mean = np.mean([0 if k == 0 else every * k - (every - 1) / 2 for k in segments])
        assert averages(rule, iterates, losses, every=every)[-1].item() == pytest.approx(mean, abs=1e-6)
        ended = [k for k in range(len(losses)) if rule.choose(losses[: k + 1])[2]]
        assert ended[:1] == ([] if dead is None else [dead])


def of_the_paper(losses, segments, n_s, n_e, ratio):
    """The rule of the paper, over the whole list of losses."""
    starts = [k for k in range(len(losses) - n_s + 1) if losses[k] <= min(losses[k : k + n_s])]
    if not starts:
        return segments[-1]
    start = starts[0]
    level = (1 + ratio) / n_s * sum(losses[start : start + n_s])
    ends = [k for k in range(start + 1, len(losses) - n_e + 1) if min(losses[k : k + n_e]) > level]
    return np.mean(segments[start : min([*ends, len(losses)])])


def of_the_code(losses, segments, n_s, n_e, ratio):
    """The queues of the released code (`LossValley`), one evaluation after the other."""
    converge, smooth, added, at, level = deque(maxlen=n_s), deque(maxlen=n_e), [], None, 0.0
    for k, loss in enumerate(losses):
        converge.append(k)
        smooth.append(k)
        if at is None:
            if len(converge) < n_s or np.argmin([losses[i] for i in converge]) != 0:
                continue
            at, level = converge[0], (1 + ratio) * np.mean([losses[i] for i in converge])
            if n_e < n_s:
                added += list(converge)[1 : n_s - n_e + 1]
            elif n_e > n_s:
                queue, first = list(smooth)[: n_e - n_s + 1], 0
                for i in reversed(range(len(queue))):
                    if losses[queue[i]] > level:
                        first = i + 1
                        break
                added += queue[first + 1 :]
            continue
        if smooth[0] < at:
            continue
        if min(losses[i] for i in smooth) > level:
            return np.mean([segments[i] for i in added or [at]])
        added.append(smooth[0])
        del loss
    if at is None:
        return segments[-1]
    smooth.popleft()
    while smooth and min(losses[i] for i in smooth) <= level:
        added.append(smooth.popleft())
    return np.mean([segments[i] for i in added or [at]])


@pytest.mark.parametrize(("variant", "other"), [("paper", of_the_paper), ("released", of_the_code)])
def test_swad_equals_a_second_implementation(variant, other):
    generator = np.random.default_rng(0)
    for _ in range(70):
        n_s, n_e = generator.integers(1, 5, 2).tolist()
        ratio, count = generator.choice([0.0, 0.1, 0.3]), int(generator.integers(1, 14))
        losses = generator.choice([0.3, 0.35, 0.4, 0.5, 0.6, 0.7], count).tolist()
        theta = generator.normal(size=2 * count - 1)
        segments = [theta[0], *((theta[2 * k - 1] + theta[2 * k]) / 2 for k in range(1, count))]
        rule = SWAD(n_s, n_e, float(ratio), variant)
        ours = averages(rule, scalars(*theta), losses, every=2)[-1].item()
        # Training stops at the end of the valley.
        dead = [k for k in range(count) if rule.choose(losses[: k + 1])[2]]
        until = dead[0] + 1 if dead else count
        assert ours == pytest.approx(other(losses[:until], segments[:until], n_s, n_e, ratio), abs=1e-9)


@pytest.mark.parametrize(
    "text", ["ema(0.9)", "ma(start=3)", "swa(start=2, every=2)", "swad(n_converge=2, n_tolerance=2)"]
)
def test_each_replica_is_averaged_for_itself(text):
    rule, generator = averaging(text), torch.Generator().manual_seed(1)
    assert rule is not None
    iterates = torch.randn(9, 3, 4, generator=generator).unbind()
    losses = torch.rand(5, 3, generator=generator)
    together = averages(rule, iterates, losses, every=2)[-1]
    for k in range(3):
        alone = averages(rule, [params[k : k + 1] for params in iterates], losses[:, k], every=2)
        ended = len(alone) < len(iterates)
        assert ended or torch.equal(alone[-1][0], together[k])


def validated() -> EnvironmentSet:
    source = made(Binary(), 1, sizes=(40, 30, 20))
    held = made(Binary(), 1, seed=3, sizes=(30, 1, 1))["a"]
    parts = (*source.environments, Environment("v", held.input_store.gather(), held.targets))
    return EnvironmentSet("made", parts, Binary(), test=("c",), validation=("v",))


def finished(source, members, shared, how, resume=()):
    events = [e for e in engine.run(source, members, shared, how, resume) if isinstance(e, Evaluated)]
    states = {k: s for e in events if e.finished for k, s in e.checkpoint().clone().states().items()}
    return [row for e in events for row in e.rows], states


RULES = [
    {"average": EMA(0.5)},
    {"average": SWAD(n_converge=2, n_tolerance=1, tolerance_ratio=0.0), "keep": KeepBest()},
    {"average": SWA(start=2, every=2), "keep": KeepBest("loss"), "stop_early": Patience(1)},
]


@pytest.mark.parametrize("rules", RULES)
def test_stacked_equals_sequential_and_a_resumed_run_is_bit_identical(rules, tmp_path):
    source, members = validated(), replicas("erm", 2, rates=(0.3, 0.01))
    shared = plan(steps=8, evaluate_every=2, batch_size=8, **rules)
    together, apart = (finished(source, members, shared, how) for how in (STACKED, SEQUENTIAL))
    for k, state in apart[1].items():
        assert (state.step, state.stopped) == (together[1][k].step, together[1][k].stopped)
        for name, value in state.params.items():
            torch.testing.assert_close(together[1][k].params[name], value, rtol=1e-4, atol=1e-5)
    for event in engine.run(source, members, shared, STACKED):
        if event.step == 5:
            checkpoint.save(event.checkpoint(), tmp_path)
            break
    rows, states = finished(source, members, shared, STACKED, checkpoint.load(tmp_path))
    assert rows == [row for row in together[0] if row.step > 4]
    for k, state in states.items():
        assert all(torch.equal(together[1][k].params[n], v) for n, v in state.params.items())


def test_the_average_is_evaluated_and_returned():
    options = {"model": "mlp(hidden=8)", "steps": 4, "batch_size": 8, "evaluate_every": 2, "progress": False}
    plain = envariant.train("colored-digits", "groupdro", keep="every(1)", **options)
    ours = envariant.train("colored-digits", "groupdro", average="ema(0.5)", **options)
    expected = plain.kept[1][0].params
    for step in (2, 3, 4):
        expected = {n: 0.5 * v + 0.5 * plain.kept[step][0].params[n] for n, v in expected.items()}
    for name, value in ours.model().named_parameters():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-6)
    inputs, targets = ours.sample["flip-0.9"].rows()
    with torch.no_grad():
        loss = F.binary_cross_entropy_with_logits(ours.model()(inputs)[:, 0], targets).item()
    assert ours.final("flip-0.9", "loss").mean == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("execution", ["sequential", "stacked"])
def test_batch_norm_statistics_are_those_of_the_averaged_weights(execution):
    def build():
        return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, momentum=0.3), nn.ReLU(), nn.Linear(5, 1))

    source = made(Binary(), 1)
    result = envariant.train(
        source, "erm", model=build, steps=5, learning_rate=0.1, batch_size="full", optimizer="adam",
        replicas=2, average="ema(0.9)", execution=execution, precision="float32", progress=False,
    )  # fmt: skip
    for k in range(2):
        theirs = result.model(k)
        ours = {name: value.clone() for name, value in theirs.named_buffers()}
        update_bn([torch.cat([source[name].inputs for name in "ab"])], theirs)
        for name in ("1.running_mean", "1.running_var"):
            torch.testing.assert_close(ours[name], theirs.get_buffer(name), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("execution", ["sequential", "stacked"])
def test_erm_plus_plus_equals_a_plain_loop(execution):
    """Two Adam optimizers of PyTorch, and the mean θ̃ ← (k·θ̃ + θ) / (k + 1) of the iterates from 4 on."""
    module = nn.Sequential()
    module.featurizer, module.head = nn.Linear(6, 5), nn.Linear(5, 1)
    source, rate, start = made(Binary(), 1), 0.05, copy.deepcopy(module)
    average = averaging("ma(start=599)").rescale(5000, 33)
    with pytest.warns(envariant.core.errors.EnvariantWarning, match="instead of its default average"):
        result = envariant.train(
            source, "erm++(head_steps=2)", model=module, steps=9, learning_rate=rate, batch_size="full",
            replicas=2, average=average, execution=execution, precision="float32", progress=False,
        )  # fmt: skip
    optimizers = [torch.optim.Adam(each.parameters(), lr=rate) for each in (start.head, start)]
    mean, k = [p.detach().clone() for p in start.parameters()], 0
    for update in range(1, 10):
        start.zero_grad()
        losses = [
            F.binary_cross_entropy_with_logits(start(source[e].inputs)[:, 0], source[e].targets) for e in "ab"
        ]
        torch.stack(losses).mean().backward()
        optimizers[update - 1 > 2].step()
        k = k + 1 if update >= 5 else 0
        mean = [(k * m + p.detach()) / (k + 1) for m, p in zip(mean, start.parameters(), strict=True)]
    for ours, theirs in zip(result.model(1).parameters(), mean, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_own_average_of_an_algorithm_is_replaced_with_a_remark():
    with pytest.warns(
        envariant.core.errors.EnvariantWarning, match=r"erm\+\+: predicts with ema\(0.9\) instead of"
    ):
        envariant.train("colored-digits", "erm++", average="ema(0.9)", steps=2, model="mlp(hidden=4)")


def test_percentages_become_step_numbers():
    assert str(averaging("swa(start=50%, every=10%)").resolve(40)) == "swa(start=20, every=4)"
    assert replace(averaging("ma(start=25%)"), start=3) == MovingAverage(3)
