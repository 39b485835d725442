"""Risk aggregators: rules that turn the risks of the environments into one risk."""
