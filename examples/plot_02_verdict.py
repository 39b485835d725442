"""
What a verdict means
====================

A drop of the score in a new environment has several possible causes, and each needs a
different remedy. This example compares methods on two synthetic tables. In the first
table, a column has a different meaning at one site; in the second table, only the
prevalence differs.
"""

# %%
# In the first table, the column `marker` depends on the target. At site D, the sign of
# this dependence is reversed.

import numpy as np
import pandas as pd

import envariant

rng = np.random.default_rng(0)
site = np.repeat(["A", "B", "C", "D"], 400)
age, noise = rng.normal(size=(2, 1600))
y = (rng.random(1600) < 1 / (1 + np.exp(-1.2 * age))).astype(int)
marker = np.where(site == "D", -1, 1) * (2 * y - 1) * 0.9 + rng.normal(size=1600)
flipped = pd.DataFrame(
    {"age": age, "noise": noise, "marker": marker, "y": y, "site": site}
)

settings = {
    "target": "y",
    "environment": "site",
    "algorithms": ("stable-columns",),
    "replicas": 3,
}
concept = envariant.compare(flipped, **settings)
print(concept.verdict)

# %%
# At site D, the scores of all methods are worse than chance, because nothing in the
# training data from the other sites shows that the sign of `marker` can change. The
# verdict states that predictions are reversed at D, and the suggested next steps name
# the column.

print(concept.recommendation.next_steps[0])

# %%
# The chart shows the drop at every site.

chart = concept.plot()
chart

# %%
# In the second table, the positive class is more frequent at site D, and nothing else
# differs.

y = (rng.random(1600) < np.where(site == "D", 0.85, 0.4)).astype(int)
columns = rng.normal(size=(3, 1600)) + np.outer([0.7, 0.4, 0.0], 2 * y - 1)
prevalence = pd.DataFrame(
    {"a": columns[0], "b": columns[1], "c": columns[2], "y": y, "site": site}
)

label = envariant.compare(prevalence, **settings)
print(label.verdict)

# %%
# The results also contain the kinds of shift that were found at each site.

for name, cause in label.results.causes.items():
    print(name, (cause.shift.kinds if cause.shift else None) or "no shift found")

# %%
# .. admonition:: When not
#
#    "No significant drop" does not mean "no drop". The verdict states how large a drop
#    is still possible. In small environments, this value can be large.
