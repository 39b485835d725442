"""Find words for missing values (such as NA), quoted or not, in the first records of a text file."""

import io
import lzma
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from envariant.data.expansion import OPENERS
from envariant.data.tables.kinds.missing import MISSING_TEXTS

# Bytes of text that are read.
_LENGTH = 1 << 18
# With fewer other strings, it is not known whether a column quotes its strings.
_FEWEST_TEXTS = 5


@final
@dataclass(frozen=True, eq=False)
class ColumnSample:
    """Words for missing values, such as NA, in the first records of one column.

    Attributes:
        counts: Number of fields for each pair of a word in lower case and whether it is in quotes. All
            strings other than words for missing values are counted together, under the word "".
    """

    counts: Mapping[tuple[str, bool], int]

    @property
    def words(self) -> frozenset[str]:
        """Words for missing values that occur in the column."""
        return frozenset(word for word, _ in self.counts if word)

    @property
    def quoted_words(self) -> frozenset[str]:
        """Words for missing values that occur in quotes."""
        return frozenset(word for word, in_quotes in self.counts if word and in_quotes)

    @property
    def unquoted_words(self) -> frozenset[str]:
        """Words for missing values that are never in quotes, in a column whose ordinary strings all are.

        Ordinary strings are those that are not words for missing values. The set is empty if one of them is
        without quotes, or if there are fewer than five. R, for example, writes strings in quotes, but NA
        without quotes.
        """
        marks = self.counts.get(("", True), 0) >= _FEWEST_TEXTS and ("", False) not in self.counts
        return self.words - self.quoted_words if marks else frozenset()


def first_records(
    path: Path, encoding: str, separator: str, header: Sequence[str]
) -> dict[str, ColumnSample]:
    """Find the words for missing values in the first records of each column.

    If every field other than these words is in quotes, quotes are ignored: all words count as unquoted. If
    the file cannot be decoded, the result contains no words.

    Args:
        path: Path of the text file.
        encoding: Encoding of the text.
        separator: Separator of the fields.
        header: Names of the columns.
    """
    counts = {name: Counter[tuple[str, bool]]() for name in header}
    records = _records(_beginning(path, encoding), separator)
    next(records, None)
    for record in records:
        for name, (text, in_quotes) in zip(header, record, strict=False):
            if word := text.strip().lower():
                counts[name][word if word in MISSING_TEXTS else "", in_quotes] += 1
    if not any(("", False) in count for count in counts.values()):
        # Everything is quoted, so that quotes mean nothing.
        counts = {name: Counter({(word, False): 1 for word, _ in count}) for name, count in counts.items()}
    return {name: ColumnSample(count) for name, count in counts.items()}


def first_bytes(path: Path, length: int) -> bytes:
    """Return the first `length` bytes of a file after decompression; empty if the file cannot be read."""
    try:
        if path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as archive, archive.open(archive.infolist()[0]) as file:
                return file.read(length)
        with OPENERS.get(path.suffix.lower(), Path.open)(path, "rb") as file:
            return file.read(length)
    except (OSError, EOFError, ValueError, IndexError, zipfile.BadZipFile, zlib.error, lzma.LZMAError):
        return b""


def _beginning(path: Path, encoding: str) -> str:
    content = io.BytesIO(first_bytes(path, _LENGTH))
    try:
        text = io.TextIOWrapper(content, encoding=encoding, errors="ignore", newline="").read()
    except (ValueError, LookupError):
        return ""
    return text.removeprefix("\ufeff")


def _records(text: str, separator: str) -> Iterator[list[tuple[str, bool]]]:
    """Yield each complete, non-blank record as a list of pairs: text of a field, and whether it is quoted."""
    sign = re.escape(separator)
    one = re.compile(rf'[ ]*(?:"((?:[^"]|"")*)"[ ]*|([^{sign}\r\n]*))({sign}|\r\n|\n|\r)')
    position, record = 0, list[tuple[str, bool]]()
    while (match := one.match(text, position)) is not None:
        position = match.end()
        record.append((match[2] or "", False) if match[1] is None else (match[1], True))
        if match[3] != separator:
            if record != [("", False)]:
                yield record
            record = []
