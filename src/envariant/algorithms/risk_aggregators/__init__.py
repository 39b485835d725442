"""Risk aggregators: rules that combine the environments' risks into one risk."""
