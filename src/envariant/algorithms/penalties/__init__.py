"""Penalties: terms added to the risk, most of which measure differences between environments."""
