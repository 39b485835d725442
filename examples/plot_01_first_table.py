"""
Compare methods on a table
==========================

You have a table in which one column says where each row came from, and want to know
whether a model that is trained here will work there. `envariant.compare` holds out
each environment once, fits ordinary models and domain-generalization methods to the
others, and says which to use.
"""

# %%
# The table is the heart disease data of four hospitals, which ships with the package.
# Any data frame, or the path of a file, can take its place.

import envariant

patients = envariant.data.heart_disease()
patients.groupby("hospital")["disease"].agg(
    rows="size", sick=lambda column: (column == "yes").mean()
).round(2)

# %%
# One call trains everything. Linear models and boosted trees are always fitted;
# `algorithms` names what else to try. The data check is printed first: here, columns
# that some hospitals did not record, and zeros that mean "missing".

answer = envariant.compare(
    patients,
    target="disease",
    environment="hospital",
    algorithms=("stable-columns", "vrex"),
    replicas=3,
)

# %%
# The verdict is a headline and at most four facts.

print(answer.verdict)

# %%
# Scores in hospitals that took no part in training, and the same as a picture: a line
# joins the score of a model that knew the hospital and that of a model that did not.

answer.table.round(3)

# %%

chart = answer.plot()
chart

# %%
# The recommended method is trained again on all rows and can predict at once;
# `answer.page` is a report for colleagues.

answer.best_model.predict(patients.head())

# %%
# .. admonition:: When not
#
#    With two environments only one is left for training: then nothing can be said about
#    methods that compare environments. And if you can label twenty patients of the new
#    hospital, do so: the report says how much they help.
