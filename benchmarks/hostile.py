"""Hostile inputs: files of strangers that must give one line of error, soon, and without much memory."""

import bz2
import gzip
import io
import json
import lzma
import os
import socket
import sqlite3
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Make = Callable[[Path], Any]
_LONGEST_LINE = 20_000


@dataclass(frozen=True)
class Hostile:
    """Hostile input.

    Attributes:
        make: Function that writes it into a folder which holds sound inputs (`prepare`).
        command: Command that reads it, given in that folder.
    """

    make: Make
    command: str


def prepare(folder: Path) -> None:
    """Write sound inputs to a folder: a table, images, a run, a saved model and a stored table."""
    import numpy as np
    import pandas as pd
    from PIL import Image

    import envariant
    from envariant.data.tables import table as tables
    from envariant.data.tables.source import TableSource
    from envariant.saved_model import SavedModel

    rng = np.random.default_rng(0)
    x = rng.normal(size=120)
    frame = pd.DataFrame({"x": x, "site": np.tile(["a", "b"], 60), "sick": (x > 0).astype(int)})
    frame.to_csv(folder / "table.csv", index=False)
    for name in ("a/u", "a/v", "b/u", "b/v"):
        (folder / "photos" / name).mkdir(parents=True)
        pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / name / "0.png")
    own = tables.read(frame, "sick", "site")
    own.write(folder / "stored")
    options: dict[str, Any] = {"model": "linear", "steps": 2, "evaluate_every": 2, "progress": False}
    result = envariant.train(TableSource(own), "erm", test_environments=(), **options)
    SavedModel.of(TableSource(own), result).save(folder / "model")
    envariant.train("colored-digits", "erm", out=folder / "run", execution="sequential", **options)


def content(name: str, data: bytes | str | Callable[[], bytes]) -> Make:
    """Return a function that writes a file, in place of an earlier one."""

    def make(folder: Path) -> None:
        written = data() if callable(data) else data
        _clear(folder / name).write_bytes(written.encode() if isinstance(written, str) else written)

    return make


def pipe(name: str) -> Make:
    """Return a function that makes a named pipe."""
    return lambda folder: os.mkfifo(_clear(folder / name))


def link(name: str, target: str = "/dev/zero") -> Make:
    """Return a function that makes a symbolic link."""
    return lambda folder: _clear(folder / name).symlink_to(target)


def directory(name: str) -> Make:
    """Return a function that makes a folder where a file is expected."""
    return lambda folder: _clear(folder / name).mkdir()


def sparse(name: str) -> Make:
    """Return a function that makes a file of 4 TiB that takes no space."""

    def make(folder: Path) -> None:
        _clear(folder / name).touch()
        os.truncate(folder / name, 1 << 42)

    return make


def unix_socket(name: str) -> Make:
    """Return a function that makes a socket."""

    def make(folder: Path) -> None:
        before = Path.cwd()
        # The path of a socket must be short.
        os.chdir(folder)
        try:
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(name)
        finally:
            os.chdir(before)

    return make


def sql(*statements: str, file: str = "run/runs.sqlite") -> Make:
    """Return a function that changes a store as a stranger could, with right checksums of all rows."""

    def make(folder: Path) -> None:
        from envariant.training.store.reader import SEALED, checksum

        with closing(sqlite3.connect(folder / file)) as connection:
            # Texts may hold any bytes.
            connection.text_factory = bytes
            for statement in statements:
                connection.execute(statement)
            for table in SEALED:
                for number, *row, _ in connection.execute(f"SELECT rowid, * FROM {table}").fetchall():
                    connection.execute(
                        f"UPDATE {table} SET checksum = ? WHERE rowid = ?", (checksum(row), number)
                    )
            connection.commit()

    return make


