"""Colors of HTML pages and charts: one per method, legible on light and dark backgrounds."""

import re
from collections.abc import Sequence
from zlib import crc32

INK = "#1f2933"
MUTED = "#7b8794"
LINE = "#e4e7eb"
TEST = "#c2410c"
"""Color of test environments, and of out-of-domain scores of a single method."""
TRAINING = "#0f8f85"
"""Color of training and validation environments."""
DASH = [5, 3]
BASELINE = "erm"

# Contrast of at least 3:1 with white and with the dark page. Gray is the baseline's alone.
_NEUTRAL = "#6b7480"
_PALETTE = (
    "#2f7fd6", "#d9720f", "#139a6b", "#9a52c7", "#e0568f", "#0f97ab", "#a3613a", "#8a8f12", "#d1495b",
)  # fmt: skip
# Methods that are often compared have different colors; other methods get one by their name.
_PREFERRED = {
    "irm": 0, "vrex": 1, "groupdro": 2, "coral": 3, "and-mask": 4, "linear": 5, "boosted-trees": 6,
    "stable-columns": 7, "mm-rex": 8, "v-rex": 1, "gradient": 6,
}  # fmt: skip
_METHOD = re.compile(r"[\w+-]+")


def method_colors(names: Sequence[str]) -> dict[str, str]:
    """Return the color of each method or run.

    A method has the same color on every page, unless a method with the same preferred color is also on the
    page.

    Args:
        names: Names that begin with the name of an algorithm, such as "irm" or "irm, threshold=0.5".

    Example:
        >>> method_colors(["erm", "irm"])
        {'irm': '#2f7fd6', 'erm': '#6b7480'}
    """
    colors: dict[str, str] = {}
    # Methods with a color of their own come first, so that no other name takes it.
    for name in sorted(set(names), key=lambda name: (_method(name) not in _PREFERRED, len(name), name)):
        method = _method(name)
        if method == BASELINE and _NEUTRAL not in colors.values():
            colors[name] = _NEUTRAL
            continue
        first = _PREFERRED.get(method, crc32(method.encode()) % len(_PALETTE))
        order = [_PALETTE[(first + k) % len(_PALETTE)] for k in range(len(_PALETTE))]
        # With more methods than colors, colors repeat.
        colors[name] = min(order, key=list(colors.values()).count)
    return colors


def baseline_first(names: Sequence[str]) -> list[str]:
    """Return the names without duplicates, with the names of ERM runs first."""
    return sorted(dict.fromkeys(names), key=lambda name: _method(name) != BASELINE)


def _method(name: str) -> str:
    found = _METHOD.match(name)
    return found.group().lower() if found else ""
