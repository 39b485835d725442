"""Training: options, execution, evaluation and storage of runs."""
