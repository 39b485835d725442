"""Image files with a table beside them that says of each its class and where it comes from.

`MetadataImages` is told the names of three columns; `Wilds` knows those of the image sets of WILDS (Koh et
al. 2021, arXiv 2012.07421) and where their files lie. The user downloads; nothing here does.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, final

from envariant.core.conversion import in_order
from envariant.core.errors import EnvariantError, unknown_name
from envariant.data.images.base import ImageSource, Listing, ReplicaStack, shown, some

ROLES: Mapping[str, str] = {
    **dict.fromkeys(("train", "training", "0"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "id_val", "1"), "validation"),
    **dict.fromkeys(("test", "id_test", "2"), "test"),
}
"""What the values of a split column mean; numbers as WILDS has them."""


@final
@dataclass(frozen=True, eq=False)
class Rows:
    """A table of images: of each row a file relative to the root, a class, where it is from, and its split.

    All are texts; `splits` is None where rows are not split.
    """

    files: Sequence[str]
    labels: Sequence[str]
    environments: Sequence[str]
    splits: Sequence[str] | None = None

    def listing(self, where: str) -> Listing:
        """Environments in order; where the rows of one lie in several splits, each is an environment.

        Those of the training split have the plain name, the others the split in brackets behind it.

        Raises:
            EnvariantError: a split is unknown, or there are too few classes or environments.
        """
        splits = ["train"] * len(self.files) if self.splits is None else [s.lower() for s in self.splits]
        for split in splits:
            if split not in ROLES:
                raise unknown_name("split", split, ROLES, where=where)
        classes = in_order(self.labels)
        if len(classes) < 2 or len(classes) > max(50, len(self.labels) // 2):
            raise EnvariantError(
                f"{where}: {len(self.labels):,} rows have {len(classes):,} classes ({some(classes, 3)}); it "
                f"takes two to tell apart, and several images of each"
            )
        number = {label: k for k, label in enumerate(classes)}
        parts: dict[tuple[str, str], tuple[list[str], list[int]]] = {}
        for file, label, environment, split in zip(
            self.files, self.labels, self.environments, splits, strict=True
        ):
            files, targets = parts.setdefault((environment, split), ([], []))
            files.append(file)
            targets.append(number[label])
        groups: list[ReplicaStack] = []
        held: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
        for environment in in_order(self.environments):
            own = [split for split in dict.fromkeys(ROLES) if (environment, split) in parts]
            for split in own:
                plain = len(own) == 1 or ROLES[split] == "train"
                groups.append(
                    ReplicaStack(
                        environment if plain else f"{environment} ({split})", *parts[environment, split]
                    )
                )
                held[ROLES[split]].append(groups[-1].name)
        if len(groups) < 2:
            raise EnvariantError(
                f"{where}: all rows come from '{shown(groups[0].name)}'; it takes two environments at least"
            )
        return Listing(tuple(groups), classes, tuple(held["test"]), tuple(held["validation"]))


@final
@dataclass(frozen=True)
class MetadataImages(ImageSource):
    """A folder with a table, one row an image, of which three columns or four are named.

    Attributes:
        file: the column of the files' paths, relative to the folder.
        label: the column of classes, numbers or words.
        environment: the column that says where an image comes from.
        split: a column of `train`, `val` and `test` (or 0, 1, 2): environments of which all rows are for
            testing are held out, and of the others the rows that are not for training.
        metadata: the table's file in the folder, values parted by commas.
    """

    base: ClassVar[str] = "metadata-images"
    file: str = field(kw_only=True)
    label: str = field(kw_only=True)
    environment: str = field(kw_only=True)
    split: str | None = field(default=None, kw_only=True)
    metadata: str = field(default="metadata.csv", kw_only=True)

    def listing(self) -> Listing:
        table = _Table(self.base, Path(self.root), self.metadata)
        rows = Rows(
            table[self.file],
            table[self.label],
            table[self.environment],
            None if self.split is None else table[self.split],
        )
        return rows.listing(self.base)


@final
@dataclass(frozen=True)
class Wilds(ImageSource):
    """An image set of WILDS, as its own package downloads it: a folder such as `camelyon17_v1.0`.

    Known are camelyon17 (environments: the five hospitals), iwildcam (camera traps), rxrx1 (experiments)
    and waterbirds (backgrounds).

    Attributes:
        splits: keep to the official splits: what is for testing is held out, what is for validation is
            measured. Without them every row of an environment is one of its rows, as DomainBed has it.
    """

    base: ClassVar[str] = "wilds"
    splits: bool = True

    def listing(self) -> Listing:
        root = Path(self.root)
        named = re.fullmatch(r"(?P<name>.+)_v[\d.]+", root.name)
        if named is None:
            raise EnvariantError(
                f"{self.base}: {root} is not named as WILDS names its folders, such as camelyon17_v1.0; for "
                f"images of your own take metadata-images"
            )
        if named["name"] not in _SETS:
            raise unknown_name(
                "set of images", named["name"], _SETS, where=f"{self.base} (for others take metadata-images)"
            )
        table = _Table(self.base, root, "metadata.csv")
        if not list(root.glob("RELEASE_v*.txt")):
            raise EnvariantError(
                f"{self.base}: {root} lacks its RELEASE_v….txt, which is written when a download is "
                f"complete; download the set again"
            )
        rows = _SETS[named["name"]](table)
        if not self.splits:
            rows = Rows(rows.files, rows.labels, rows.environments)
        return rows.listing(f"{self.base}: {named['name']}")


@final
class _Table:
    """The columns of a file of comma-separated values, as texts."""

    def __init__(self, base: str, root: Path, name: str) -> None:
        import pandas as pd

        path = root / name
        self._where = f"{base}: {path}"
        if not root.is_dir():
            raise EnvariantError(
                f"{base}: {root} is {'a file' if root.exists() else 'not there'}; give a folder"
            )
        if not path.is_file():
            raise EnvariantError(f"{base}: there is no {name} in {root}")
        try:
            # As text: patients' numbers begin with zeros, and what is missing should be seen.
            found = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
        except (OSError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise EnvariantError(f"{self._where}: cannot be read as a table ({reason})") from None
        self._columns = {str(name): found[name].str.strip().tolist() for name in found.columns}
        if not len(found):
            raise EnvariantError(f"{self._where}: has no rows")

    def __getitem__(self, name: str) -> list[str]:
        if name not in self._columns:
            raise unknown_name("column", name, self._columns, where=self._where)
        column = self._columns[name]
        missing = [k for k, value in enumerate(column) if not value]
        if missing:
            raise EnvariantError(
                f"{self._where}: column '{name}' is empty in {len(missing):,} of {len(column):,} rows "
                f"(first: row {missing[0] + 1}); fill in or remove them"
            )
        return column

    def together(self, *names: str) -> Iterator[tuple[str, ...]]:
        """Of every row the values in these columns."""
        return zip(*(self[name] for name in names), strict=True)


def _camelyon17(table: _Table) -> Rows:
    files = [
        f"patches/patient_{patient}_node_{node}/patch_patient_{patient}_node_{node}_x_{x}_y_{y}.png"
        for patient, node, x, y in table.together("patient", "node", "x_coord", "y_coord")
    ]
    # Two hospitals are never trained on, whatever the table says of their slides.
    whole = {"1": "val", "2": "test"}
    splits = [
        whole.get(center, {"1": "id_val"}.get(split, split))
        for center, split in table.together("center", "split")
    ]
    return Rows(files, table["tumor"], [f"center {center}" for center in table["center"]], splits)


def _iwildcam(table: _Table) -> Rows:
    # All images lie in the folder train, those for testing too.
    files = [f"train/{file}" for file in table["filename"]]
    return Rows(files, table["y"], table["location_remapped"], table["split"])


def _rxrx1(table: _Table) -> Rows:
    files = [
        f"images/{experiment}/Plate{plate}/{well}_s{site}.png"
        for experiment, plate, well, site in table.together("experiment", "plate", "well", "site")
    ]
    splits = [
        "id_test" if (split, site) == ("train", "2") else split
        for split, site in table.together("dataset", "site")
    ]
    return Rows(files, table["sirna_id"], table["experiment"], splits)


def _waterbirds(table: _Table) -> Rows:
    grounds = {"0": "land", "1": "water"}
    places = [grounds.get(place, place) for place in table["place"]]
    return Rows(table["img_filename"], table["y"], places, table["split"])


_SETS: Mapping[str, Callable[[_Table], Rows]] = {
    "camelyon17": _camelyon17,
    "iwildcam": _iwildcam,
    "rxrx1": _rxrx1,
    "waterbirds": _waterbirds,
}
