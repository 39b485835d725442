"""
Choose hyperparameters without test labels
==========================================

A study of two methods with several trials, and three rules that choose among the
trials: training-domain validation, invariance selection and the oracle. Only the
oracle looks at the test environment, which nobody can do in practice.
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
# helps on held- out training rows. Invariance selection asks first whether the target
# given the prediction depends on the environment. The oracle is an upper bound.
#
# .. admonition:: When not
#
#    Invariance selection needs enough held-out rows to notice a dependence. With few
#    rows every trial passes, and the rule is the same as training-domain validation.
