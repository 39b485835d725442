"""
Save a model, serve it, and watch for drift
===========================================

A comparison saves the recommended model in a folder, without pickle. The saved model
can be loaded on any machine. It predicts the rows of new tables, and reports whether
these rows still resemble the training data.
"""

# %%

import tempfile
from pathlib import Path

import envariant

patients = envariant.data.heart_disease()
known = patients[patients["hospital"] != "Long Beach"]
new = patients[patients["hospital"] == "Long Beach"]

folder = Path(tempfile.mkdtemp()) / "heart"
answer = envariant.compare(
    known,
    target="disease",
    environment="hospital",
    algorithms=("stable-columns",),
    replicas=2,
    out=folder,
)
sorted(path.name for path in (folder / "model").iterdir())

# %%
# `load_model` verifies the checksums of the files and then loads the model.

model = envariant.load_model(folder / "model")
model.predict(new.head())

# %%
# `serve` returns the predictions together with what you need to know before you act on
# them: for each row, the calibrated probability of each class, a set of classes, and a
# flag. The sets should contain the true class for 90 % of the patients of a new
# hospital. The flag marks rows that resemble none of the training hospitals.

served = model.serve(new, level=0.9)
served.table.head().round(2)

# %%
# The summary contains an estimate of the accuracy on the new rows, which needs no
# labels. It also lists the columns whose distribution has drifted, according to tests
# that are corrected for the number of columns.

print("\n".join(served.summary))
print(
    "true accuracy:",
    round(float((served.table["prediction"] == new["disease"]).mean()), 3),
)

# %%
# Twenty labeled rows from the new hospital are enough to adapt the model to this
# hospital.

labeled = new.sample(20, random_state=0)
rest = new.drop(labeled.index)
adapted = model.adapt(labeled)
print("\n".join(adapted.adaptation.summary))
for name, each in {"before": model, "after": adapted}.items():
    print(
        name,
        round(float((each.predict(rest)["prediction"] == rest["disease"]).mean()), 3),
    )

# %%
# The chart shows the sizes of the prediction sets. A set with both classes means that
# the model cannot decide between the two classes.

import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 2.5), layout="constrained")
counts = served.table["set"].replace("", "empty").value_counts()
axes.barh(list(counts.index), list(counts), color="#0f766e")
axes.set(xlabel="patients of Long Beach", title="Prediction sets at 90 %")
figure.show()

# %%
# .. admonition:: When not
#
#    Drift of the inputs is neither necessary nor sufficient for a loss of accuracy.
#    Labels for a few new rows are more informative than drift tests.
