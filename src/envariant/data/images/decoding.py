"""Decode image files to 8-bit RGB, and report which information was lost."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
from jaxtyping import UInt8

from envariant.core.errors import EnvariantError, first_line

NOTES: Mapping[str, str] = {
    "alpha": "have transparent pixels; transparency is dropped",
    "orientation": "have an EXIF orientation, which is ignored, as in DomainBed; exif=true applies it",
    "frames": "have several frames or pages, of which only the first is read",
    "cmyk": "are CMYK, converted to RGB without their color profile",
    "deep": "have 16 bits per color, of which only the upper 8 are read",
    "bright": "have 16 bits and values above the range of the images read before; these values are clipped",
    "black": "have 16 bits and are nearly black: their values are far below those of the brightest image",
}
"""Messages about images that lose information in the conversion to 8-bit RGB, by key."""

# Files that may have more than 8 bits per value.
_DEEP_SUFFIXES = (".png", ".tif", ".tiff", ".pgm")
_DEPTHS = (8, 10, 12, 14, 16)
_ORIENTATION = 0x0112
# Pillow recognizes formats by content, and reads some others, such as EPS, with another program.
_FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


# Share of the shorter side that is kept by "center-crop": 224 of 256 pixels, as usual for ImageNet.
_KEPT = 0.875


@final
@dataclass(frozen=True)
class Preprocessing:
    """Conversion of decoded images to squares of equal size.

    Attributes:
        size: Side of the square in pixels.
        resize: "square" resizes both sides, as DomainBed does. "center-crop" resizes the shorter side to
            size / 0.875 and cuts out the center, as is usual for ImageNet.
        exif: Whether to apply the orientation that cameras store with the image.
    """

    size: int
    resize: Literal["square", "center-crop"] = "square"
    exif: bool = False

    @property
    def shorter(self) -> int:
        """Length of the shorter side after resizing."""
        return self.size if self.resize == "square" else round(self.size / _KEPT)


def pillow() -> Any:
    """Import and return the module `PIL.Image` of Pillow.

    Raises:
        EnvariantError: If Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise EnvariantError("images: reading them needs pillow; pip install 'envariant[vision]'") from None
    return Image


def largest_gray(root: Path, files: Sequence[str], pool: Executor) -> int:
    """Return the largest pixel value of all grayscale images with more than 8 bits per pixel; 0 if none.

    Args:
        root: Folder of the images.
        files: Paths relative to the folder.
        pool: Thread pool that reads the files.
    """
    deep = [root / file for file in files if file.lower().endswith(_DEEP_SUFFIXES)]
    return max(pool.map(_largest, deep), default=0)


def bits_of(largest: int) -> int:
    """Return the smallest sufficient bit depth for a value: 8, 10, 12, 14 or 16, or more if necessary."""
    return next((bits for bits in _DEPTHS if largest < 2**bits), largest.bit_length())


