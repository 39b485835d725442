"""Gradient aggregators: rules that combine the environments' gradients into one gradient."""
