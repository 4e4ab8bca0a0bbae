"""What a training needs before its first step: its place, its tokenizer and its token table. No torch, no ranks.

1. ``identity.json`` is put if absent; the output of another training is refused.
2. The tokenizer, in OUTPUT/tokenizer: a copy of one that exists, or one made from the corpus.
3. The token table, as collect jobs make theirs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.store.objects import Objects
from pipeline.tokens.corpus import survey
from pipeline.tokens.own import make_tokenizer, save_tokenizer
from pipeline.tokens.reading import TokenTable
from pipeline.tokens.table import MapParts, build_table
from pipeline.tokens.tokenizer import load_tokenizer
from schemas.corpus import TokensSpec
from schemas.errors import CorruptionError, SpecError
from schemas.fingerprint import fingerprint, require_equal
from schemas.model import ModelSpec
from schemas.train_model import TOKENIZER, TrainModelSpec

IDENTITY = "identity.json"
COMPLETE = "train_model.json"
"""Written last."""

SEMANTICS = 1
"""Raised when the same spec would train another model than before."""

OWN: str = TokensSpec.model_fields["tokenizer"].default
"""Of ``tokens.tokenizer``: the job makes one."""
_NOT_IDENTITY = {
    "name", "tokens", "tokenizer", "held_out", "checkpoint_every_steps", "log_every_steps", "trackers", "workers",
    "output",
}  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """What ranks are handed."""

    table_url: str
    num_rows: int
    """Of the table that are used; it may have more."""


def is_own(tokens: TokensSpec) -> bool:
    """Whether the job makes its tokenizer."""
    return tokens.tokenizer == OWN


def output_folder(spec: TrainModelSpec) -> Path:
    """The output as a folder.

    Raises:
        SpecError: it is not on a disk: models are loaded from folders.
    """
    objects = Objects(spec.output)
    if not objects.is_local:
        raise SpecError(
            f"{spec.name}: output {spec.output!r} is no folder of a disk, but models are loaded from folders: give a "
            "local path, for several machines one that all of them see"
        )
    return Path(objects.url)


def table_url(spec: TrainModelSpec) -> str:
    """Where the job's token table is."""
    return spec.tokens.output or f"{spec.output.rstrip('/')}/tokens"


def tokenizer_folder(spec: TrainModelSpec) -> Path:
    """Where the tokenizer is, or will be: a copy of one that the spec names."""
    return output_folder(spec) / TOKENIZER


def prepare(
    spec: TrainModelSpec, *, map_parts: MapParts = map, progress: Callable[[int, int], None] | None = None
) -> Prepared:
    """Make what is missing. Processes may do so at the same time.

    Raises:
        MismatchError: the output holds another training; the message names the fields.
        CorpusError, MissingError, SpecError: as making a token table.
    """
    surveyed = survey(spec.tokens)
    claim(spec, identity(spec, surveyed.facts))
    folder = tokenizer_folder(spec)
    if not folder.exists():
        own = is_own(spec.tokens)
        save_tokenizer(
            make_tokenizer(spec.tokenizer, spec.tokens, surveyed) if own else load_tokenizer(spec.tokens.tokenizer),
            folder,
        )
    path = str(folder)
    tokens = spec.tokens.model_copy(update={"tokenizer": path})
    table = build_table(
        tokens,
        ModelSpec(path=path),
        url=table_url(spec),
        # Whole contexts, unless the corpus ends before.
        shard_rows=tokens.packing.context_length,
        map_parts=map_parts,
        progress=progress,
    )
    return Prepared(table.url, table.num_rows)


def open_table(prepared: Prepared) -> TokenTable:
    """The table, as long as the training uses it."""
    return TokenTable.open(prepared.table_url).limited(prepared.num_rows)


def finished(spec: TrainModelSpec) -> dict[str, Any] | None:
    """The summary of an output that is complete already; ``prepare`` has seen to it that it is this training's."""
    outputs = Objects(spec.output)
    if not outputs.exists(COMPLETE):
        return None
    summary: dict[str, Any] = json.loads(outputs.read(COMPLETE))["summary"]
    return {**summary, "reused": True}


def identity(spec: TrainModelSpec, corpus_facts: dict[str, Any]) -> dict[str, Any]:
    """Facts that two runs must share for one to continue or to reuse the other."""
    tokens = spec.tokens
    if is_own(tokens):
        tokenizer = spec.tokenizer.model_dump(mode="json")
    else:
        tokenizer = {"sha256": load_tokenizer(tokens.tokenizer).digest}
    return {
        "semantics": SEMANTICS,
        **spec.model_dump(mode="json", exclude=_NOT_IDENTITY),
        "snapshots": spec.snapshot_steps,
        "tokenizer": tokenizer,
        "tokens": {"corpus": corpus_facts} | tokens.model_dump(mode="json", exclude={"corpus", "tokenizer", "output"}),
    }


def claim(spec: TrainModelSpec, facts: dict[str, Any]) -> None:
    """Make the output this training's, or find that it is.

    Raises:
        MismatchError: it is another's; names the fields.
    """
    output_folder(spec)
    objects = Objects(spec.output)
    if objects.create(IDENTITY, (json.dumps(facts, indent=1) + "\n").encode()):
        return
    remedy = "give another output, or delete that folder to train anew"
    require_equal(facts, read_identity(objects), where=f"the training in {spec.output}", remedy=remedy)


def read_identity(objects: Objects) -> dict[str, Any]:
    """What the output was claimed for."""
    try:
        found: dict[str, Any] = json.loads(objects.read(IDENTITY))
    except ValueError as error:
        raise CorruptionError(f"{objects.url}/{IDENTITY} is no identity of a training: {error}") from error
    return found


def run_id(spec: TrainModelSpec) -> str:
    """Of the training in the output, 16 hexadecimal digits."""
    return fingerprint(read_identity(Objects(spec.output)))[:16]
