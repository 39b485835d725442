"""Train and evaluate runs from their options, and store them."""
