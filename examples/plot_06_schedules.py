"""
Penalty schedules, and what goes wrong
======================================

If a penalty is strong from the first step, the network may learn nothing. If a penalty
starts too late, it changes nothing. Envariant detects such runs, and states a likely
cause and a remedy.
"""

# %%
# Here, the same method is trained with four schedules of its penalty coefficient.

import envariant
from envariant.reporting.charts import curves
from envariant.reporting.score_tables import score_table

digits = envariant.data.colored_digits()
schedules = {
    "never strong": "constant(1)",
    "strong from the start": "constant(1e4)",
    "late switch": "step(1, 1e4, at=95%)",
    "switch at 40 %": "step(1, 1e4, at=40%)",
}
runs = {
    name: envariant.train(
        digits,
        "irm",
        hyperparameters={"coefficient": schedule},
        model="mlp(hidden=64)",
        steps=250,
        replicas=2,
        learning_rate=0.005,
    )
    for name, schedule in schedules.items()
}
score_table(runs)

# %%

chart = curves(list(runs.values()), list(runs))
chart

# %%
# With so few digits, no schedule reaches a good test accuracy, because the network
# memorizes the training rows. With a constant strong penalty, the accuracy stays near
# chance in every environment. The diagnoses report this:

for name, run in runs.items():
    for diagnosis in run.diagnoses:
        print(f"{name}: {diagnosis}\n")

# %%
# The step at which a schedule changes can be given as a percentage of the run
# (`at=40%`), so that it remains sensible for any number of steps. If it is given as a
# number beyond the end of the run, a warning appears before training.
#
# .. admonition:: When not
#
#    Choosing the schedule by the test accuracy is oracle selection.
#    :doc:`plot_07_selection` shows rules that do not use test labels.
