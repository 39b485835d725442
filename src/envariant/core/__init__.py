"""Data types, tasks, metrics and numerics that every other package builds on."""
