"""
Save a model, serve it, and watch for drift
===========================================

The model that a comparison recommends is stored in a folder, without pickle. Loaded somewhere
else, it predicts new tables and says whether they still look like the training data.
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
    known, target="disease", environment="hospital", algorithms=("stable-columns",), replicas=2, out=folder
)
sorted(path.name for path in (folder / "model").iterdir())

# %%
# Anybody can load the folder. Files are checked against their checksums first.

model = envariant.load_model(folder / "model")
model.predict(new.head())

# %%
# Do the new rows look like the old ones? The tests are corrected for the number of columns.

# SERVING

# %%
# .. admonition:: When not
#
#    Drift of the inputs is neither necessary nor sufficient for a loss of accuracy. A few labels of
#    new rows tell more.
