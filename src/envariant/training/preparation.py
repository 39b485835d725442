"""What comes before a replica's first step: weights to start from, and environments that are yet to be found.

Both need models of their own, which train as any other, on the replica's own training rows and from its
own seeds; so a replica's start follows from its seeds, and need not be stored.
"""

import itertools
from collections.abc import Callable
from dataclasses import replace

import torch

from envariant.algorithms import Composition, Mean
from envariant.algorithms.contract import Inference
from envariant.environments import Environment, EnvironmentSet, EnvironmentSource
from envariant.errors import EnvariantError
from envariant.training.group import Group
from envariant.training.initialisers import Fit, Fitted, Initialiser
from envariant.training.plan import Plan
from envariant.training.replicas import Replica, Start


def prepared(
    replica: Replica,
    source: EnvironmentSource,
    plan: Plan,
    initialiser: Initialiser | None,
    told: Callable[[int, int, int], None],
) -> Replica:
    """The replica, with its start where it needs one; nothing is trained before that is asked for.

    Args:
        replica: which one.
        source: where it draws its data.
        plan: of the run.
        initialiser: of its weights, if any.
        told: is called at every step with the replica's number, how many were made and how many there are.
    """
    inference = replica.algorithm.finds_environments
    if inference is None and initialiser is None:
        return replica

    def start() -> Start:
        drawn = source.draw(replica.seeds.data)
        roles = drawn.roles(plan.test)
        training = tuple(e for e in drawn.environments if roles[e.name] == "train")
        own = EnvironmentSet(drawn.label, training, drawn.task)
        steps = 0 if inference is None else inference.reference_steps or plan.steps
        steps += 0 if initialiser is None else initialiser.total_steps
        made = itertools.count(1)
        fit = fitting(replica, plan, lambda: told(replica.index, next(made), steps))
        found = None if inference is None else _inferred(own, inference, fit, plan.steps)
        params = {} if initialiser is None else initialiser.weights(own, fit, replica.seeds.order)
        return Start(params, found)

    return replace(replica, prepared=start)


def fitting(replica: Replica, plan: Plan, stepped: Callable[[], None] = lambda: None) -> Fit:
    """Trains one more model of the run's kind, from the replica's seeds and at its learning rate.

    Args:
        replica: which one.
        plan: of the run.
        stepped: is called after every step.
    """

    def fit(environments: EnvironmentSet, algorithm: Composition, steps: int) -> Fitted:
        own = replace(replica, algorithm=algorithm, weight_decay=0.0, prepared=None)
        alone = replace(plan, steps=steps, test=(), freeze=None, evaluate_every=steps, compiled=False)
        group = Group(environments, (own,), alone)
        for _ in range(steps):
            group.advance()
            stepped()
        rows = group.measure()
        state = group.checkpoint().states()[replica.index]
        if group.failed or state.failure is not None or not rows:
            raise EnvariantError(f"replica {replica.index}: before its first step, {state.failure}")
        weights = {**state.params, **state.buffers}
        return Fitted(weights, lambda inputs: group.outputs(inputs)[0].to(inputs.device))

    return fit


def _inferred(own: EnvironmentSet, inference: Inference, fit: Fit, steps: int) -> EnvironmentSet:
    """The rows of all training environments, dealt out anew by a first model's answers."""
    reference = fit(
        own, Composition(Mean(over="rows"), l2=inference.reference_l2), inference.reference_steps or steps
    )
    inputs, targets = (torch.cat(parts) for parts in zip(*(e.rows() for e in own.environments), strict=True))
    owners = inference.environments(reference.logits(inputs), targets, own.task)
    found: list[Environment] = []
    for number in range(inference.count):
        index = (owners == number).nonzero().flatten()
        if not len(index):
            raise EnvariantError(
                f"{inference.name}: the first model is right everywhere, or wrong everywhere, so no second "
                f"environment is found; give it fewer steps with reference_steps"
            )
        found.append(Environment(f"inferred {number + 1}", inputs[index], targets[index]))
    return EnvironmentSet(own.label, tuple(found), own.task)
