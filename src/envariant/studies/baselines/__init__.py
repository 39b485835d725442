"""Predictors that studies compare with trained networks."""
