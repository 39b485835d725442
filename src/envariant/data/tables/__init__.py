"""Tables: reading, column types, encoding, and tables as environment sources."""
