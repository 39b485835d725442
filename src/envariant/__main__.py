"""`python -m envariant` is the command `envariant`, for environments whose scripts are not on the path."""

from envariant.cli import main

if __name__ == "__main__":
    main()
