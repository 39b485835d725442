"""Risk weightings: the risks of the environments become one risk."""
