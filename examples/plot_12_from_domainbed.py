"""
Coming from DomainBed
=====================

Envariant has the same algorithms and selection rules as DomainBed, but some names are
different. The following table lists them. Most search ranges are also the same; the
search ranges of IRM and V-REx, however, start at a coefficient of 100.

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
# The next run follows DomainBed in three respects. Each batch contains rows of every
# environment, a share of each environment is held out for validation, and IRM estimates
# the squared gradient from two halves of the batch.

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
# Every algorithm declares search ranges for its hyperparameters:

from envariant.core.search_space import ranges

for name, searched in ranges(envariant.algorithms.recipe("irm").default).items():
    print(name, searched)

# %%
# Every algorithm is tested against a second, independent implementation.
# :doc:`../guide/released_code` lists differences between the papers and released code,
# including DomainBed.
#
# .. admonition:: When not
#
#    DomainBed's image data sets and pretrained ResNets are not part of this library.
#    However, the library can read the folders of DomainBed and WILDS and other image
#    folders, and train ``timm`` models on these images.
