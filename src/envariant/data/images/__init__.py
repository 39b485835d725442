"""Data sources for images: class folders, folders with a metadata file, and WILDS data sets."""
