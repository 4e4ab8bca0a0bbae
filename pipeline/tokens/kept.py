"""Tokenizers of GGUF files, converted once: transformers takes seconds to build one from the file's vocabulary.

Kept under the cache folder, by the digest of the file and the versions of the libraries that convert. A copy that is
not there or not whole is made again; a cache that cannot be written costs time and nothing else.
"""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from pipeline.models.gguf import cache_folder
from pipeline.models.weights import file_digest
from pipeline.tokens.vocabulary import Tokenizer
from schemas.fingerprint import fingerprint

_PACKAGES = ("transformers", "tokenizers", "gguf")


def kept_path(file: Path) -> Path:
    """Where the conversion of a GGUF file's tokenizer is, or will be."""
    facts = {"file": file_digest(file), "versions": {package: version(package) for package in _PACKAGES}}
    return cache_folder() / "tokenizers" / f"{fingerprint(facts)[:40]}.json"


def read_kept(path: Path) -> Tokenizer | None:
    """The tokenizer that was kept, None where there is none."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        tokenizer = Tokenizer(facts["definition"].encode("utf-8"), facts["specials"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return tokenizer if tokenizer.digest == facts.get("digest") else None


def keep(path: Path, tokenizer: Tokenizer) -> None:
    """Keep the tokenizer, atomically: processes that do so at the same time write the same."""
    facts = {
        "definition": tokenizer.definition.decode("utf-8"),
        "specials": tokenizer.specials,
        "digest": tokenizer.digest,
    }
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".tokenizer-", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                json.dump(facts, stream)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
