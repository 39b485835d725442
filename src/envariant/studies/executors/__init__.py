"""Executors: functions that train the runs of a study on this machine, a Ray cluster or a Slurm cluster."""
