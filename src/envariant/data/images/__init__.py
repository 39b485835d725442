"""Image sources: class folders, folders with a metadata file, and WILDS data sets."""
