"""Who trains the runs of a study."""
