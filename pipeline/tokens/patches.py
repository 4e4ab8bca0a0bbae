"""The token table's view of images: every image is one context, a row for each special token and each patch.

``PatchGrid`` stands where a tokenizer does for text. Its definition says all that decides what the model sees of an
image, so it is part of the table's identity.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.tokens.vocabulary import Tokenizer
from schemas.fingerprint import canonical_json

_KIND = "headworks_images"


@dataclass(frozen=True)
class ImageInput:
    """How an image becomes what the model sees, and the rows of it."""

    size: int
    """Pixels on a side."""
    patch_size: int
    special_tokens: tuple[str, ...]
    """Rows before the patches."""
    fit: Literal["crop", "stretch"]
    resized: int
    """Of fit ``crop``: pixels of the shorter side before cropping."""
    resample: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def side(self) -> int:
        """Patches on a side."""
        return self.size // self.patch_size

    @property
    def num_rows(self) -> int:
        """Rows of an image."""
        return len(self.special_tokens) + self.side**2


class PatchGrid(Tokenizer):
    """Token ids are places: special tokens from 0 on, then the patches row by row from the upper left."""

    def __init__(self, image: ImageInput) -> None:
        self.image = image
        self.definition = canonical_json({_KIND: 1, **asdict(image)})
        self.specials = {name: index for index, name in enumerate(image.special_tokens)}
        self.digest = hashlib.sha256(self.definition).hexdigest()

    @classmethod
    def restored(cls, definition: bytes) -> PatchGrid:
        """From its own definition. Raises ValueError, KeyError, TypeError for other bytes."""
        facts: dict[str, Any] = json.loads(definition)
        del facts[_KIND]
        lists = {name: tuple(one) for name, one in facts.items() if isinstance(one, list)}
        return cls(ImageInput(**{**facts, **lists}))

    @property
    def vocab_size(self) -> int:
        """Rows of an image."""
        return self.image.num_rows

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """0 to ``vocab_size`` - 1 for each image, whatever it shows."""
        return [np.arange(self.vocab_size, dtype=np.int32) for _ in texts]

    def decode(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> str:
        """The places, one after the other."""
        return "".join(self.pieces(ids))

    def pieces(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> list[str]:
        """``[cls]`` of a special token, ``(row, column)`` of a patch."""
        return [self._place(int(id_)) for id_ in ids]

    def _place(self, id_: int) -> str:
        specials = self.image.special_tokens
        if id_ < len(specials):
            return f"[{specials[id_]}]"
        row, column = divmod(id_ - len(specials), self.image.side)
        return f"({row}, {column})"


def is_patch_grid(definition: bytes) -> bool:
    """Whether a table's ``tokenizer.json`` is of images."""
    facts: Mapping[str, Any] = json.loads(definition)
    return _KIND in facts
