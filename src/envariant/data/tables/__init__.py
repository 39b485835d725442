"""Data sources for tables: read files and data frames, infer column types, and encode inputs."""
