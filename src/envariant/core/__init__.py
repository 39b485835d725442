"""Data types, tasks, metrics and numerical functions that all other packages use."""
