"""Training: options, the engine, what it measures, and where results are stored."""
