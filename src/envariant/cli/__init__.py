"""Command-line interface; `main` runs the `envariant` command."""

from envariant.cli.app import main

__all__ = ["main"]
