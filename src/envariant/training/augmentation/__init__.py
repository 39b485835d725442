"""Augmentation of training images, such as `random-resized-crop + horizontal-flip`."""

from collections.abc import Mapping

from envariant.core import specs
from envariant.core.errors import EnvariantError, unknown_name
from envariant.core.terms import split_terms
from envariant.training.augmentation.affine import RandomAffine, warp
from envariant.training.augmentation.base import Augmentation, Composed, check_unit_range
from envariant.training.augmentation.color import ColorJitter, Grayscale
from envariant.training.augmentation.crop import HorizontalFlip, RandomResizedCrop
from envariant.training.augmentation.rand_augment import RandAugment

AUGMENTATIONS: Mapping[str, type[Augmentation]] = {
    each.base: each
    for each in (RandomAffine, RandomResizedCrop, HorizontalFlip, ColorJitter, Grayscale, RandAugment)
}
"""Class of every augmentation, by name."""

SETS: Mapping[str, tuple[Augmentation, ...]] = {
    "domainbed": (RandomResizedCrop(), HorizontalFlip(), ColorJitter(), Grayscale()),
}
"""Named sequences of augmentations. `domainbed` is the augmentation of DomainBed (Gulrajani & Lopez-Paz 2020,
arXiv 2007.01434)."""


def augmentation(text: str | None) -> Augmentation | None:
    """Convert a string such as `random-resized-crop(scale=0.5) + horizontal-flip` to an augmentation.

    Args:
        text: Names with optional settings in parentheses, joined by `+`; None is returned unchanged.

    Raises:
        EnvariantError: If a name or a setting is unknown.
    """
    if text is None:
        return None
    parts: list[Augmentation] = []
    for term in split_terms(text):
        spec = specs.parse_as("augmentation", term)
        if spec.name in SETS:
            if spec.positional or spec.keywords:
                names = " + ".join(part.base for part in SETS[spec.name])
                raise EnvariantError(
                    f"augmentation: {spec.name} has no settings; write its operations with their settings "
                    f"instead: {names}"
                )
            parts += SETS[spec.name]
        elif spec.name in AUGMENTATIONS:
            cls = AUGMENTATIONS[spec.name]
            parts.append(cls(**specs.fill(cls, spec)))
        else:
            raise unknown_name("augmentation", spec.name, (*AUGMENTATIONS, *SETS))
    return parts[0] if len(parts) == 1 else Composed(tuple(parts))


__all__ = [
    "AUGMENTATIONS",
    "SETS",
    "Augmentation",
    "ColorJitter",
    "Composed",
    "Grayscale",
    "HorizontalFlip",
    "RandAugment",
    "RandomAffine",
    "RandomResizedCrop",
    "augmentation",
    "check_unit_range",
    "warp",
]
