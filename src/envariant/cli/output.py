"""Print lines of text or one JSON object; imports no slow package."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from envariant.core.printable import finite


def print_json(value: Any) -> None:
    """Print one JSON object on standard output; infinities and NaN become null."""
    sys.stdout.write(json.dumps(finite(value), indent=2, allow_nan=False) + "\n")


def print_lines(lines: Sequence[str]) -> None:
    """Print lines of text on standard output."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
