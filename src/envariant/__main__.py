"""Run the `envariant` command as `python -m envariant`."""

from envariant.cli import main

if __name__ == "__main__":
    main()
