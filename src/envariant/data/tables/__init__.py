"""Tables as environment sources: reading, column types and encoding."""
