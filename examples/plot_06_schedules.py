"""
Penalty schedules, and what goes wrong
======================================

A penalty that is strong from the first step prevents the network from learning
anything; a penalty that starts too late changes nothing. Envariant diagnoses such runs
and names a likely cause and a remedy.
"""

# %%
# The same method is trained with four schedules of its coefficient.

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
# On these few digits no schedule reaches a good test accuracy, because the network
# memorizes rows; a constant strong penalty stays near chance in every environment. The
# diagnoses say so:

for name, run in runs.items():
    for diagnosis in run.diagnoses:
        print(f"{name}: {diagnosis}\n")

# %%
# Switch points can be relative (`at=40%`), so that they stay meaningful when the number
# of steps changes. An explicit step beyond the end of the run is reported before
# training.
#
# .. admonition:: When not
#
#    Choosing the switch point by the test accuracy is oracle selection.
#    :doc:`plot_07_selection` shows rules that do not use test labels.
