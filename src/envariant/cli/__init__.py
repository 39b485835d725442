"""The terminal's face of the library; `main` is what the `envariant` command runs."""

from envariant.cli.app import main

__all__ = ["main"]
