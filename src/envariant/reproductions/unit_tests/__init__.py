"""Computations of the linear unit tests for invariance discovery (Aubin et al. 2021)."""
