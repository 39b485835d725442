"""
Compare methods on a table
==========================

You have a table with rows from several sites, such as hospitals, and want to know
whether a model will also work at a new site. `envariant.compare` holds out each
environment in turn, trains ordinary models and domain-generalization methods on the
other environments, and recommends a method.
"""

# %%
# The example uses heart disease data from four hospitals, which ship with the package.
# Instead of this data frame, you can pass your own data frame or the path of a file.

import envariant

patients = envariant.data.heart_disease()
patients.groupby("hospital")["disease"].agg(
    rows="size", sick=lambda column: (column == "yes").mean()
).round(2)

# %%
# One call trains and compares all methods. A linear model and boosted trees are always
# included; `algorithms` lists the other methods. The output begins with the data check.
# Here, the check finds columns that some hospitals did not record, and zeros that
# represent missing values.

answer = envariant.compare(
    patients,
    target="disease",
    environment="hospital",
    algorithms=("stable-columns", "vrex"),
    replicas=3,
)

# %%
# The verdict consists of a headline and at most four facts.

print(answer.verdict)

# %%
# The table shows the score of each method in each hospital, for models that were not
# trained on this hospital. The chart also shows the score of models that were trained
# on rows of this hospital. A line joins the two scores.

answer.table.round(3)

# %%

chart = answer.plot()
chart

# %%
# The recommended method is then trained on all rows; `answer.best_model` makes
# predictions for new rows. `answer.page` is an HTML report to share.

answer.best_model.predict(patients.head())

# %%
# .. admonition:: When not
#
#    With two environments, only one is left for training, so methods that need several
#    training environments cannot be evaluated. If you can label twenty patients of the
#    new hospital, do so; the report states how much these labels help.
