"""Penalties: terms added to the risk. Most of them measure differences between environments."""
