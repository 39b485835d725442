"""Groups as environments: rows with the same class and the same values of attributes.

Balancing and GroupDRO treat groups as other algorithms treat environments. With the groups as environments,
every group has the same weight in the loss, so that `erm` is the reweighting RWG of Idrissi et al. 2021
(arXiv 2110.14503), `groupdro` is that of Sagawa et al. 2020 (arXiv 1911.08731), and the worst environment is
the worst group.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from envariant.core.attributes import CLASS_WEIGHT, ROW_GROUP, WEIGHT
from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.errors import EnvariantError, unknown_name
from envariant.data.wrapped_source import WrappedSource

# More values are rather those of a measurement than those of a category.
_MOST_VALUES = 20


@final
@dataclass(frozen=True)
class ByGroup(WrappedSource):
    """Data source whose environments are the groups of another source, such as `by-group(DATA, color)`.

    The training environments are pooled. All their rows of class y and attribute value a are the training
    environment `target=y color=a`. The rows of other environments are split in the same way; the names of
    their groups begin with the name of the environment, as in `flip-0.9: target=1 color=0`. Groups without
    rows are left out. The test environments are the default ones of the other source. Pooled rows are held in
    memory, and keep the attributes that all training environments have.

    Attributes:
        source: Data source, or its name with settings.
        attributes: Names of the row attributes that define groups, joined by `+`, as in "color" or "sex+age".
        classes: Whether rows of different classes are in different groups.
        subsample: Whether every training group is reduced to the size of the smallest one, by a random choice
            of rows without replacement that depends on the seed of the data (SUBG).
    """

    base: ClassVar[str] = "by-group"
    positional: ClassVar[tuple[str, ...]] = ("source", "attributes")
    attributes: str
    classes: bool = True
    subsample: bool = False

    def with_test_environments(self, test: Sequence[str] | None) -> "ByGroup":
        # The environments that are left out of pooling are the default test environments of the source.
        return replace(self, source=self.source.with_test_environments(None))

    def sample(self, seed: int) -> EnvironmentSet:
        whole = self.source.sample(seed)
        roles = whole.roles()
        pooled: dict[str, list[tuple[Environment, Tensor]]] = {}
        held_out: dict[str, list[Environment]] = {"validation": [], "test": []}
        for environment in whole.environments:
            for group, rows in self._groups(environment, whole):
                if (role := roles[environment.name]) == "train":
                    pooled.setdefault(group, []).append((environment, rows))
                else:
                    held_out[role].append(environment.select(rows, name=f"{environment.name}: {group}"))
        trained = [each for each in whole.environments if roles[each.name] == "train"]
        common = self._common_attributes(trained)
        training = [_pooled(group, pooled[group], common) for group in sorted(pooled)]
        if self.subsample:
            training = _subsampled(training, seed)
        return EnvironmentSet(
            self.name,
            (*training, *held_out["validation"], *held_out["test"]),
            whole.task,
            test=tuple(each.name for each in held_out["test"]),
            validation=tuple(each.name for each in held_out["validation"]),
            known=whole.known,
            classes=whole.classes,
        )

    def _groups(self, environment: Environment, whole: EnvironmentSet) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and the row numbers of each group of an environment."""
        columns: list[tuple[str, Tensor]] = []
        if self.classes:
            if whole.task.chance is None or whole.task.target_shape:
                raise EnvariantError(
                    f"{self.base}: groups by class need a binary or multiclass task, but the task is "
                    f"{whole.task.name}; set classes=false"
                )
            columns.append(("target", environment.targets.long().cpu()))
        for name in self.attributes.split("+"):
            columns.append((name.strip(), self._values(environment, name.strip())))
        keys = torch.stack([values for _, values in columns], dim=1)
        present, codes = torch.unique(keys, dim=0, return_inverse=True)
        for code, key in enumerate(present.tolist()):
            words = [
                f"{column}={whole.classes[value] if self.classes and whole.classes and not place else value}"
                for place, ((column, _), value) in enumerate(zip(columns, key, strict=True))
            ]
            yield " ".join(words), torch.nonzero(codes == code).flatten()

    def _common_attributes(self, environments: Sequence[Environment]) -> list[str]:
        """Return the attributes that all environments have."""
        every = [set(each.attributes) for each in environments]
        common = set.intersection(*every)
        if partial := sorted({WEIGHT, CLASS_WEIGHT, ROW_GROUP} & (set.union(*every) - common)):
            raise EnvariantError(
                f"{self.base}: some training environments have the row attribute '{partial[0]}', others do "
                f"not, so they cannot be pooled; give it to all or to none"
            )
        for name in self.attributes.split("+"):
            values = {v for each in environments for v in self._values(each, name.strip()).unique().tolist()}
            if len(values) > _MOST_VALUES:
                raise EnvariantError(
                    f"{self.base}: attribute '{name.strip()}' has {len(values)} values; groups need at most "
                    f"{_MOST_VALUES}"
                )
        return sorted(common)

    def _values(self, environment: Environment, name: str) -> Tensor:
        known = environment.attributes
        if name not in known:
            raise unknown_name("attribute", name, tuple(known), where=self.base)
        values = known[name].cpu()
        values = values.long() if values.dtype == torch.bool else values
        whole = values.round().long() if values.is_floating_point() else values.long()
        if values.dim() != 1 or not torch.equal(whole.to(values.dtype), values):
            raise EnvariantError(f"{self.base}: attribute '{name}' must be one whole number per row")
        return whole


def _pooled(name: str, parts: Sequence[tuple[Environment, Tensor]], attributes: Sequence[str]) -> Environment:
    """Join the given rows of several environments, with the given attributes, in one environment."""
    first = parts[0][0]
    return Environment(
        name,
        first.input_store.with_rows(torch.cat([each.input_store.gather(rows) for each, rows in parts])),
        torch.cat([each.targets[rows] for each, rows in parts]),
        {key: torch.cat([each.attributes[key][rows] for each, rows in parts]) for key in attributes},
    )


def _subsampled(groups: Sequence[Environment], seed: int) -> list[Environment]:
    """Reduce all groups to the size of the smallest one; the chosen rows keep their order."""
    # Not the seed itself, with which the sampling of the data starts.
    generator = torch.Generator().manual_seed(seed ^ 0x5B6)
    smallest = min(map(len, groups))
    return [
        each.select(torch.randperm(len(each), generator=generator)[:smallest].sort()[0]) for each in groups
    ]
