"""Colored MNIST and colored digits: construction, protocols and sources."""
