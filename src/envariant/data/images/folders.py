"""Data source for images in folders `domain/class/image`, the layout of DomainBed.

Every domain is an environment. A class has the same index in all domains, even if some domains lack a class.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

from envariant.core.conversion import clean, look_alikes
from envariant.core.errors import EnvariantError
from envariant.data.images.base import ImageGroup, ImageSource, Listing
from envariant.data.images.decoding import shown, some
from envariant.data.images.reading import SUFFIXES

# Reasons for skipping an entry.
_HIDDEN, _STRAY = "hidden", "a file in place of a folder"
_DEEP, _OTHER = "a folder inside a class", "not an image, judging by its suffix"


@final
@dataclass(frozen=True)
class ImageFolders(ImageSource):
    """Data source for images in folders `domain/class/image`; domains and classes are sorted by name.

    With two classes, the task is binary and the second class has target 1; otherwise it is multiclass.
    `preprocessing_log` lists missing classes and skipped files.
    """

    base: ClassVar[str] = "image-folders"

    def listing(self) -> Listing:
        if os.path.isfile(self.root):  # noqa: PTH113 - pathlib raises an error for a name that is too long
            raise EnvariantError(
                f"{self.base}: {self.root} is a file; name the folder that holds domain/class/image"
            )
        skipped: dict[str, list[str]] = {why: [] for why in (_HIDDEN, _STRAY, _DEEP, _OTHER)}
        domains = {
            domain: {k: list(self._images(f"{domain}/{k}", skipped)) for k in self._folders(domain, skipped)}
            for domain in self._folders("", skipped)
        }
        used = {domain: kinds for domain, kinds in domains.items() if any(kinds.values())}
        folders = sorted({kind for kinds in used.values() for kind, files in kinds.items() if files})
        classes = sorted(set(map(clean, folders)))
        self._check(list(used), classes, skipped)
        number = {kind: classes.index(clean(kind)) for kind in folders}
        groups = [
            ImageGroup(
                domain,
                [file for files in kinds.values() for file in files],
                [number[kind] for kind, files in kinds.items() if files for _ in files],
            )
            for domain, kinds in used.items()
        ]
        empty = [f"{d}/{kind}" for d, kinds in domains.items() for kind, files in kinds.items() if not files]
        empty += [domain for domain, kinds in domains.items() if not kinds]
        remarks = [f"skipped, {why}: {some(names)}" for why, names in skipped.items() if names]
        remarks += [f"no images in: {some(empty)}"] if empty else []
        if len(folders) > len(classes):
            merged = [sentence for sentence in look_alikes(folders) if "character form" in sentence]
            remarks += [f"{sentence}, and are treated as one class" for sentence in merged]
        return Listing(tuple(groups), tuple(classes), remarks=tuple(remarks))

    def _folders(self, parent: str, skipped: Mapping[str, list[str]]) -> Iterator[str]:
        for name, is_folder in self._entries(parent, skipped):
            if is_folder:
                yield name
            else:
                skipped[_STRAY].append(f"{parent}/{name}".lstrip("/"))

    def _images(self, parent: str, skipped: Mapping[str, list[str]]) -> Iterator[str]:
        for name, is_folder in self._entries(parent, skipped):
            path = f"{parent}/{name}"
            if not is_folder and name.lower().endswith(SUFFIXES):
                yield path
            else:
                skipped[_DEEP if is_folder else _OTHER].append(path)

    def _entries(self, parent: str, skipped: Mapping[str, list[str]]) -> Iterator[tuple[str, bool]]:
        """Yield the name of each visible entry of a folder, and whether it is a folder, sorted by name."""
        folder = Path(self.root, parent)
        try:
            # Faster than pathlib, which makes a system call for each of a million files.
            with os.scandir(folder) as entries:
                names = sorted((entry.name, entry.is_dir()) for entry in entries)
        except OSError as error:
            raise EnvariantError(f"{self.base}: cannot list {folder} ({error.strerror})") from None
        for name, is_folder in names:
            if name.startswith("."):
                skipped[_HIDDEN].append(f"{parent}/{name}".lstrip("/"))
            else:
                yield name, is_folder

    def _check(
        self, domains: Sequence[str], classes: Sequence[str], skipped: Mapping[str, Sequence[str]]
    ) -> None:
        if not domains:
            too_high = [name for name in skipped[_STRAY] if name.lower().endswith(SUFFIXES)]
            hint = f"; '{shown(too_high[0])}' is not inside a class folder" if too_high else ""
            if not too_high and skipped[_DEEP]:
                hint = f"; '{shown(skipped[_DEEP][0])}' is a folder in place of an image"
            raise EnvariantError(
                f"{self.base}: {self.root} holds no images of the form domain/class/image{hint}"
            )
        if len(domains) == 1:
            raise EnvariantError(
                f"{self.base}: {self.root} holds one domain, '{shown(domains[0])}'; at least two are "
                f"needed, each with a folder for every class"
            )
        if len(classes) == 1:
            raise EnvariantError(
                f"{self.base}: {self.root} holds one class, '{shown(classes[0])}'; at least two are needed"
            )
