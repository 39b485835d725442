"""Data sources for images whose classes and environments are listed in a CSV file.

`MetadataImages` reads any such file, given the names of three columns. `Wilds` reads the image data sets of
WILDS (Koh et al. 2021, arXiv 2012.07421), which the user must download.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, final

from envariant.core.conversion import in_order
from envariant.core.errors import EnvariantError, first_line, unknown_name
from envariant.data.expansion import check_expansion
from envariant.data.images.base import ImageGroup, ImageSource, Listing
from envariant.data.images.decoding import shown, some

ROLES: Mapping[str, str] = {
    **dict.fromkeys(("train", "training", "0"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "id_val", "1"), "validation"),
    **dict.fromkeys(("test", "id_test", "2"), "test"),
}
"""Role of each value of a split column, as in WILDS."""


@final
@dataclass(frozen=True, eq=False)
class Rows:
    """Table with the path, class, environment and, optionally, the official split of each image."""

    files: Sequence[str]
    labels: Sequence[str]
    environments: Sequence[str]
    splits: Sequence[str] | None = None
    remarks: tuple[str, ...] = ()

    def listing(self, where: str) -> Listing:
        """Group the images by environment; each split of an environment becomes a separate environment.

        The training split keeps the name of the environment. The names of other splits are appended in
        parentheses, as in "hospital (val)".

        Args:
            where: Name of the data, for error messages.

        Raises:
            EnvariantError: If a split is unknown, the number of classes is too small or too large, or there
                is only one environment.
        """
        splits = ["train"] * len(self.files) if self.splits is None else [s.lower() for s in self.splits]
        for split in splits:
            if split not in ROLES:
                raise unknown_name("split", split, ROLES, where=where)
        classes = in_order(self.labels)
        if len(classes) < 2 or len(classes) > max(50, len(self.labels) // 2):
            raise EnvariantError(
                f"{where}: {len(self.labels):,} rows have {len(classes):,} classes ({some(classes, 3)}); at "
                f"least two are needed, with several images of each"
            )
        number = {label: k for k, label in enumerate(classes)}
        parts: dict[tuple[str, str], tuple[list[str], list[int]]] = {}
        rows = zip(self.files, self.labels, self.environments, splits, strict=True)
        for file, label, environment, split in rows:
            files, targets = parts.setdefault((environment, split), ([], []))
            files.append(file)
            targets.append(number[label])
        groups: list[ImageGroup] = []
        by_role: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
        for environment in in_order(self.environments):
            present = [split for split in dict.fromkeys(ROLES) if (environment, split) in parts]
            for split in present:
                plain = len(present) == 1 or ROLES[split] == "train"
                name = environment if plain else f"{environment} ({split})"
                groups.append(ImageGroup(name, *parts[environment, split]))
                by_role[ROLES[split]].append(name)
        if len(groups) < 2:
            raise EnvariantError(
                f"{where}: all rows come from '{shown(groups[0].name)}'; at least two environments are needed"
            )
        tests, validation = tuple(by_role["test"]), tuple(by_role["validation"])
        return Listing(tuple(groups), classes, tests, validation, self.remarks)


@final
@dataclass(frozen=True)
class MetadataImages(ImageSource):
    """Data source for images in a folder, described by a CSV file with one row per image.

    Attributes:
        file: Name of the column with image paths, relative to the folder.
        label: Name of the column with classes, which may be numbers or text.
        environment: Name of the column with environments.
        split: Name of the column with splits: `train`, `val` and `test` (or 0, 1, 2). Default: no splits.
            Rows of `val` and `test` form separate validation and test environments.
        metadata: Name of the CSV file in the folder.
    """

    base: ClassVar[str] = "metadata-images"
    file: str = field(kw_only=True)
    label: str = field(kw_only=True)
    environment: str = field(kw_only=True)
    split: str | None = field(default=None, kw_only=True)
    metadata: str = field(default="metadata.csv", kw_only=True)

    def listing(self) -> Listing:
        table = Table(self.base, Path(self.root), self.metadata)
        splits = None if self.split is None else table[self.split]
        rows = Rows(table[self.file], table[self.label], table[self.environment], splits)
        return rows.listing(self.base)


@final
@dataclass(frozen=True)
class Wilds(ImageSource):
    """Data source for a WILDS image data set, in the folder into which the package `wilds` downloaded it.

    The folder must have its original name, such as `camelyon17_v1.0`. Supported data sets and their
    environments are camelyon17 (five hospitals), iwildcam (camera traps), fmow (regions of the world), rxrx1
    (experiments), waterbirds (backgrounds) and celebA (men and women; the target is blond hair). For the
    texts of civilcomments and amazon, see `wilds_table`.

    Attributes:
        splits: Whether to use the official splits for test and validation environments; otherwise
            environments are not split, as in DomainBed.
    """

    base: ClassVar[str] = "wilds"
    splits: bool = True

    def listing(self) -> Listing:
        root = Path(self.root)
        named = re.fullmatch(r"(?P<name>.+)_v[\d.]+", root.name)
        if named is None:
            raise EnvariantError(
                f"{self.base}: {root} must have a name such as camelyon17_v1.0, as in WILDS; for other "
                f"images use metadata-images"
            )
        if named["name"] not in _SETS:
            where = f"{self.base} (for others use metadata-images)"
            raise unknown_name("data set", named["name"], _SETS, where=where)
        main = _TABLES.get(named["name"], "metadata.csv")
        table = Table(self.base, root, main)
        check_release(self.base, root)
        rows = _SETS[named["name"]](table)
        if not self.splits:
            rows = Rows(rows.files, rows.labels, rows.environments, remarks=rows.remarks)
        return rows.listing(f"{self.base}: {named['name']}")


def check_release(base: str, root: Path) -> None:
    """Check that the folder of a WILDS data set contains the file that marks a complete download.

    Raises:
        EnvariantError: If the file is missing.
    """
    if not list(root.glob("RELEASE_v*.txt")):
        raise EnvariantError(
            f"{base}: {root} lacks its RELEASE_v….txt, which marks a complete download; download the data "
            f"set again"
        )


@final
class Table:
    """CSV file whose columns are read as strings."""

    def __init__(self, base: str, root: Path, name: str) -> None:
        import pandas as pd

        path = root / name
        self.root, self.base = root, base
        self._where = f"{base}: {path}"
        if not root.is_dir():
            what = "a file" if root.exists() else "missing"
            raise EnvariantError(f"{base}: {root} is {what}; pass a folder")
        if not path.is_file():
            raise EnvariantError(f"{base}: there is no {name} in {root}")
        check_expansion(path)
        try:
            # Read as text: patient numbers may begin with zeros, and missing values must be detected.
            frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
        except (OSError, ValueError) as error:
            raise EnvariantError(f"{self._where}: cannot be read as a table ({first_line(error)})") from None
        self._columns = {str(name): frame[name].str.strip().tolist() for name in frame.columns}
        if not len(frame):
            raise EnvariantError(f"{self._where}: has no rows")

    def __getitem__(self, name: str) -> list[str]:
        column = self.texts(name)
        missing = [k for k, value in enumerate(column) if not value]
        if missing:
            raise EnvariantError(
                f"{self._where}: column '{name}' is empty in {len(missing):,} of {len(column):,} rows "
                f"(first: row {missing[0] + 1}); fill in or remove them"
            )
        return column

    def texts(self, name: str) -> list[str]:
        """Return a column, which may contain empty strings; `table[name]` raises an error if it does.

        Raises:
            EnvariantError: If the table has no column of this name.
        """
        if name not in self._columns:
            raise unknown_name("column", name, self._columns, where=self._where)
        return self._columns[name]

    def numbers(self, name: str) -> "list[float]":
        """Return a column of numbers.

        Raises:
            EnvariantError: If a value is not a number.
        """
        import pandas as pd

        values = pd.to_numeric(pd.Series(self[name]), errors="coerce")
        self._check_valid(name, values.notna().tolist(), "a number")
        return values.tolist()

    def years(self, name: str) -> list[int]:
        """Return the year of each time in a column.

        Raises:
            EnvariantError: If a value is not a time in ISO 8601 format.
        """
        import pandas as pd

        times = pd.to_datetime(pd.Series(self[name]), utc=True, format="ISO8601", errors="coerce")
        self._check_valid(name, times.notna().tolist(), "a time in ISO 8601")
        return times.dt.year.tolist()

    def _check_valid(self, name: str, valid: Sequence[bool], what: str) -> None:
        if not all(valid):
            row = valid.index(False)
            raise EnvariantError(
                f"{self._where}: column '{name}' holds {shown(self[name][row])!r} in row {row + 1}, which is "
                f"not {what}; download the data set again"
            )

    def together(self, *names: str) -> Iterator[tuple[str, ...]]:
        """Yield the values of several columns, row by row."""
        return zip(*(self[name] for name in names), strict=True)


def _camelyon17(table: Table) -> Rows:
    files = [
        f"patches/patient_{patient}_node_{node}/patch_patient_{patient}_node_{node}_x_{x}_y_{y}.png"
        for patient, node, x, y in table.together("patient", "node", "x_coord", "y_coord")
    ]
    # Two of the hospitals are never training environments, regardless of the split of their slides.
    fixed, official = {"1": "val", "2": "test"}, table.together("center", "split")
    splits = [fixed.get(center, "id_val" if split == "1" else split) for center, split in official]
    return Rows(files, table["tumor"], [f"center {center}" for center in table["center"]], splits)


def _iwildcam(table: Table) -> Rows:
    # All images are in the folder train, including those for testing.
    files = [f"train/{file}" for file in table["filename"]]
    return Rows(files, table["y"], table["location_remapped"], table["split"])


def _rxrx1(table: Table) -> Rows:
    files = [
        f"images/{experiment}/Plate{plate}/{well}_s{site}.png"
        for experiment, plate, well, site in table.together("experiment", "plate", "well", "site")
    ]
    official = table.together("dataset", "site")
    splits = ["id_test" if (split, site) == ("train", "2") else split for split, site in official]
    return Rows(files, table["sirna_id"], table["experiment"], splits)


def _waterbirds(table: Table) -> Rows:
    backgrounds = {"0": "land", "1": "water"}
    environments = [backgrounds.get(code, code) for code in table["place"]]
    return Rows(table["img_filename"], table["y"], environments, table["split"])


def _fmow(table: Table) -> Rows:
    countries = Table(table.base, table.root, "country_code_mapping.csv")
    regions = dict(zip(countries["alpha-3"], countries["region"], strict=True))
    years = table.years("timestamp")
    files: list[str] = []
    labels: list[str] = []
    environments: list[str] = []
    splits: list[str] = []
    unused = 0
    for k, (split, label, country) in enumerate(table.together("split", "category", "country_code")):
        # Images until 2012 for training, of 2013 to 2015 for validation, from 2016 for testing.
        late = years[k] >= 2016, years[k] >= 2013
        role = {
            ("train", False): "train",
            ("val", False): "id_val",
            ("test", False): "id_test",
        }.get((split, late[1]))
        role = "test" if split == "test" and late[0] else role
        role = "val" if split == "val" and late[1] and not late[0] else role
        if role is None:
            unused += 1
            continue
        # Images are numbered by their row in the file; unused rows are counted too.
        files.append(f"images/rgb_img_{k}.png")
        labels.append(label)
        environments.append(regions.get(country, "Other"))
        splits.append(role)
    remarks = (f"{unused:,} rows are in no official split, and are left out",) if unused else ()
    return Rows(files, labels, environments, splits, remarks)


def _celeba(table: Table) -> Rows:
    partition = Table(table.base, table.root, "list_eval_partition.csv")
    role = dict(zip(partition["image_id"], partition["partition"], strict=True))
    files = table["image_id"]
    if missing := [file for file in files if file not in role]:
        raise EnvariantError(
            f"{table.base}: list_eval_partition.csv lacks {len(missing):,} of {len(files):,} images (first: "
            f"{shown(missing[0])}); download it again"
        )
    labels = ["blond" if value == "1" else "not blond" for value in table["Blond_Hair"]]
    environments = ["male" if value == "1" else "female" for value in table["Male"]]
    return Rows(
        [f"img_align_celeba/{file}" for file in files], labels, environments, [role[file] for file in files]
    )


_TABLES: Mapping[str, str] = {"fmow": "rgb_metadata.csv", "celebA": "list_attr_celeba.csv"}
"""Name of the main table, if it is not metadata.csv."""

_SETS: Mapping[str, Callable[[Table], Rows]] = {
    "camelyon17": _camelyon17,
    "celebA": _celeba,
    "fmow": _fmow,
    "iwildcam": _iwildcam,
    "rxrx1": _rxrx1,
    "waterbirds": _waterbirds,
}
