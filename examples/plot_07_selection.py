"""
Choose hyperparameters without test labels
==========================================

This example trains two methods with several trials and compares three rules that choose
among the trials: training-domain validation, invariance selection and the oracle. Only
the oracle uses labels of the test environment, which are unknown in practice.
"""

# %%

from envariant.studies import Study

study = Study(
    data=("colored-digits",),
    algorithms=("erm", "vrex"),
    n_trials=4,
    replicas=2,
    settings={"model": "mlp(hidden=32)", "steps": 200},
)
results = study.run()
results.table()

# %%

chart = results.plot()
chart

# %%
# Training-domain validation prefers the trial that uses the color, because the color
# helps on held-out training rows. Invariance selection first tests whether the target
# still depends on the environment once the prediction is known. The oracle is an upper
# bound.
#
# .. admonition:: When not
#
#    Invariance selection needs enough held-out rows to notice a dependence. With few
#    rows, every trial passes, and the rule then equals training-domain validation.
