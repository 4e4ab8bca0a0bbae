"""Where a tokenizer comes from: reads the files of a model, yields the ``Tokenizer`` that belongs to it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import tokenizers

from pipeline.models.location import ModelLocation, locate
from pipeline.models.quiet import quiet_loading
from pipeline.tokens.kept import keep, kept_path, read_kept
from pipeline.tokens.vocabulary import Tokenizer, restore_tokenizer
from schemas.errors import MissingError, ModelError, SpecError

__all__ = ["Tokenizer", "load_tokenizer", "restore_tokenizer"]

ROLES = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
"""Of special tokens, as transformers names them."""


@lru_cache(maxsize=4)
def load_tokenizer(path: str, revision: str = "main") -> Tokenizer:
    """The tokenizer that belongs to a model; ``path`` takes the forms of ``ModelSpec.path``. Kept for the process, that
    of a GGUF file also in the cache folder: it takes seconds to make.

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
    if where.kind != "gguf":
        return _converted(path, where, revision)
    kept = kept_path(Path(where.path, where.file))
    if (tokenizer := read_kept(kept)) is None:
        tokenizer = _converted(path, where, revision)
        keep(kept, tokenizer)
    return tokenizer


def _converted(path: str, where: ModelLocation, revision: str) -> Tokenizer:
    loaded = _load(path, where, revision)
    backend = getattr(loaded, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise ModelError(
            f"the tokenizer of {path!r} ({type(loaded).__name__}) has no fast form (tokenizer.json); "
            "convert it, or name another in tokens.tokenizer"
        )
    return Tokenizer(backend.to_str().encode("utf-8"), _specials(loaded))


def _load(path: str, where: ModelLocation, revision: str) -> Any:
    from transformers import AutoTokenizer  # seconds; needless where a table's own copy is used

    options = {"gguf_file": where.file} if where.kind == "gguf" else {}
    if where.kind == "hub":
        options["revision"] = revision
    try:
        # It looks at the model's configuration as well, and has something to say of types that it does not know.
        with quiet_loading():
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
    ids = {role: getattr(loaded, f"{role}_token_id", None) for role in ROLES}
    named = {role: int(id_) for role, id_ in ids.items() if id_ is not None}
    others = {
        str(text): int(id_)
        for text, id_ in zip(loaded.all_special_tokens, loaded.all_special_ids, strict=True)
        if id_ is not None and int(id_) not in named.values()
    }
    return named | others


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
