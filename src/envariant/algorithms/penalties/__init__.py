"""Penalties: scalars added to the risk, most of them 0 if the environments agree in some sense."""
