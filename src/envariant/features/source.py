"""`Features`: data source whose inputs are cached features, extracted once by a frozen backbone."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, cast, final

from torch import Tensor, nn

from envariant.core import specs
from envariant.core.conversion import several
from envariant.core.environments import DefaultSettings, Environment, EnvironmentSet, EnvironmentSource
from envariant.core.errors import EnvariantError, shown
from envariant.data import source as source_named
from envariant.data.base import SpecSource
from envariant.data.cache import cache_folder
from envariant.data.tables.source import TableSource
from envariant.data.tables.source import source as table_named
from envariant.features.backbones import Extractor, TextEncoder, extractor, name_of
from envariant.features.columns import embedded
from envariant.features.feature_file import DType
from envariant.features.images import (
    Extraction,
    Preprocessing,
    SourceRows,
    batches,
    content_key,
    features_of,
    preprocessing,
)
from envariant.features.lookup import backbone_of
from envariant.features.on_ray import BlocksOf, Cluster
from envariant.features.store import FeatureStore, Standardization

# Batches that a worker of a cluster computes at once.
_BATCHES = 4
# Fields that are not settings.
_HIDDEN = ("_samples",)


@final
@dataclass(frozen=True, eq=False)
class _Extracted:
    """Raw features of one sample of a source, as environments, and how they were computed."""

    environments: EnvironmentSet
    extraction: Extraction
    preprocessing: Preprocessing
    backbone: Extractor


@final
@dataclass(frozen=True, repr=False)
class Features(SpecSource):
    """Features of a frozen backbone, such as `features(image-folders('photos'), 'timm(resnet18)')`.

    Each row is passed once through the backbone, in evaluation mode and without gradients. The features are
    stored in the cache under a digest of rows, backbone, weights and preprocessing. An interrupted extraction
    can be resumed. The result is an ordinary data source on which any algorithm can train a head.

    In a table, text columns are replaced by the features of a text encoder; other columns stay unchanged.

    Attributes:
        source: Data source of images, other arrays or a table; or a string with its name and settings.
        backbone: Name of a model or text encoder, such as `timm(resnet18, pretrained=true)`,
            `efficientnet-lite0`, `minilm` or `hashed-words`; or a model, module or text encoder. If a network
            consists of a featurizer and a head, only the featurizer is used.
        size: Side in pixels to which images are resized before the backbone. Default: no resizing. `size`,
            `dtype`, `standardize` and `components` cannot be set for the text columns of a table.
        text: Columns of a table to embed. Default: all columns of free text.
        dtype: Data type of the stored features: "float32", or "bfloat16", which takes half the space.
        standardize: Whether features are standardized with the mean and standard deviation over the training
            environments.
        components: Number of principal components of the standardized features to use as inputs, each scaled
            to standard deviation 1. They are fitted on the training environments. Default: use all features.
        test: Names of the default test environments, whose rows are not used for standardization. Default:
            those of the source.
        batch_size: Rows per forward pass.
        cache: Cache folder. Default: `ENVARIANT_CACHE` (environment variable), else the system's cache
            folder.
        executor: "local", or "ray" to extract features on a Ray cluster.
        address: Address of the Ray cluster. Default: the running one, or a new one on this machine.
    """

    base: ClassVar[str] = "features"
    positional: ClassVar[tuple[str, ...]] = ("source", "backbone")
    source: Any
    backbone: Any
    size: int | None = None
    text: tuple[str, ...] = ()
    dtype: DType = "float32"
    standardize: bool = True
    components: int | None = None
    test: tuple[str, ...] | None = field(default=None, compare=False)
    batch_size: int = field(default=64, compare=False)
    cache: str | Path | None = field(default=None, compare=False)
    executor: Literal["local", "ray"] = field(default="local", compare=False)
    address: str | None = field(default=None, compare=False)
    _samples: dict[Any, Any] = field(default_factory=dict[Any, Any], repr=False, compare=False)

    def __post_init__(self) -> None:
        source = source_named(self.source) if isinstance(self.source, str) else self.source
        if not isinstance(source, EnvironmentSource) or isinstance(source, Features):
            got = "features of features" if isinstance(source, Features) else shown(source)
            raise EnvariantError(f"features: source must be another data source, or its name; got {got}")
        object.__setattr__(self, "source", source)
        object.__setattr__(self, "backbone", backbone_of(self.backbone))
        object.__setattr__(self, "text", tuple(map(str, several(self.text, "features: text"))))
        specs.validate(self, self.base, only=("dtype", "standardize", "executor"))
        if self.address is not None and self.executor != "ray":
            raise EnvariantError(
                "features: the option 'address' requires executor='ray'; set executor, or remove address"
            )
        if self.test is not None:
            object.__setattr__(self, "test", tuple(map(str, several(self.test, "features: test"))))
        if self.components is not None and not self.standardize:
            raise EnvariantError(
                "features: the option 'components' requires standardized features; set standardize=True, or "
                "remove components"
            )
        for key in ("size", "components", "batch_size"):
            value = 1 if getattr(self, key) is None else getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise EnvariantError(f"features: {key} must be a whole number of at least 1; got {value!r}")
        reads_text, is_table = isinstance(self.backbone, TextEncoder), isinstance(source, TableSource)
        if reads_text != is_table:
            what = (
                "a table, because it encodes texts" if reads_text else "images or other arrays, not a table"
            )
            raise EnvariantError(
                f"features: {name_of(self.backbone)} needs {what}; the text encoders are "
                f"sentence-transformers, minilm and hashed-words"
            )
        ignored = [
            f.name
            for f in dataclasses.fields(self)
            if f.name in ("size", "dtype", "standardize", "components") and getattr(self, f.name) != f.default
        ]
        if is_table and ignored:
            raise EnvariantError(
                f"features: the option '{ignored[0]}' has no effect on texts in a table; remove it"
            )
        if self.text and not is_table:
            raise EnvariantError(
                "features: the option 'text' refers to columns of a table; remove it for images"
            )

    @classmethod
    def from_spec(cls, spec: specs.Spec, folder: Path | None = None) -> "Features":
        if len(spec.positional) != 2:
            example = "features(image-folders('photos'), 'timm(resnet18, pretrained=true)')"
            raise EnvariantError(
                f"features: the first two arguments must be a source and a backbone, as in {example}"
            )
        given = dict(spec.keywords)
        for key in given.keys() & {"text", "test"}:
            given[key] = tuple(map(str, several(given[key], f"features: {key}")))
        first, backbone = spec.positional[0], str(spec.positional[1])
        nested = specs.parse_as("data", str(first))
        if nested.name == TableSource.base and len(nested.positional) == 1:
            # The table may have no input columns other than free text.
            source: Any = table_named(*nested.positional, only_texts=True, **nested.keywords)
        else:
            source = source_named(str(first), folder=folder)
        keywords = {"source": source, "backbone": backbone, **given}
        return cls(**specs.fill(cls, specs.Spec(spec.name, (), keywords), (), _HIDDEN))

    @property
    def name(self) -> str:
        changed = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.compare and f.name not in self.positional and getattr(self, f.name) != f.default
        }
        parts = _nested(self.source.name), _nested(name_of(self.backbone))
        return str(specs.Spec(self.base, parts, changed))

    def identity(self) -> str:
        if self._table is not None:
            return self._table.identity()
        settings = {key: getattr(self, key) for key in ("size", "dtype", "standardize", "components")}
        backbone = self._extracted(0).backbone.identity
        settings |= {"test": self.test} if self.standardize and self.test is not None else {}
        return str(specs.Spec(self.base, (self._source_identity, backbone), settings))

    def with_test_environments(self, test: Sequence[str] | None) -> "EnvironmentSource":
        if self._table is not None:
            return self._table.with_test_environments(test)
        unchanged = test is None or tuple(test) == self.test
        return self if unchanged else dataclasses.replace(self, test=test)

    @property
    def columns(self) -> Mapping[str, slice]:
        return {} if self._table is None else self._table.columns

    def default_settings(self, algorithm: str) -> DefaultSettings:
        if self._table is not None:
            return self._table.default_settings(algorithm)
        return DefaultSettings(
            model="linear",
            steps=300,
            learning_rate=1e-3,
            batch_size=32,
            source="a linear head on frozen features and DomainBed's batch size; not tuned",
        )

    def preprocessing_log(self) -> list[str]:
        """Return the preprocessing log of the source, with an entry about the features."""
        if self._table is not None:
            return list(map(str, self._table.table.preprocessing_log))
        lines: Any = getattr(self.source, "preprocessing_log", list)
        own = self._extracted(0)
        line = f"{own.backbone.width:,} features by {name_of(self.backbone)}; {own.extraction}"
        return [*lines(), line]

    @property
    def extraction(self) -> Extraction:
        """Counts of the rows whose features this process computed or found in the cache, and the duration."""
        return self._extracted(0).extraction

    @property
    def table_source(self) -> TableSource:
        """Table in which text columns are replaced by features, for `compare` and saved models.

        Raises:
            EnvariantError: If the source is not a table.
        """
        if self._table is None:
            raise EnvariantError(f"features: {self.source.name} is not a table; table_source needs one")
        return self._table

    def plot(self, seed: int = 0, most: int = 12) -> Any:
        # Plot the source, because images are more informative than their features.
        return self.source.plot(seed, most)

    def sample(self, seed: int) -> EnvironmentSet:
        """Return the environments, whose inputs are the features.

        Raises:
            EnvariantError: If the source cannot be read, or the features cannot be computed or stored.
        """
        return self._table.sample(seed) if self._table is not None else self._standardized(seed)[0]

    def _standardized(self, seed: int) -> tuple[EnvironmentSet, Standardization | None]:
        raw = self._extracted(seed).environments
        if not self.standardize and self.test is None:
            return raw, None
        # Replicas with the same rows share one object, so that they are stored once.
        key = ("standardized", id(raw), self.test, self.standardize, self.components)
        if key not in self._samples:
            roles = raw.roles(self.test)
            raw = raw if self.test is None else dataclasses.replace(raw, test=self.test)
            if not self.standardize:
                self._samples[key] = raw, None
                return self._samples[key]
            stores = [cast("FeatureStore", e.input_store) for e in raw.environments]
            chosen = [s for s, e in zip(stores, raw.environments, strict=True) if roles[e.name] == "train"]
            fitted = Standardization.of(chosen, self.components)
            self._samples[key] = _with_inputs(raw, [fitted.applied(store) for store in stores]), fitted
        return self._samples[key]

    def image_model(self, head: nn.Module, test_environments: Sequence[str] | None = None) -> nn.Module:
        """Return a network that maps inputs of the source, such as images, to the outputs of a trained head.

        Args:
            head: Network trained on these features, as in `result.model(0)`.
            test_environments: Test environments of the run in which the head was trained. They determine the
                training environments, on which the standardization of the features is fitted. Default: the
                test environments of the data.

        Raises:
            EnvariantError: If the source is a table.
        """
        if self._table is not None:
            raise EnvariantError(
                "features: the features of a table have no image model; use SavedModel.of with table_source"
            )
        own, source = self._extracted(0), cast("Features", self.with_test_environments(test_environments))
        standardization = Standardized(source._standardized(0)[1])
        return nn.Sequential(
            own.preprocessing, own.backbone.module, nn.Flatten(), standardization, head
        ).eval()

    @cached_property
    def _table(self) -> TableSource | None:
        if not isinstance(self.source, TableSource):
            return None
        encoder = cast("TextEncoder", self.backbone)
        table = embedded(self.source.table, self.text, encoder, self.cache, self._cluster)
        return TableSource(table, self.name, self.source.test if self.test is None else self.test)

    @property
    def _cluster(self) -> Cluster | None:
        return Cluster(self.address) if self.executor == "ray" else None

    @property
    def _key(self) -> tuple[Any, ...]:
        # Copies that differ only in their test environments share the data in memory.
        return id(self.source), id(self.backbone), self.size, self.dtype

    @property
    def _source_identity(self) -> str:
        # Cached, because computing the fingerprint of all rows is slow.
        if (key := ("identity", *self._key)) not in self._samples:
            self._samples[key] = self.source.identity()
        return self._samples[key]

    def _extracted(self, seed: int) -> _Extracted:
        key = ("raw", *self._key, self._source_identity, seed)
        if key not in self._samples:
            self._samples[key] = self._extract(seed)
        return self._samples[key]

    def _extract(self, seed: int) -> _Extracted:
        sample = self.source.sample(seed)
        rgb = getattr(self.backbone, "rgb", False)
        shape = list(sample.input_shape)
        if self.size is not None and len(shape) != 3:
            raise EnvariantError(
                f"features: the option 'size' requires channels-first images [channels, height, width]; got "
                f"inputs of shape {shape}"
            )
        shape = [3 if rgb and shape[0] == 1 else shape[0], *([self.size] * 2 if self.size else shape[1:])]
        if (known := ("backbone", *self._key, *shape)) not in self._samples:
            self._samples[known] = extractor(self.backbone, shape)
        backbone: Extractor = self._samples[known]
        before = preprocessing(self.source, sample, backbone, self.size, rgb=rgb)
        key = content_key(repr(before), backbone.identity)
        blocks = self._blocks(sample, seed, nn.Sequential(before, backbone.module))
        folder = cache_folder(self.cache) / "features"
        features, extraction = features_of(sample, blocks, key, backbone.width, self.dtype, folder)
        # Data draws with the same rows share one object, so that replicas store the rows only once.
        content = content_key(key, *(name for e in sample.environments for name in _row_values(e)))
        if content not in self._samples:
            self._samples[content] = _with_inputs(sample, list(map(FeatureStore, features)))
        return _Extracted(self._samples[content], extraction, before, backbone)

    def _blocks(self, sample: EnvironmentSet, seed: int, network: nn.Module) -> BlocksOf:
        stores = [environment.input_store for environment in sample.environments]
        if self._cluster is not None:
            work = SourceRows(self.source, self._source_identity, seed, network, self.batch_size)
            return self._cluster.blocks(work, list(map(len, stores)), _BATCHES * self.batch_size)
        return lambda k, first: batches(stores[k], network, self.batch_size, first, len(stores[k]))

    def __reduce__(self) -> Any:
        # Features in memory are not sent to other processes, which read them from the cache.
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}
        return _rebuilt, ({**fields, "_samples": {}},)


@final
class Standardized(nn.Module):
    """Layer that standardizes raw features.

    Args:
        standardization: Center, scale and principal components; None to return features unchanged.
    """

    def __init__(self, standardization: Standardization | None) -> None:
        super().__init__()
        self.standardization = standardization

    def forward(self, features: Tensor) -> Tensor:
        """Return standardized features, `[rows, width]`."""
        return features if self.standardization is None else self.standardization(features)


def _rebuilt(fields: Mapping[str, Any]) -> Features:
    return Features(**fields)


def _nested(text: str) -> Any:
    """Parse text to a spec that can be nested in another one; if that is impossible, return the text."""
    try:
        spec = specs.parse(text)
        return spec if specs.parse(f"x({spec})") == specs.Spec("x", (spec,)) else text
    except EnvariantError:
        return text


def _with_inputs(sample: EnvironmentSet, stores: Sequence[FeatureStore]) -> EnvironmentSet:
    """Return a copy of a set of environments with other inputs."""
    environments = tuple(
        Environment(e.name, store, e.targets, e.attributes, e.origin)
        for e, store in zip(sample.environments, stores, strict=True)
    )
    return dataclasses.replace(sample, environments=environments)


def _row_values(environment: Environment) -> list[object]:
    """Return name, inputs, targets and attributes of an environment, for a digest."""
    values = {"targets": environment.targets, **environment.attributes}
    return [environment.name, environment.input_store, *(v.cpu().numpy().tobytes() for v in values.values())]
