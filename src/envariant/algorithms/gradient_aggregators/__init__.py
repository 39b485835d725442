"""Gradient aggregators: rules that turn the gradients of the environments into one gradient."""
