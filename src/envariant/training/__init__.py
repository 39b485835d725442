"""Train, evaluate and store runs, which are described by their options."""
