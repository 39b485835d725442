"""
Coming from DomainBed
=====================

Envariant has the same algorithms and selection rules as DomainBed under other names,
which this page lists. Most search ranges are the same; those of IRM and V-REx start at
a coefficient of 100.

====================================  ==========================================
DomainBed                             Envariant
====================================  ==========================================
``--algorithm IRM``                   ``"irm"``
``--hparams '{"irm_lambda": 100}'``   ``hyperparameters={"coefficient": 100}``
``--hparams_seed``                    trial
``--trial_seed``                      replica; three separate seeds
``--holdout_fraction 0.2``            ``holdout_fraction=0.2``
``--test_envs 0``                     ``test_environments=("name",)``
``sweep.py launch``                   ``Study(...).run()``
``collect_results.py``                ``results.table()``, ``results.report()``
training-domain validation            training-domain validation
leave-one-domain-out                  leave-one-domain-out
test-domain validation                oracle
====================================  ==========================================
"""

# %%
# This run follows DomainBed: minibatches from each environment, a validation share of
# each environment, and IRM's estimate of the squared gradient on two halves of the
# batch.

import envariant

result = envariant.train(
    "colored-digits",
    "irm",
    hyperparameters={"coefficient": "step(1, 100, at=100)", "form": "halves"},
    model="mlp(hidden=32)",
    batch_size=32,
    steps=300,
    holdout_fraction=0.2,
    replicas=3,
)
result.summary().round(3)

# %%

chart = result.plot()
chart

# %%
# Every algorithm declares its search ranges:

from envariant.core.search_space import ranges

for name, searched in ranges(envariant.algorithms.recipe("irm").default).items():
    print(name, searched)

# %%
# Every algorithm is tested against an independent second implementation.
# :doc:`../guide/released_code` lists where DomainBed's code differs from the papers.
#
# .. admonition:: When not
#
#    DomainBed's image data sets and pretrained ResNets are not part of this library.
#    WILDS folders and image folders are, with ``timm`` models.
