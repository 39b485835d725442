"""Data source for Spawrious (Lynch et al. 2023, arXiv 2303.05470): four breeds of dogs on six backgrounds.

Breed and background are correlated in the training environments. In the test environment, each breed appears
on different backgrounds than in training.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

from envariant.core.errors import EnvariantError, unknown_name
from envariant.data.images.base import ImageGroup, ImageSource, Listing
from envariant.data.images.decoding import shown
from envariant.data.images.reading import SUFFIXES

CLASSES = ("bulldog", "corgi", "dachshund", "labrador")

# Number of images of each breed in an environment. In one-to-one benchmarks, also the shares of images whose
# background is specific to the breed; the other images have a background that all breeds share.
_TOTAL, _SHARES = 3168, (0.97, 0.87)
# Order in which the tables list the breeds.
_BREEDS = ("bulldog", "dachshund", "labrador", "corgi")


@final
@dataclass(frozen=True)
class _Backgrounds:
    """Backgrounds of the breeds in training and in testing; `shared` is used in one-to-one sets only."""

    training: tuple[str, str, str, str]
    testing: tuple[str, str, str, str]
    shared: str = ""


_BENCHMARKS: Mapping[str, _Backgrounds] = {
    "o2o_easy": _Backgrounds(
        ("desert", "jungle", "dirt", "snow"), ("dirt", "snow", "desert", "jungle"), "beach"
    ),
    "o2o_medium": _Backgrounds(
        ("mountain", "beach", "dirt", "jungle"), ("jungle", "dirt", "beach", "snow"), "desert"
    ),
    "o2o_hard": _Backgrounds(
        ("jungle", "mountain", "snow", "desert"), ("mountain", "snow", "desert", "jungle"), "beach"
    ),
    "m2m_easy": _Backgrounds(
        ("desert", "mountain", "dirt", "jungle"), ("dirt", "jungle", "mountain", "desert")
    ),
    "m2m_medium": _Backgrounds(
        ("beach", "snow", "mountain", "desert"), ("desert", "mountain", "beach", "snow")
    ),
    "m2m_hard": _Backgrounds(("dirt", "jungle", "snow", "beach"), ("snow", "beach", "dirt", "jungle")),
}
# In many-to-many sets, the second environment exchanges the backgrounds within two pairs of breeds.
_SECOND = (1, 0, 3, 2)

_Part = tuple[str, str, int | None]


@final
@dataclass(frozen=True)
class Spawrious(ImageSource):
    """Data source for Spawrious in the folder `spawrious224`, with images at `0/background/breed/image.png`.

    Training environments are `group 1` and `group 2`; the test environment is `test`. Files are sorted by
    name.

    Attributes:
        benchmark: One-to-one (`o2o_easy`, `o2o_medium`, `o2o_hard`) or many-to-many (`m2m_easy`,
            `m2m_medium`, `m2m_hard`).
    """

    base: ClassVar[str] = "spawrious"
    benchmark: str = "o2o_hard"

    def listing(self) -> Listing:
        if self.benchmark not in _BENCHMARKS:
            raise unknown_name("benchmark", str(self.benchmark), _BENCHMARKS, where=self.base)
        groups = tuple(self._group(name, parts) for name, parts in self._parts().items())
        return Listing(groups, CLASSES, test=("test",))

    def _parts(self) -> dict[str, list[tuple[str, _Part]]]:
        """Return the parts of each environment: breed, folder, background and maximum number of images."""
        chosen = _BENCHMARKS[self.benchmark]
        parts: dict[str, list[tuple[str, _Part]]] = {"group 1": [], "group 2": [], "test": []}
        for k, breed in enumerate(_BREEDS):
            for e, share in enumerate(_SHARES):
                own = parts[f"group {e + 1}"]
                if chosen.shared:
                    count = int(share * _TOTAL)
                    own.append((breed, (str(e), chosen.training[k], count)))
                    own.append((breed, (str(e), chosen.shared, _TOTAL - count)))
                    parts["test"].append((breed, (str(e), chosen.testing[k], None)))
                else:
                    place = k if e == 0 else _SECOND[k]
                    own.append((breed, ("0", chosen.training[place], _TOTAL)))
                    parts["test"].append((breed, ("0", chosen.testing[place], None)))
        return parts

    def _group(self, name: str, parts: list[tuple[str, _Part]]) -> ImageGroup:
        files: list[str] = []
        targets: list[int] = []
        for breed, (folder, background, most) in parts:
            relative = f"{folder}/{background}/{breed}"
            path = Path(self.root, relative)
            own = sorted(each.name for each in path.glob("*") if each.name.lower().endswith(SUFFIXES))
            if not own:
                raise EnvariantError(
                    f"{self.base}: {shown(str(path))} holds no images; {self.benchmark} needs "
                    f"spawrious224/{relative}/*.png, so pass the folder spawrious224 of the unpacked archive"
                )
            own = own[:most]
            files += [f"{relative}/{file}" for file in own]
            targets += [CLASSES.index(breed)] * len(own)
        return ImageGroup(name, files, targets)
