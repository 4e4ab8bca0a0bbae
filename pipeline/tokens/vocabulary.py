"""The tokenizer itself: text to ids and back. Free of models and of transformers, so that readers of stores may use it.

Text never becomes special tokens: a document that says ``<|endoftext|>`` is tokenised as those characters, so that
every special id in a table was put there by the packer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from schemas.errors import CorruptionError, SpecError
from schemas.fingerprint import canonical_json


class Tokenizer:
    """One tokenizer of the ``tokenizers`` library, with the special tokens that the model's files name."""

    def __init__(self, definition: bytes, specials: Mapping[str, int]) -> None:
        facts = json.loads(definition)
        # What a caller once set for batches of its own is no part of the tokenizer.
        facts["truncation"] = facts["padding"] = None
        self.definition: bytes = canonical_json(facts)
        """``tokenizer.json``; with ``specials`` it makes an equal tokenizer."""
        self.specials: dict[str, int] = dict(specials)
        """Role (``bos``, ``eos``, ``pad``, ...), or the token's own text, -> id."""
        self.digest: str = hashlib.sha256(canonical_json({"definition": facts, "specials": self.specials})).hexdigest()
        self._tokenizer = tokenizers.Tokenizer.from_str(self.definition.decode("utf-8"))
        self._tokenizer.encode_special_tokens = True

    @property
    def vocab_size(self) -> int:
        """Ids are below this; added tokens are counted."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def bos_id(self) -> int:
        """BOS, else EOS, else CLS.

        Raises:
            SpecError: the tokenizer has none of them.
        """
        return self._special_id("BOS", ("bos", "eos", "cls"))

    @property
    def eos_id(self) -> int:
        """EOS, else SEP.

        Raises:
            SpecError: the tokenizer has none of them.
        """
        return self._special_id("EOS", ("eos", "sep"))

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """int32 [T] for each text; no special tokens are added."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def decode(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> str:
        """The text of the ids, special tokens included."""
        return str(self._tokenizer.decode([int(id_) for id_ in ids], skip_special_tokens=False))

    def pieces(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> list[str]:
        """Each token as a person reads it: spaces as spaces, U+FFFD for a part of a character."""
        return [self._piece(int(id_)) for id_ in ids]

    def _piece(self, id_: int) -> str:
        token = self._tokenizer.id_to_token(id_)
        if token is None:
            return f"<{id_}>"  # ids between the vocabulary and the model's padded embedding
        if "\u2581" in token:
            return str(token.replace("\u2581", " "))  # SentencePiece: decoding one token would strip its space
        return str(self._tokenizer.decode([id_], skip_special_tokens=False)) or str(token)

    def _special_id(self, name: str, roles: Sequence[str]) -> int:
        for role in roles:
            if role in self.specials:
                return self.specials[role]
        raise SpecError(
            f"the packing asks for {name}, but the tokenizer has none of {', '.join(roles)} "
            f"(it has {sorted(self.specials) or 'no special tokens'}); set packing.separator and "
            "packing.begin_context to none"
        )


def restore_tokenizer(definition: bytes, specials: Mapping[str, int], digest: str, *, where: str) -> Tokenizer:
    """The tokenizer that a token table keeps a copy of; loads in a moment, from anywhere.

    Raises:
        CorruptionError: it is not the one that made the table.
    """
    from pipeline.tokens.patches import PatchGrid, is_patch_grid

    try:
        of_images = is_patch_grid(definition)
        tokenizer = PatchGrid.restored(definition) if of_images else Tokenizer(definition, specials)
    except (ValueError, KeyError) as exc:
        raise CorruptionError(f"{where} is no tokenizer: {exc}") from exc
    if tokenizer.digest != digest:
        raise CorruptionError(f"{where} has digest {tokenizer.digest}, the token table was made with {digest}")
    return tokenizer
