"""The tokenizer: reads the files of a model, or the copy in a token table, yields ids for text and text for ids.

Text never becomes special tokens: a document that says ``<|endoftext|>`` is tokenised as those characters, so that
every special id in a table was put there by the packer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from pipeline.models.location import ModelLocation, locate
from schemas.errors import CorruptionError, MissingError, ModelError, SpecError
from schemas.fingerprint import canonical_json

_ROLES = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")


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


@lru_cache(maxsize=4)
def load_tokenizer(path: str, revision: str = "main") -> Tokenizer:
    """The tokenizer that belongs to a model; ``path`` takes the forms of ``ModelSpec.path``. Kept for the process:
    a GGUF file takes seconds.

    Raises:
        MissingError: nothing there.
        ModelError: no tokenizer in it, or none that the ``tokenizers`` library can run.
    """
    where = locate(path)
    if where.kind == "python":
        raise SpecError(
            f"model {path!r} is a Python callable and carries no tokenizer; name one in tokens.tokenizer "
            "(a Hub name, a local folder or a GGUF file)"
        )
    loaded = _load(path, where, revision)
    backend = getattr(loaded, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise ModelError(
            f"the tokenizer of {path!r} ({type(loaded).__name__}) has no fast form (tokenizer.json); "
            "convert it, or name another in tokens.tokenizer"
        )
    return Tokenizer(backend.to_str().encode("utf-8"), _specials(loaded))


def restore_tokenizer(definition: bytes, specials: Mapping[str, int], digest: str, *, where: str) -> Tokenizer:
    """The tokenizer that a token table keeps a copy of; loads in a moment, from anywhere.

    Raises:
        CorruptionError: it is not the one that made the table.
    """
    try:
        tokenizer = Tokenizer(definition, specials)
    except (ValueError, KeyError) as exc:
        raise CorruptionError(f"{where} is no tokenizer: {exc}") from exc
    if tokenizer.digest != digest:
        raise CorruptionError(f"{where} has digest {tokenizer.digest}, the token table was made with {digest}")
    return tokenizer


def _load(path: str, where: ModelLocation, revision: str) -> Any:
    from transformers import AutoTokenizer  # seconds; needless where a table's own copy is used

    options = {"gguf_file": where.file} if where.kind == "gguf" else {}
    if where.kind == "hub":
        options["revision"] = revision
    try:
        return AutoTokenizer.from_pretrained(where.path, **options)
    except OSError as exc:
        place = "on the Hugging Face Hub or in its local cache" if where.kind == "hub" else f"in {where.path}"
        raise MissingError(f"no tokenizer for {path!r} {place}: {_first_line(exc)}") from exc
    except (ValueError, KeyError, TypeError, ImportError, RuntimeError) as exc:
        raise ModelError(
            f"the tokenizer of {path!r} cannot be loaded: {_first_line(exc)}; "
            "a folder needs tokenizer.json or the tokenizer's own files, or name another in tokens.tokenizer"
        ) from exc


def _specials(loaded: Any) -> dict[str, int]:
    """Special ids by role; those without a role by their text."""
    ids = {role: getattr(loaded, f"{role}_token_id", None) for role in _ROLES}
    named = {role: int(id_) for role, id_ in ids.items() if id_ is not None}
    others = {
        str(text): int(id_)
        for text, id_ in zip(loaded.all_special_tokens, loaded.all_special_ids, strict=True)
        if id_ is not None and int(id_) not in named.values()
    }
    return named | others


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
