"""
Evaluate predictions of any model
=================================

A model was trained with another program. Does it predict equally well in every
hospital, and for every group of patients? `evaluate` needs only the predictions, the
targets and the hospital of each row.
"""

# %%
# Two scikit-learn models predict heart disease. `cross_val_predict` with
# `LeaveOneGroupOut` predicts every hospital with a model that was trained on the
# others.

from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict

import envariant

columns = ["age", "sex", "thalach", "oldpeak"]
patients = envariant.data.heart_disease().dropna(subset=columns)
models = {
    "logistic": LogisticRegression(max_iter=1000),
    "forest": RandomForestClassifier(200, min_samples_leaf=5, random_state=0),
}
predictions = {
    name: cross_val_predict(
        model,
        patients[columns],
        patients["disease"],
        groups=patients["hospital"],
        cv=LeaveOneGroupOut(),
        method="predict_proba",
    )
    for name, model in models.items()
}

# %%
# The headline is about the model with the best score in its worst hospital. Gains of
# the second model over the first one are tested in every hospital.

evaluation = envariant.evaluate(
    predictions,
    patients["disease"],
    patients["hospital"],
    groups=patients[["sex"]],
)
evaluation

# %%
# The table as in papers. The metric is AUROC, because the share of sick patients
# differs between hospitals.

evaluation.table()

# %%
# The worst group, and the calibration in Switzerland: nearly all patients there are
# sick, so the predicted probabilities are too low.

print(evaluation.results.worst_group("logistic"))
print(evaluation.results.calibration["logistic"]["Switzerland"])

# %%
# Each bar is a 95 % confidence interval over patients.

chart = evaluation.plot()
chart

# %%
# `evaluation.save("folder")` writes a page and all numbers. On the command line, the
# predictions are columns of a table::
#
#     envariant evaluate predictions.csv --target disease --prediction p
#         --environment hospital --group sex --out evaluation
#
# .. admonition:: When not
#
#    Scores of rows that a model was trained on say nothing about new hospitals. Also,
#    four hospitals are few: the prediction interval for a fifth one is wide.
