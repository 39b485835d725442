"""Split a string such as `vrex + coral(1.0)` into its terms."""

import re


def split_terms(text: str) -> list[str]:
    """Split a string at plus signs, except inside brackets and in names such as erm++."""
    pieces, depth, start = list[str](), 0, 0
    for match in re.finditer(r"[()]|\+(?=\s*[A-Za-z])", text):
        depth += {"(": 1, ")": -1}.get(match[0], 0)
        if match[0] == "+" and depth == 0:
            pieces.append(text[start : match.start()])
            start = match.end()
    return [*pieces, text[start:]]