def tensors(name: str, change: Callable[[dict[str, str], dict[str, Any]], Any]) -> Make:
    """Return a function that changes a file of tensors as a stranger could, with a right checksum.

    Args:
        name: Path of the file.
        change: Function that changes texts and tensors, both by name.
    """

    def make(folder: Path) -> None:
        from envariant.core.files import read_tensors, write_tensors

        texts, values = read_tensors(folder / name, "")
        texts.pop("checksum", None)
        change(texts, values)
        write_tensors(folder / name, values, texts)

    return make


def _clear(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() and not path.is_symlink():
        for each in path.iterdir():
            each.unlink()
        path.rmdir()
    path.unlink(missing_ok=True)
    return path


def archive(files: Mapping[str, bytes | str]) -> bytes:
    """Return a compressed zip archive."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return packed.getvalue()


def workbook(sheet: str, head: str = "") -> bytes:
    """Return an Excel file of one sheet with the given XML."""
    space = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"
    types = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    return archive(
        {
            "[Content_Types].xml": f'<Types xmlns="{package}/content-types"><Default Extension="xml" '
            f'ContentType="{types}.sheet.main+xml"/><Default Extension="rels" ContentType="application/'
            f'vnd.openxmlformats-package.relationships+xml"/><Override PartName="/xl/worksheets/sheet1.xml" '
            f'ContentType="{types}.worksheet+xml"/></Types>',
            "_rels/.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1" '
            f'Type="{office}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
            "xl/workbook.xml": f'<workbook {space} xmlns:r="{office}"><sheets><sheet name="s" sheetId="1" '
            f'r:id="r1"/></sheets></workbook>',
            "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{package}/relationships"><Relationship '
            f'Id="r1" Type="{office}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
            "xl/worksheets/sheet1.xml": f"{head}<worksheet {space}><sheetData>{sheet}</sheetData>"
            "</worksheet>",
        }
    )


def _repeated(compress: Callable[[bytes], bytes]) -> bytes:
    """Return 512 MiB of zeros, compressed in parts that follow one another."""
    return compress(bytes(1 << 22)) * 128


def png(width: int, height: int, *more: tuple[bytes, bytes]) -> bytes:
    """Return a PNG file that announces a size, with one row of pixels and more chunks."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), *more, (b"IDAT", zlib.compress(bytes(width + 1))), (b"IEND", b""))
    packed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def _described(**changes: Any) -> Callable[[dict[str, str], dict[str, Any]], None]:
    """Change the description of a saved model; double underscores separate nested keys."""

    def change(texts: dict[str, str], values: dict[str, Any]) -> None:
        del values
        description = json.loads(texts["envariant.model"])
        for path, value in changes.items():
            *outer, last = path.split("__")
            place = description
            for key in outer:
                place = place[int(key) if key.isdigit() else key]
            place[last] = value
        texts["envariant.model"] = json.dumps(description)

    return change


def _text(key: str, value: str) -> Callable[[dict[str, str], dict[str, Any]], None]:
    return lambda texts, _: texts.update({key: value})


def _values(function: Callable[[Any], Any]) -> Callable[[dict[str, str], dict[str, Any]], None]:
    return lambda _, values: values.update({name: function(value) for name, value in values.items()})


DEEP, DIGITS, NAME = 100_000, "9" * 5_000, "\x1b[2J\u202e\x00\udcff"
ZEROS = zlib.compress(bytes(1 << 26))
NESTED = "[" * DEEP + "]" * DEEP
ROWS = b"x,site,sick\n" + b"1,a,0\n2,b,1\n" * 10_000
HEADER = "x,site,sick\n"
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(/tmp/x) (w) file\nshowpage\n"
STORED = "stored/table.safetensors"
PIXELS = "photos/a/u/0.png"
STUDY = 'data = "colored-digits"\nalgorithms = ["erm"]\n'

MODEL = "predict model table.csv"
COMPARE = "compare {} -t sick -e site --out out"
IMAGES = "train --data \"image-folders('photos', size=8, cache='cache')\" --model linear --steps 2"
SWEEP = "sweep study.toml --dry-run"
LIST = "runs list run"
REPORT = "report run -o page.html"
RESUME = "train -d colored-digits --model linear --steps 2 --evaluate-every 2 --execution sequential -o run"
TABLE = "train --data \"table('stored')\" --model linear --steps 2"


def _tables() -> dict[str, Hostile]:
    """Return hostile tables, each a file of its own format."""
    files: dict[str, tuple[str, Make]] = {
        "CSV, pipe": ("t.csv", pipe("t.csv")),
        "CSV, device": ("t.csv", link("t.csv")),
        "CSV, socket": ("t.csv", unix_socket("t.csv")),
        "CSV, circular link": ("t.csv", link("t.csv", "t.csv")),
        "CSV, folder": ("t.csv", directory("t.csv")),
        "CSV, 4 TiB of holes": ("t.csv", sparse("t.csv")),
        "CSV, NUL bytes": ("t.csv", content("t.csv", bytes(10_000))),
        "CSV, a NUL in every name": ("t.csv", content("t.csv", "\0x,\0site,\0sick\n1,a,0\n" * 9)),
        "CSV, never closed quote": ("t.csv", content("t.csv", HEADER + '"' + "1,a,0\n" * 300_000)),
        "CSV, 100,000 names": (
            "t.csv",
            content("t.csv", ",".join(map(str, range(100_000))) + "\n" + "1," * 99_999 + "1\n"),
        ),
        "CSV, one name of 1 MB": ("t.csv", content("t.csv", "n" * 1_000_000 + "\n1\n")),
        "CSV, escapes in names": ("t.csv", content("t.csv", "\x1b[2J\u202e,\x9b31m\n1,2\n")),
        "CSV, numbers of 5,000 digits": ("t.csv", content("t.csv", HEADER + f"{DIGITS},a,0\n1,b,1\n" * 60)),
        "CSV, 1e999": ("t.csv", content("t.csv", HEADER + "1e999,a,0\n1,b,1\n" * 60)),
        "CSV, infinite targets": ("t.csv", content("t.csv", HEADER + "1,a,inf\n2,b,-inf\n3,a,7.5\n" * 60)),
        "CSV, other encoding": ("t.csv", content("t.csv", HEADER.encode() + b"1,\xff,0\n" * 60)),
        "CSV, pickle": ("t.csv", content("t.csv", b"\x80\x04cos\nsystem\n(S'true'\ntR.")),
        "pickle": ("t.pkl", content("t.pkl", b"\x80\x04cos\nsystem\n(S'true'\ntR.")),
        "name that is no text": ("t\udcff\n.csv", lambda _: None),
        "gzip bomb": ("t.csv.gz", content("t.csv.gz", lambda: _repeated(gzip.compress))),
        "bzip2 bomb": ("t.csv.bz2", content("t.csv.bz2", lambda: _repeated(bz2.compress))),
        "xz bomb": ("t.csv.xz", content("t.csv.xz", lambda: _repeated(lzma.compress))),
        "cut gzip": ("t.csv.gz", content("t.csv.gz", gzip.compress(ROWS)[:-20])),
        "zip bomb": (
            "t.csv.zip",
            content("t.csv.zip", lambda: archive({f"{k}.csv": bytes(1 << 24) for k in range(20)})),
        ),
        "zip that leaves its folder": (
            "t.csv.zip",
            content("t.csv.zip", archive({"../../t.csv": "x", "/etc/t.csv": "x"})),
        ),
        "zip of nothing": ("t.csv.zip", content("t.csv.zip", archive({}))),
        "Excel of nested entities": (
            "t.xlsx",
            content(
                "t.xlsx",
                workbook(
                    '<row r="1"><c r="A1" t="inlineStr"><is><t>&j;</t></is></c></row>',
                    "<!DOCTYPE b [<!ENTITY a 'aaaaaaaaaa'>"
                    + "".join(
                        f"<!ENTITY {y} '{f'&{x};' * 10}'>"
                        for x, y in zip("abcdefghi", "bcdefghij", strict=True)
                    )
                    + "]>",
                ),
            ),
        ),
        "Excel that reads a file": (
            "t.xlsx",
            content(
                "t.xlsx",
                workbook(
                    '<row r="1"><c r="A1" t="inlineStr"><is><t>&x;</t></is></c></row>',
                    "<!DOCTYPE b [<!ENTITY x SYSTEM 'file:///etc/passwd'>]>",
                ),
            ),
        ),
        "Excel, the last cell only": (
            "t.xlsx",
            content("t.xlsx", workbook('<row r="1048576"><c r="XFD1048576"><v>1</v></c></row>')),
        ),
        "Excel, garbage": ("t.xlsx", content("t.xlsx", b"PK\3\4" + bytes(range(256)) * 9)),
        "old Excel, garbage": ("t.xls", content("t.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(4000))),
        "Parquet, footer of 2 GiB": ("t.parquet", content("t.parquet", b"PAR1" + b"\xff\xff\xff\x7fPAR1")),
        "Parquet, garbage": ("t.parquet", content("t.parquet", b"PAR1" + b"\x15" * 900 + b"\x84\3\0\0PAR1")),
        "Parquet, pipe": ("t.parquet", pipe("t.parquet")),
        "Parquet of lists": ("t.parquet", _parquet_of_lists),
        "Feather, garbage": ("t.feather", content("t.feather", b"ARROW1\0\0" + b"\xff" * 400 + b"ARROW1")),
        "JSON, deep": ("t.json", content("t.json", NESTED)),
        "JSON, deep values": ("t.json", content("t.json", '[{"x":' * 500 + "1" + "}]" * 500)),
        "JSON, 5,000 digits": ("t.json", content("t.json", f'[{{"x": {DIGITS}, "site": "a", "sick": 1}}]')),
        "JSON, halves of characters": (
            "t.json",
            content("t.json", json.dumps([{"x": 1, "site": "\ud800", "sick\udfff": "\udc00"}] * 60)),
        ),
        "JSON, null": ("t.json", content("t.json", "null")),
        "JSON, a list of nothing": ("t.json", content("t.json", "[[],[],{}]")),
        "JSON, values of other types": (
            "t.json",
            content("t.json", '{"data": 7, "columns": {"a": []}, "schema": "x"}'),
        ),
        "JSON lines, cut": ("t.jsonl", content("t.jsonl", '{"x": 1, "site": "a"}\n{"x": ')),
        "Stata, garbage": ("t.dta", content("t.dta", b"<stata_dta><header><release>118" + bytes(999))),
        "SAS, garbage": ("t.xpt", content("t.xpt", b"HEADER RECORD*******LIBRARY HEADER" + bytes(999))),
        "SPSS, garbage": ("t.sav", content("t.sav", b"$FL2" + b"\xff" * 999)),
    }
    cases = {name: Hostile(make, COMPARE.format(_quoted(file))) for name, (file, make) in files.items()}
    new = content("new.csv", f"x,{NAME[:5]}\n{DIGITS},1\n")
    return cases | {
        "table to predict, 5,000 digits": Hostile(new, "predict model new.csv"),
        "table to predict, device": Hostile(link("new.csv"), "predict model new.csv"),
        "predictions to a pipe": Hostile(pipe("p.csv"), "predict model table.csv -o p.csv"),
        "predictions to a device": Hostile(link("p.csv", "/dev/full"), "predict model table.csv -o p.csv"),
    }


def _quoted(name: str) -> str:
    return f"'{name}'"


def _parquet_of_lists(folder: Path) -> None:
    import pandas as pd

    pd.DataFrame({"x": [[1, 2]] * 60, "site": [{"a": 1}] * 60, "sick": [[0]] * 60}).to_parquet(
        folder / "t.parquet"
    )


def _models() -> dict[str, Hostile]:
    """Return hostile folders of saved models."""
    name = "model/model.safetensors"
    makes: dict[str, Make] = {
        "pipe": pipe(name),
        "device": link(name),
        "circular link": link(name, "model.safetensors"),
        "folder": directory(name),
        "4 TiB of holes": sparse(name),
        "empty": content(name, b""),
        "header of 2⁶³ bytes": content(name, b"\xff" * 7 + b"\x7f{}"),
        "deep header": content(name, struct.pack("<Q", 2 * DEEP) + NESTED.encode()),
        "pickle": content(name, b"\x80\x02cos\nsystem\n(S'true'\ntR."),
        "zip of PyTorch": content(name, archive({"model/data.pkl": b"cos\nsystem\n(S'true'\ntR."})),
        "without a checksum": content(name, struct.pack("<Q", 2) + b"{}"),
        "deep description": tensors(name, _text("envariant.model", NESTED)),
        "million layers": tensors(name, _described(predictor__model="mlp(hidden=4, depth=1000000)")),
        "wide layer": tensors(name, _described(predictor__model="mlp(hidden=1000000000)")),
        "escapes as classes": tensors(name, _described(classes=["\x1b[2J", "\x1b[2J"])),
        "weights that are NaN": tensors(
            name, _values(lambda v: v * float("nan") if v.is_floating_point() else v)
        ),
        "weights of another shape": tensors(name, _values(lambda v: v[None])),
        "no weights": tensors(name, lambda _, values: values.clear()),
        "huge number": tensors(name, _described(encoder__columns__0__scale=10**400)),
    }
    return {f"model, {what}": Hostile(make, MODEL) for what, make in makes.items()}


def _studies() -> dict[str, Hostile]:
    """Return hostile declarations of studies."""
    name = "study.toml"
    texts = {
        "deep": f"data = {NESTED}",
        "name that leaves its folder": STUDY + 'name = "../../x"',
        "name of a device": STUDY + 'name = "/dev/full"',
        "escapes": STUDY + '"\\u001b[2J" = 1',
        "trials beyond all numbers": STUDY + "n_trials = 1000000000000000000",
        "integer of 5,000 digits": STUDY + f"replicas = {DIGITS}",
        "infinite numbers": STUDY + "holdout_fraction = inf",
        "a date as seed": STUDY + "seed = 2020-01-01",
        "data that is a file": 'data = "/etc/passwd"\nalgorithms = ["erm"]',
        "algorithm that is code": 'data = "colored-digits"\nalgorithms = ["__import__(\'os\')"]',
        "deep algorithm": f'data = "colored-digits"\nalgorithms = ["{"irm(" * 9_000}"]',
        "settings that are a list": STUDY + "settings = [1, [2]]",
        "settings that are deep": STUDY + 'settings = {"steps" = {"a" = {"b" = 1}}}',
        "replicas beyond memory": STUDY + "replicas = 4000000000\nsettings = {steps = 4000000000}",
    }
    makes = {what: content(name, text) for what, text in texts.items()}
    makes |= {
        "pipe": pipe(name),
        "device": link(name),
        "circular link": link(name, name),
        "folder": directory(name),
        "NUL bytes": content(name, bytes(1000)),
        "UTF-16": content(name, STUDY.encode("utf-16")),
        "4 TiB of holes": sparse(name),
    }
    return {f"study, {what}": Hostile(make, SWEEP) for what, make in makes.items()}


def _stores() -> dict[str, Hostile]:
    """Return hostile folders of runs."""
    name, weights, job = "run/runs.sqlite", "run/jobs/000001/replica-000.safetensors", "run/jobs/000001"
    endless = "WITH RECURSIVE t(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM t) SELECT x FROM t"
    listed: dict[str, Make] = {
        "pipe": pipe(name),
        "device": link(name),
        "folder": directory(name),
        "circular link": link(name, "runs.sqlite"),
        "empty": content(name, b""),
        "text": content(name, "SQLite"),
        "header only": content(name, b"SQLite format 3\0" + bytes(84)),
        "another database": _other_database(name),
        "endless view": sql("DROP TABLE history", f"CREATE VIEW history AS {endless}"),
        "trigger": sql("CREATE TRIGGER t AFTER UPDATE ON runs BEGIN DELETE FROM history; END"),
        "facts that are a view": _endless_facts(name, endless),
        "deep hyperparameters": sql(f"UPDATE runs SET hyperparameters = '{NESTED}'"),
        "learning rate of 5,000 digits": sql(f"UPDATE runs SET learning_rate = '{DIGITS}'"),
        "unknown state": sql("UPDATE runs SET state = char(27) || '[2J'"),
        "text that is no Unicode": sql("UPDATE runs SET error = CAST(x'ff1b00' AS TEXT)"),
        "test environments of nobody": sql("UPDATE runs SET test_set = 99"),
        "test environment of no set": sql("UPDATE test_environments SET test_set = 99"),
        "scores of unknown environments": sql("UPDATE names SET id = id + 1000"),
        "log that is a folder": directory(f"{name}-wal"),
        "journal that is a folder": directory(f"{name}-journal"),
    }  # fmt: skip
    shown = {
        "deep record": sql(f"UPDATE jobs SET record = '{NESTED}'"),
        "record that is no object": sql("UPDATE jobs SET record = '[1]'"),
        "record without fields": sql("UPDATE jobs SET record = '{}'"),
        "scores of other environments": sql("UPDATE names SET name = name || 'x'"),
        "checkpoint that is a pipe": pipe(weights),
        "checkpoint that is a device": link(weights),
        "checkpoint of NUL bytes": content(weights, bytes(1000)),
        "checkpoint with a deep header": tensors(weights, _text("checkpoint", NESTED)),
        "checkpoint of a huge replica": tensors(weights, _text("checkpoint", f'{{"replicas": [{DIGITS}]}}')),
        "checkpoint of other shapes": tensors(weights, _values(lambda v: v.flatten()[:0])),
        "checkpoint of tensors within tensors": tensors(weights, _nested),
    }
    resumed = {
        "lock that is a folder": directory(f"{job}/.lock"),
        "jobs that are a file": _jobs_file,
    }
    groups = ((listed, LIST), (shown, REPORT), (resumed, RESUME))
    cases = {
        f"store, {what}": Hostile(make, command) for group, command in groups for what, make in group.items()
    }
    sweep = "sweep -d colored-digits --algorithms erm --n-trials 1 --steps 2 -o {}"
    return cases | {
        "output, circular link": Hostile(link("x", "x"), sweep.format("x")),
        "output, file": Hostile(content("x", "mine"), sweep.format("x")),
        "output, device": Hostile(link("x", "/dev/full"), sweep.format("x")),
        "page to a pipe": Hostile(pipe("p.html"), "report run -o p.html"),
        "page to a device": Hostile(link("p.html", "/dev/full"), "report run -o p.html"),
        "export to a folder": Hostile(directory("p.csv"), "runs export run -o p.csv"),
        "stored table, pipe": Hostile(pipe(STORED), TABLE),
        "stored table, deep header": Hostile(tensors(STORED, _text("table", NESTED)), TABLE),
        "stored table, no columns": Hostile(tensors(STORED, _no_columns), TABLE),
        "stored table, columns of other lengths": Hostile(
            tensors(STORED, lambda _, values: values.update({"0": values["0"][:7]})), TABLE
        ),
        "stored table, codes beyond the categories": Hostile(
            tensors(STORED, _values(lambda v: v + 1000)), TABLE
        ),
        "stored table, other types": Hostile(
            tensors(STORED, _values(lambda v: v.float())), TABLE
        ),
    }  # fmt: skip


def _nested(texts: dict[str, str], values: dict[str, Any]) -> None:
    del texts
    name = next(name for name in values if name.startswith("params/"))
    values[f"{name}/more"] = values[name].clone()


def _no_columns(texts: dict[str, str], values: dict[str, Any]) -> None:
    values.clear()
    texts["table"] = json.dumps(json.loads(texts["table"]) | {"columns": []})


def _jobs_file(folder: Path) -> None:
    (folder / "run" / "jobs").rename(folder / "before")
    (folder / "run" / "jobs").touch()


def _other_database(name: str) -> Make:
    def make(folder: Path) -> None:
        with closing(sqlite3.connect(_clear(folder / name))) as connection:
            connection.execute("CREATE TABLE moz_places (id)")

    return make


def _endless_facts(name: str, endless: str) -> Make:
    def make(folder: Path) -> None:
        with closing(sqlite3.connect(_clear(folder / name))) as connection:
            connection.execute(f"CREATE VIEW facts AS SELECT x AS value, x AS name FROM ({endless})")

    return make


def _images() -> dict[str, Hostile]:
    """Return hostile image files, and folders of images."""
    makes: dict[str, Make] = {
        "PostScript": content(PIXELS, EPS),
        "PDF": content(PIXELS, b"%PDF-1.4\n" + bytes(100)),
        "SVG with a file": content(PIXELS, "<svg><image href='file:///etc/passwd'/></svg>"),
        "10¹² pixels": content(PIXELS, png(10**6, 10**6)),
        "no pixels": content(PIXELS, png(0, 0)),
        "text bomb": content(PIXELS, png(8, 8, (b"zTXt", b"x\0\0" + ZEROS))),
        "profile bomb": content(PIXELS, png(8, 8, (b"iCCP", b"x\0\0" + ZEROS))),
        "circular TIFF": content(PIXELS, b"II*\0\x08\0\0\0" + b"\0\0" + b"\x08\0\0\0"),
        "empty": content(PIXELS, b""),
        "pipe": pipe(PIXELS),
        "device": link(PIXELS),
        "dangling link": link(PIXELS, "nowhere"),
        "folder": _only_a_folder,
        "circular folders": lambda folder: _clear_all(folder / "photos").symlink_to("photos"),
        "cache that is a file": content("cache", "mine"),
        "cache that is a pipe": pipe("cache"),
    }
    cases = {f"image, {what}": Hostile(make, IMAGES) for what, make in makes.items()}
    columns = "file='f', label='y', environment='e'"
    listed = f"train --data \"metadata-images('photos', {columns}, cache='cache', size=8)\" --steps 2"
    rows = "f,y,e\n" + "".join(f"{{}},{k % 2},{k // 2}\n" for k in range(4))
    metadata = {
        "pipe": pipe("photos/metadata.csv"),
        "image outside": content("photos/metadata.csv", rows.replace("{}", "../../../../etc/passwd")),
        "image that is a device": content("photos/metadata.csv", rows.replace("{}", "/dev/zero")),
        "escapes as images": content("photos/metadata.csv", rows.replace("{}", "\x1b[2J\u202e")),
    }
    return cases | {f"image list, {what}": Hostile(make, listed) for what, make in metadata.items()}


def _only_a_folder(folder: Path) -> None:
    for path in (folder / "photos").rglob("*.png"):
        path.unlink()
        path.mkdir()


def _clear_all(folder: Path) -> Path:
    import shutil

    shutil.rmtree(folder)
    return folder


def problem(code: int, output: str, errors: str) -> str:
    """Return what is wrong with the result of a command that was given a hostile input; "" if nothing is."""
    lines = errors.splitlines()
    if code != 2:
        return f"exit code {code}: {errors[-300:]}"
    if output or len(lines) != 1 or not lines[0].startswith("envariant: "):
        return f"not one line of error: {errors[-300:]}"
    if not lines[0].isprintable() or len(lines[0]) > _LONGEST_LINE:
        return f"{len(lines[0])} characters: {lines[0][:100]!r}"
    return ""


def inputs() -> dict[str, Hostile]:
    """Return all hostile inputs by name."""
    return {**_tables(), **_models(), **_studies(), **_stores(), **_images()}
