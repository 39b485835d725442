"""Penalties: scalars that are 0 when the environments agree."""
