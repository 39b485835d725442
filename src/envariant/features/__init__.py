"""Data source of the features that frozen backbones extract from images, other arrays and text columns."""

from envariant.features.backbones import TextEncoder
from envariant.features.images import Extraction
from envariant.features.lookup import backbone_of
from envariant.features.source import Features
from envariant.features.text import TEXT_ENCODERS, HashedWords, MiniLM, SentenceTransformers

__all__ = [
    "TEXT_ENCODERS",
    "Extraction",
    "Features",
    "HashedWords",
    "MiniLM",
    "SentenceTransformers",
    "TextEncoder",
    "backbone_of",
]
