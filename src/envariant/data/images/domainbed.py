"""Data source for the image benchmarks of DomainBed, each identified by the name of its folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

from envariant.core.errors import EnvariantError, unknown_name
from envariant.data.images.base import ImageSource, Listing
from envariant.data.images.decoding import some
from envariant.data.images.folders import ImageFolders


@final
@dataclass(frozen=True)
class Layout:
    """Expected folders of a benchmark: `root/domain/class/image`.

    Attributes:
        title: Name of the benchmark, and reference to its paper.
        domains: Names of the domains.
        classes: Number of classes.
        example: Path of an example image, relative to the folder of the benchmark.
    """

    title: str
    domains: tuple[str, ...]
    classes: int
    example: str

    def expected(self, name: str) -> str:
        """Return a sentence that describes the expected folders, for error messages.

        Args:
            name: Name of the folder.
        """
        return (
            f"{name} must hold {len(self.domains)} domains ({', '.join(self.domains)}) with {self.classes} "
            f"classes, as in {name}/{self.example}"
        )


LAYOUTS: Mapping[str, Layout] = {
    "PACS": Layout(
        "PACS (Li et al. 2017, arXiv 1710.03077)",
        ("art_painting", "cartoon", "photo", "sketch"),
        7,
        "photo/dog/056_0001.jpg",
    ),
    "VLCS": Layout(
        "VLCS (Fang, Xu & Rockmore 2013)",
        ("Caltech101", "LabelMe", "SUN09", "VOC2007"),
        5,
        "LabelMe/car/x.jpg",
    ),
    "office_home": Layout(
        "OfficeHome (Venkateswara et al. 2017, arXiv 1706.07522)",
        ("Art", "Clipart", "Product", "Real World"),
        65,
        "Real World/Backpack/00001.jpg",
    ),
    "terra_incognita": Layout(
        "TerraIncognita (Beery, van Horn & Perona 2018, arXiv 1807.04975)",
        ("location_100", "location_38", "location_43", "location_46"),
        10,
        "location_38/coyote/x.jpg",
    ),
    "domain_net": Layout(
        "DomainNet (Peng et al. 2019, arXiv 1812.01754)",
        ("clipart", "infograph", "painting", "quickdraw", "real", "sketch"),
        345,
        "real/zebra/real_345_000001.jpg",
    ),
    "sviro": Layout(
        "SVIRO (Dias Da Cruz et al. 2020, arXiv 2001.03483)",
        ("aclass", "escape", "hilux", "i3", "lexus", "tesla", "tiguan", "tucson", "x5", "zoe"),
        7,
        "x5/0/x.png",
    ),
}
"""Layout of every benchmark, by the name of its folder in DomainBed."""

_ALIASES = {"officehome": "office_home", "terraincognita": "terra_incognita", "domainnet": "domain_net"}


@final
@dataclass(frozen=True)
class DomainBed(ImageSource):
    """Data source for PACS, VLCS, office_home, terra_incognita, domain_net or sviro in DomainBed's layout.

    The benchmark is identified by the name of the folder. Missing or additional domains and classes are
    errors. For a subset of a benchmark, or for other images, use `image-folders`.
    """

    base: ClassVar[str] = "domainbed"

    def listing(self) -> Listing:
        name = Path(self.root).name
        simple = name.lower().replace("-", "").replace("_", "").replace(" ", "")
        known = {key.lower().replace("_", ""): key for key in LAYOUTS} | _ALIASES
        if simple not in known:
            raise unknown_name(
                "benchmark", name, LAYOUTS, where=f"{self.base} (for other images use image-folders)"
            )
        layout = LAYOUTS[known[simple]]
        try:
            listing = ImageFolders(self.root).listing()
        except EnvariantError as error:
            reason = str(error).removeprefix(f"{ImageFolders.base}: ")
            raise EnvariantError(f"{self.base}: {reason}; {layout.expected(name)}") from None
        check_names(f"{self.base}: {self.root}", "domain", [g.name for g in listing.groups], layout, name)
        if len(listing.classes) != layout.classes:
            raise EnvariantError(
                f"{self.base}: {self.root} holds {len(listing.classes)} classes "
                f"({some(listing.classes, 5)}); {layout.expected(name)}"
            )
        return listing


def check_names(where: str, what: str, names: Sequence[str], layout: Layout, folder: str) -> None:
    """Check that the domain folders of a benchmark have the expected names.

    Args:
        where: Beginning of the error message.
        what: Noun for a folder in the error message.
        names: Names of the folders that exist.
        layout: Expected folders.
        folder: Name of the benchmark's folder.

    Raises:
        EnvariantError: If an expected folder is missing, or there is an additional folder.
    """
    missing = [name for name in layout.domains if name not in names]
    other = [name for name in names if name not in layout.domains]
    if missing or other:
        lacks = f"lacks the {what} {some(missing)}" if missing else f"holds the unknown {what} {some(other)}"
        raise EnvariantError(f"{where} {lacks}; {layout.expected(folder)}")
