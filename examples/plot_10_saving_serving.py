"""
Save a model, serve it, and watch for drift
===========================================

The model that a comparison recommends is stored in a folder, without pickle. It can be
loaded anywhere, predicts new tables, and reports whether they still resemble the
training data.
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
# Anyone can load the model from the folder. The checksums of the files are verified
# first.

model = envariant.load_model(folder / "model")
model.predict(new.head())

# %%
# `serve` adds the information that one needs before acting on a prediction: calibrated
# probabilities, a set of classes that should contain the true class in 90 % of the rows
# of a new hospital, and a flag for rows that resemble none of the training hospitals.

served = model.serve(new, level=0.9)
served.table.head().round(2)

# %%
# The summary contains an estimate of the accuracy of the batch without its labels, and
# a drift test of each column, corrected for the number of columns.

print("\n".join(served.summary))
print(
    "true accuracy:",
    round(float((served.table["prediction"] == new["disease"]).mean()), 3),
)

# %%
# Twenty labels of the new hospital adapt the model.

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
# the model cannot decide between them.

import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 2.5), layout="constrained")
counts = served.table["set"].replace("", "empty").value_counts()
axes.barh(list(counts.index), list(counts), color="#0f766e")
axes.set(xlabel="patients of Long Beach", title="Prediction sets at 90 %")
figure.show()

# %%
# .. admonition:: When not
#
#    Drift of the inputs is neither necessary nor sufficient for a loss of accuracy. A
#    few labels of new rows are more informative.
