"""Data sources, which provide environments. `source` returns the data source with a given name."""

from importlib import import_module
from pathlib import Path

from envariant.core import specs
from envariant.core.environments import EnvironmentSource
from envariant.core.errors import EnvariantError
from envariant.core.plugins import Plugins, is_dataclass_of
from envariant.data.base import SpecSource
from envariant.data.colored.channels import ColorChannels
from envariant.data.colored.construction import ColoredSource, Facts
from envariant.data.colored.digits import ColoredDigits
from envariant.data.colored.mnist_protocols import ColoredMNIST
from envariant.data.datasets import from_dataset
from envariant.data.images.domainbed import DomainBed
from envariant.data.images.folders import ImageFolders
from envariant.data.images.spawrious import Spawrious
from envariant.data.images.wilds import MetadataImages, Wilds
from envariant.data.linear_sem import LinearSEM
from envariant.data.linear_unit_tests import LinearUnitTests
from envariant.data.rotated.mnist import RotatedMNIST
from envariant.data.tables.bundled import heart_disease
from envariant.data.wilds_texts import wilds_table

ENTRY_POINTS = "envariant.data"
"""Entry-point group of data sources from other packages: `name = "module:Class"`.

The class must be an `EnvironmentSource` and a frozen dataclass. For an instance `s`, `source(s.name)` must
return an equal instance; the base class `SpecSource` ensures this.
"""

PLUGINS = Plugins[type[EnvironmentSource]](
    ENTRY_POINTS,
    "data set",
    requirement="an EnvironmentSource and a frozen dataclass",
    fits=lambda plugin, name: is_dataclass_of(plugin, EnvironmentSource),
)

SOURCES: dict[str, tuple[str, str]] = {
    "colored-mnist": (
        "colored.mnist_protocols:ColoredMNIST",
        "Colored MNIST on the original digits, protocols :irm (default), :domainbed, :thirds and :eqrm.",
    ),
    "colored-mnist-grayscale": (
        "colored.mnist_protocols:ColoredMNIST",
        "Colored MNIST without colors: the data of the grayscale oracle.",
    ),
    "colored-mnist-channels": (
        "colored.channels:ColorChannels",
        "Colored MNIST with the color channels as environments, as in the course report.",
    ),
    "colored-mnist-covariate-shift": (
        "colored.covariate_shift:CovariateShift",
        "Colored MNIST with imbalanced classes, digits or shades of color, as in the REx code.",
    ),
    "colored-mnist-hetero": (
        "colored.hetero:HeteroskedasticMNIST",
        "Colored MNIST whose label noise depends on the digit, with a shift of the digits (REx code).",
    ),
    "colored-digits": (
        "colored.digits:ColoredDigits",
        "A small version of Colored MNIST with 1,797 digits of 8×8 pixels; needs no download.",
    ),
    "colored-digits-grayscale": ("colored.digits:ColoredDigits", "Colored digits without colors."),
    "rotated-mnist": (
        "rotated.mnist:RotatedMNIST",
        "MNIST digits rotated by 0 to 75 degrees, one angle per environment, as in DomainBed.",
    ),
    "domainbed-split": (
        "domainbed_split:DomainBedSplit",
        "Another data set in DomainBed's splits: 80 % and 20 % of every environment, test environments too.",
    ),
    "by-group": (
        "by_group:ByGroup",
        "The groups of another data set as environments: rows with the same class and attributes.",
    ),
    "linear-sem": (
        "linear_sem:LinearSEM",
        "Linear structural equation models of the IRM paper, such as linear-sem(FOU), in 8 setups.",
    ),
    "linear-unit-tests": (
        "linear_unit_tests:LinearUnitTests",
        "Linear unit tests for invariance, such as linear-unit-tests(example2s): six problems.",
    ),
    "table": (
        "tables.source:TableSource",
        "A CSV or Parquet file with a target column and an environment column.",
    ),
    "image-folders": ("images.folders:ImageFolders", "Images in folders domain/class/image."),
    "metadata-images": (
        "images.wilds:MetadataImages",
        "Images with a CSV file that holds their class and environment.",
    ),
    "wilds": ("images.wilds:Wilds", "An image data set of WILDS in its own folder."),
    "features": (
        ".features:Features",
        "Features of images, or of the text columns of a table, extracted once by a frozen backbone.",
    ),
    "domainbed": (
        "images.domainbed:DomainBed",
        "PACS, VLCS, OfficeHome, TerraIncognita, DomainNet or SVIRO in the folder of DomainBed.",
    ),
    "spawrious": (
        "images.spawrious:Spawrious",
        "Spawrious: dog breeds whose backgrounds change in the test environment.",
    ),
    "spirals": (
        "spirals:Spirals",
        "Interlocked spirals with a signature that is a shortcut: the synthetic data of the AND-mask paper.",
    ),
}
"""Class (imported at first use) and description of every source, by name."""

colored_mnist = ColoredMNIST
colored_digits = ColoredDigits


def source(text: str, *, folder: Path | None = None) -> EnvironmentSource:
    """Convert a string such as `colored-mnist:irm(label_noise=0.1)` to a data source.

    Args:
        text: Name of the source, optional protocol after a colon, and optional settings in parentheses.
        folder: Folder of the MNIST files. Default: the folder in the environment variable `ENVARIANT_MNIST`;
            if it is not set, the files are read from the cache or downloaded.

    Raises:
        EnvariantError: If the source, its protocol or a setting is unknown or invalid, or a plug-in cannot be
            imported.
    """
    if isinstance(text, str) and text.lower().endswith((".csv", ".parquet")):
        example = f"table({text!r}, target=…, environment=…)"
        raise EnvariantError(f"data: '{text}' is a file; name its target and environment columns: {example}")
    spec = specs.parse_as("data", text)
    name = spec.name.partition(":")[0]
    if name in SOURCES:
        module, class_name = SOURCES[name][0].split(":")
        cls: type[SpecSource] = getattr(import_module(f".{module}", __name__), class_name)
        return cls.from_spec(spec, folder)
    plugin = PLUGINS.load(name, SOURCES)
    is_spec_source = issubclass(plugin, SpecSource)
    built = plugin.from_spec(spec, folder) if is_spec_source else plugin(**specs.fill(plugin, spec))
    if specs.parse(built.name).name.partition(":")[0] != name:
        raise EnvariantError(
            f"data set '{name}': the name of its source must begin with '{name}'; got '{built.name}'"
        )
    return built


def installed_sources() -> tuple[dict[str, type[EnvironmentSource]], tuple[str, ...]]:
    """Return plug-in data source classes by name, and a message for each plug-in that failed to load."""
    return PLUGINS.load_all(SOURCES)


__all__ = [
    "ENTRY_POINTS",
    "SOURCES",
    "ColorChannels",
    "ColoredDigits",
    "ColoredMNIST",
    "ColoredSource",
    "DomainBed",
    "Facts",
    "ImageFolders",
    "LinearSEM",
    "LinearUnitTests",
    "MetadataImages",
    "RotatedMNIST",
    "Spawrious",
    "SpecSource",
    "Wilds",
    "colored_digits",
    "colored_mnist",
    "from_dataset",
    "heart_disease",
    "installed_sources",
    "source",
    "wilds_table",
]
