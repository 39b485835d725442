"""Your own images as they lie in folders: `domain/class/image`, DomainBed's layout.

Every domain is an environment. The classes are those of all domains together: a class that is missing in
one does not renumber the others there, as it does where each domain is read alone.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

from envariant.core.errors import EnvariantError
from envariant.data.images.base import SUFFIXES, ImageSource, Listing, ReplicaStack, shown, some

# Why something under the folder is left aside.
_HIDDEN, _STRAY, _DEEP, _OTHER = (
    "hidden",
    "a file where a folder belongs",
    "a folder inside a class",
    "no image by its name",
)


@final
@dataclass(frozen=True)
class ImageFolders(ImageSource):
    """Folders `domain/class/image` as environments; domains and classes are sorted by name.

    Two classes are a binary task, the second of them 1; more are a multiclass task. `preprocessing_log` tells which
    class is missing where, and what was skipped.
    """

    base: ClassVar[str] = "image-folders"

    def listing(self) -> Listing:
        if Path(self.root).is_file():
            raise EnvariantError(
                f"{self.base}: {self.root} is a file; give the folder that holds domain/class/image"
            )
        skipped: dict[str, list[str]] = {why: [] for why in (_HIDDEN, _STRAY, _DEEP, _OTHER)}
        domains = {
            domain: {kind: list(self._images(f"{domain}/{kind}", skipped)) for kind in kinds}
            for domain, kinds in (
                (name, list(self._folders(name, skipped))) for name in self._folders("", skipped)
            )
        }
        found = {domain: kinds for domain, kinds in domains.items() if any(kinds.values())}
        classes = sorted({kind for kinds in found.values() for kind, files in kinds.items() if files})
        self._check(list(found), classes, skipped)
        number = {kind: k for k, kind in enumerate(classes)}
        groups = [
            ReplicaStack(
                domain,
                [file for files in kinds.values() for file in files],
                [number[kind] for kind, files in kinds.items() for _ in files],
            )
            for domain, kinds in found.items()
        ]
        empty = [f"{d}/{kind}" for d, kinds in domains.items() for kind, files in kinds.items() if not files]
        empty += [domain for domain, kinds in domains.items() if not kinds]
        remarks = [f"skipped, {why}: {some(names)}" for why, names in skipped.items() if names]
        remarks += [f"no images in: {some(empty)}"] if empty else []
        return Listing(tuple(groups), tuple(classes), remarks=tuple(remarks))

    def _folders(self, place: str, skipped: Mapping[str, list[str]]) -> Iterator[str]:
        for name, is_folder in self._entries(place, skipped):
            if is_folder:
                yield name
            else:
                skipped[_STRAY].append(f"{place}/{name}".lstrip("/"))

    def _images(self, place: str, skipped: Mapping[str, list[str]]) -> Iterator[str]:
        for name, is_folder in self._entries(place, skipped):
            path = f"{place}/{name}"
            if not is_folder and name.lower().endswith(SUFFIXES):
                yield path
            else:
                skipped[_DEEP if is_folder else _OTHER].append(path)

    def _entries(self, place: str, skipped: Mapping[str, list[str]]) -> Iterator[tuple[str, bool]]:
        """What lies in a folder, by name, and whether it is one itself."""
        folder = Path(self.root, place)
        try:
            # Not by way of paths: of a million files, each would be asked anew what it is.
            with os.scandir(folder) as entries:
                found = sorted((entry.name, entry.is_dir()) for entry in entries)
        except OSError as error:
            raise EnvariantError(f"{self.base}: cannot look into {folder} ({error.strerror})") from None
        for name, is_folder in found:
            if name.startswith("."):
                skipped[_HIDDEN].append(f"{place}/{name}".lstrip("/"))
            else:
                yield name, is_folder

    def _check(
        self, domains: Sequence[str], classes: Sequence[str], skipped: Mapping[str, Sequence[str]]
    ) -> None:
        if not domains:
            high = [name for name in skipped[_STRAY] if name.lower().endswith(SUFFIXES)]
            hint = f"; '{shown(high[0])}' lies too high" if high else ""
            if not high and skipped[_DEEP]:
                hint = f"; '{shown(skipped[_DEEP][0])}' is a folder where images belong"
            raise EnvariantError(f"{self.base}: {self.root} holds no domain/class/image{hint}")
        if len(domains) == 1:
            raise EnvariantError(
                f"{self.base}: {self.root} holds one domain, '{shown(domains[0])}'; it takes two at least, "
                f"each with folders for its classes, to see what holds in all of them"
            )
        if len(classes) == 1:
            raise EnvariantError(
                f"{self.base}: {self.root} holds one class, '{shown(classes[0])}'; it takes two to tell apart"
            )
