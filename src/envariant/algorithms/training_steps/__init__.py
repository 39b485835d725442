"""Training steps: algorithms whose update is not the gradient of a sum of risks and penalties."""
