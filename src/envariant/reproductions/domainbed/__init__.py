"""Hyperparameter draws and model selection of DomainBed in 2020, for the reproduction of its tables."""
