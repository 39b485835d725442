"""Training steps: algorithms that are not a sum of risks and penalties."""
