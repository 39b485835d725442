"""Images: folders, metadata files and WILDS folders as environment sources."""