def decode(
    path: Path, preprocessing: Preprocessing, bits: int = 16
) -> tuple[UInt8[np.ndarray, "3 size size"], tuple[str, ...]]:
    """Decode an image as RGB, and convert it to a square.

    Args:
        path: Path of the image file.
        preprocessing: Conversion of the image to a square.
        bits: Bit depth of grayscale images with more than 8 bits per pixel; the same for all images of a
            source.

    Returns:
        Pixels, `[3, size, size]`, and the keys of `NOTES` that describe the information that was lost.

    Raises:
        EnvariantError: If the file is not an image.
    """
    images = pillow()
    try:
        with images.open(path, formats=_FORMATS) as image:
            # JPEG can be decoded at a reduced scale, which is much faster; never below twice the size.
            image.draft(None, (2 * preprocessing.shorter, 2 * preprocessing.shorter))
            notes = [*losses(image)]
            rgb = _rgb(image, bits)
            if preprocessing.exif and "orientation" in notes:
                notes.remove("orientation")
                rgb = _upright(rgb, image.getexif()[_ORIENTATION])
            square = np.asarray(_square(rgb, preprocessing))
            if ("deep" in notes or image.mode.startswith("I")) and square.max() < 16:
                notes.append("black")
            if image.mode.startswith("I") and image.getextrema()[1] >= 2**bits:
                notes.append("bright")
            return np.ascontiguousarray(square.transpose(2, 0, 1)), tuple(notes)
    except FileNotFoundError:
        raise EnvariantError(f"{shown(str(path))}: the image does not exist") from None
    except Exception as error:
        # Pillow's decoders raise many types of error for a damaged file, and MemoryError for a huge one.
        unknown = isinstance(error, images.UnidentifiedImageError)
        reason = (
            "unknown format or damaged" if unknown else getattr(error, "strerror", None) or first_line(error)
        )
        problem = f"cannot be read as an image ({reason.replace(str(path), 'it')})"
        raise EnvariantError(f"{shown(str(path))}: {problem}; replace or remove the file") from None


def _square(rgb: Any, preprocessing: Preprocessing) -> Any:
    size, bilinear = preprocessing.size, pillow().Resampling.BILINEAR
    if preprocessing.resize == "square":
        return rgb.resize((size, size), bilinear)
    shorter = preprocessing.shorter
    width, height = (int(shorter * side / min(rgb.size)) for side in rgb.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return rgb.resize((width, height), bilinear).crop((left, top, left + size, top + size))


def _upright(rgb: Any, orientation: int) -> Any:
    """Undo an EXIF orientation, a number from 2 to 8."""
    methods = pillow().Transpose
    undo = {
        2: methods.FLIP_LEFT_RIGHT,
        3: methods.ROTATE_180,
        4: methods.FLIP_TOP_BOTTOM,
        5: methods.TRANSPOSE,
        6: methods.ROTATE_270,
        7: methods.TRANSVERSE,
        8: methods.ROTATE_90,
    }
    return rgb.transpose(undo[orientation]) if orientation in undo else rgb


def losses(image: Any) -> Iterable[str]:
    """Yield the keys of `NOTES` that apply to a Pillow image.

    Args:
        image: Image whose pixels have not been converted.
    """
    # Before the pixels are loaded, the decoder's arguments show the depth.
    if image.mode in ("RGB", "RGBA", "LA") and ";16" in str(getattr(image, "tile", "")):
        yield "deep"
    if image.mode == "CMYK":
        yield "cmyk"
    if getattr(image, "n_frames", 1) > 1:
        yield "frames"
    if image.getexif().get(_ORIENTATION, 1) != 1:
        yield "orientation"
    has_alpha = image.mode in ("RGBA", "LA", "PA") or (image.mode == "P" and "transparency" in image.info)
    if has_alpha and image.convert("RGBA").getchannel("A").getextrema()[0] < 255:
        yield "alpha"


def _largest(path: Path) -> int:
    try:
        with pillow().open(path, formats=_FORMATS) as image:
            return int(image.getextrema()[1]) if image.mode.startswith("I") else 0
    # Errors are ignored here, because `decode` reports them later.
    except Exception:
        return 0


def _rgb(image: Any, bits: int) -> Any:
    if image.mode.startswith("I"):
        # Pillow would clip these values at 255.
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0:
            raise ValueError("it has negative pixels, whose range is unknown")
        return pillow().fromarray((levels >> (bits - 8)).clip(max=255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("it has floating-point pixels, whose range is unknown")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def shown(name: str) -> str:
    """Escape a name so that it is printable on one line."""
    return name if name.isprintable() else repr(name)


def some(names: Sequence[str], most: int = 10) -> str:
    """Join the first `most` names into one line; append the number of omitted names, if any."""
    listed = ", ".join(shown(name) for name in names[:most])
    return listed + (f" and {len(names) - most:,} more" if len(names) > most else "")
