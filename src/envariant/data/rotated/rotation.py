"""Rotation of 8-bit images, bit-identical to that of Pillow.

Interpolation positions and weights depend only on the angle, so all images are rotated at once. Image
libraries round differently, which changes the last bit of many pixels; here, pixels are rounded as in Pillow.
"""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, UInt8

Interpolation = Literal["bilinear", "bicubic"]

# Rows of `[rows, height, width]` that are rotated at a time, so that temporary arrays stay small.
_BLOCK = 1024


def rotated(
    images: UInt8[np.ndarray, "rows height width"],
    angle: float,
    interpolation: Interpolation = "bilinear",
) -> UInt8[np.ndarray, "rows height width"]:
    """Rotate images counter-clockwise around their center without changing their size.

    Pixels that come from outside the image are 0.

    Args:
        images: Grayscale images, `[rows, height, width]`, with row 0 at the top.
        angle: Angle in degrees.
        interpolation: "bilinear", or "bicubic" with kernel parameter a = −1, as in Pillow.
    """
    if angle % 360 == 0:
        return images.copy()
    x, y, dx, dy, inside = _positions(images.shape[1], images.shape[2], angle)
    interpolate = _bilinear if interpolation == "bilinear" else _bicubic
    result = np.empty_like(images)
    for first in range(0, len(images), _BLOCK):
        block = images[first : first + _BLOCK].astype(np.float64)
        values = interpolate(block, x, y, dx, dy)
        # Pillow truncates.
        result[first : first + _BLOCK] = np.where(inside, values, 0).astype(np.uint8)
    return result


def _positions(height: int, width: int, angle: float) -> tuple[np.ndarray, ...]:
    """Return each output pixel's column and row in the input, offsets in [0, 1), and whether it is inside."""
    radians = -math.radians(angle)
    # Pillow rounds the matrix.
    cosine, sine = round(math.cos(radians), 15), round(math.sin(radians), 15)
    center_x, center_y = width / 2, height / 2
    offset_x = cosine * -center_x + sine * -center_y + center_x
    offset_y = -sine * -center_x + cosine * -center_y + center_y
    column, row = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    x = cosine * column + sine * row + offset_x
    y = -sine * column + cosine * row + offset_y
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y = x - 0.5, y - 0.5
    left, top = np.floor(x), np.floor(y)
    return left.astype(np.int64), top.astype(np.int64), x - left, y - top, inside


Pixels = Float[np.ndarray, "rows height width"]
Index = Int[np.ndarray, "height width"]
Offset = Float[np.ndarray, "height width"]


def _pixels(images: Pixels, x: Index, y: Index) -> Callable[[int, int], Pixels]:
    """Return a function of (i, j) that gathers the pixels at columns x + i and rows y + j.

    Columns and rows are clamped to the image.
    """
    height, width = images.shape[1:]

    def gather(i: int, j: int) -> Pixels:
        return images[:, (y + j).clip(0, height - 1), (x + i).clip(0, width - 1)]

    return gather


def _bilinear(images: Pixels, x: Index, y: Index, dx: Offset, dy: Offset) -> Pixels:
    pixel = _pixels(images, x, y)

    def row(j: int) -> Pixels:
        left = pixel(0, j)
        return left + (pixel(1, j) - left) * dx

    first = row(0)
    # A missing row repeats the one before, which clamping ensures at the bottom only.
    second = np.where(y + 1 < images.shape[1], row(1), first)
    return first + (second - first) * dy


def _bicubic(images: Pixels, x: Index, y: Index, dx: Offset, dy: Offset) -> Pixels:
    pixel = _pixels(images, x, y)
    rows: list[Pixels] = []
    for j in (-1, 0, 1, 2):
        values = _cubic(pixel(-1, j), pixel(0, j), pixel(1, j), pixel(2, j), dx)
        exists = (y + j >= 0) & (y + j < images.shape[1])
        # Above the image, row 0 is used; below it, the last row that exists.
        rows.append(values if j == -1 else np.where(exists, values, rows[-1]))
    return _cubic(rows[0], rows[1], rows[2], rows[3], dy).clip(0, 255)


def _cubic(v1: Pixels, v2: Pixels, v3: Pixels, v4: Pixels, d: Offset) -> Pixels:
    return v2 + d * (-v1 + v3 + d * (2 * (v1 - v2) + v3 - v4 + d * (-v1 + v2 - v3 + v4)))
