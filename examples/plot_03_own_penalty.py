"""
Write a penalty and study it
============================

A new penalty needs only one small class. The penalty in this example is the variance of
the mean logit between environments. Like built-in methods, it can be used in studies,
with statistical tests, and with selection rules that need no test labels.
"""

# %%
# A penalty is a frozen dataclass. Its fields are the hyperparameters, annotated with
# search ranges. The method `penalty` returns a number that is 0 when the environments
# agree. It must not use the value of a hyperparameter in a Python `if`, because
# replicas with different values are trained together in one stack.

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
# `check_algorithm` runs the tests that every built-in algorithm passes. Among other
# things, they check that the algorithm does not modify its inputs, gives the same
# results when replicas are trained together, can be resumed from a checkpoint, and
# supports environments of different sizes.

mine = Composition(penalties=(MeanLogit(),))
check_algorithm(mine)

# %%
# A study compares the new penalty with ERM and V-REx on colored digits, a small version
# of Colored MNIST. Each method has two trials, that is, two hyperparameter
# configurations.

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
#    The mean logit can be the same in all environments even if the network relies on
#    the color, so do not expect much from this penalty. A study with few trials and
#    three replicas can distinguish large differences from chance, but not small ones.
