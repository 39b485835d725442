"""
Write a penalty and study it
============================

A method is one small class. This one penalizes the variance of the mean logit between
environments. Studies, selection without test labels and statistics work with it as
with any other.
"""

# %%
# A penalty is a frozen dataclass whose fields are hyperparameters with their search
# ranges. `penalty` returns a number that is 0 when the environments agree. It must not
# branch in Python on the value of a hyperparameter, because replicas with different
# values train in one stack.

from dataclasses import dataclass
from typing import Annotated, ClassVar, final

from envariant.algorithms import Composition, Penalty
from envariant.core.schedules import Schedule, Step
from envariant.core.search_space import LogUniform
from envariant.testing import check_algorithm


@final
@dataclass(frozen=True)
class MeanLogit(Penalty):
    """Variance over environments of the mean logit of each class.

    Attributes:
        coefficient: Weight of the penalty.
    """

    name: ClassVar[str] = "mean-logit"
    paper: ClassVar[str] = "this example"
    coefficient: Annotated[Schedule, LogUniform(1e-1, 1e3)] = Step(0.0, 10.0, at=100)

    def penalty(self, predicted, state):
        means = predicted.batch.per_environment_mean(predicted.logits)
        return (means - means.mean(dim=0)).square().mean(), state


# %%
# `check_algorithm` runs the tests that every algorithm of the library passes: purity,
# stacked replicas, resumption, environments of different sizes, and others.

mine = Composition(penalties=(MeanLogit(),))
check_algorithm(mine)

# %%
# A study compares the new penalty with ERM and V-REx on colored digits, a small version
# of Colored MNIST, with two trials each.

from envariant.studies import Study

study = Study(
    data=("colored-digits",),
    algorithms=("erm", "vrex", mine),
    n_trials=2,
    replicas=3,
    settings={"model": "mlp(hidden=32)", "steps": 150},
)
results = study.run()
results.table()

# %%

chart = results.plot()
chart

# %%
# .. admonition:: When not
#
#    The mean logit can agree between environments although the network relies on the
#    color, so do not expect much of this penalty. A study with few trials and three
#    replicas can distinguish large differences from chance, but not small ones.
