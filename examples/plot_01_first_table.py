"""
Compare methods on a table
==========================

You have a table with rows from several sites, such as hospitals, and want to know
whether a model will also work at a new site. `envariant.compare` holds out each
environment once, fits ordinary models and domain-generalization methods to the others,
and says which method to use.
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
# `algorithms` names the other methods to try. The data check is printed first: here, it
# finds columns that some hospitals did not record, and zeros that mean "missing".

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
# The table shows scores in hospitals that took no part in training. The chart compares
# them with the scores of models that were also trained on the hospital; a line joins
# the two.

answer.table.round(3)

# %%

chart = answer.plot()
chart

# %%
# The recommended method is trained again on all rows and is ready for predictions;
# `answer.page` is a report for colleagues.

answer.best_model.predict(patients.head())

# %%
# .. admonition:: When not
#
#    With two environments, only one is left for training, so that methods that compare
#    environments cannot be judged. And if you can label twenty patients of the new
#    hospital, do so: the report says how much they help.
