"""
Choose hyperparameters without test labels
==========================================

This example trains two methods with several trials, that is, hyperparameter
configurations. It compares three rules for choosing a trial: training-domain
validation, invariance selection and the oracle. Only the oracle uses labels of the test
environment, which are unknown in practice.
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
# Training-domain validation prefers the trial that relies most on the color, because
# the color also predicts the label of held-out training rows. Invariance selection
# first tests whether, given the prediction, the target still depends on the
# environment. The oracle is an upper bound for any selection rule.
#
# .. admonition:: When not
#
#    Invariance selection needs enough held-out rows to detect a dependence. With few
#    rows, every trial passes the test, and the rule reduces to training-domain
#    validation.
