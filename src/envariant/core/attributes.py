"""Names of the row attributes that the library itself uses: sampling weights and group numbers."""

WEIGHT = "weight"
"""Sampling weights, the relative frequencies of rows in minibatches."""

ROW_GROUP = "row_group"
"""Group numbers, such as those of patients; splits keep the rows of a group together."""
