"""Gradient combinations: the gradients of the environments become one gradient."""
