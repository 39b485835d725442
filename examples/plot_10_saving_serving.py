"""
Save a model, serve it, and watch for drift
===========================================

The model that a comparison recommends is stored in a folder, without pickle. Loaded
somewhere else, it predicts new tables and says whether they still look like the
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
# Anyone can load the folder. Files are checked against their checksums first.

model = envariant.load_model(folder / "model")
model.predict(new.head())

# %%
# `serve` adds what one needs before acting on a prediction: calibrated probabilities, a
# set of classes meant to contain the true one in 90 % of rows of a new hospital, and a
# flag for rows that resemble none of the training hospitals.

served = model.serve(new, level=0.9)
served.table.head().round(2)

# %%
# The summary estimates the accuracy of the batch without its labels, and tests each
# column for drift, corrected for their number.

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
# The sizes of the prediction sets: a set of both classes says that the model does not
# know.

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
#    few labels of new rows tell more.
