"""Building a token table: reads a corpus, yields a ``TokenTable`` that any job with the same facts uses again.

1. Survey the corpus and load the tokenizer: together with the packing they are the table's identity.
2. ``identity.json`` is put if absent; a table of another identity at the same place is refused.
3. Make the parts in order until there are enough rows. Parts that exist are not made again, so a killed build goes on
   where it was, and a larger ``max_tokens`` only adds parts.
4. ``table.json`` is written last.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from itertools import chain
from typing import Any, Protocol

from pipeline.store.objects import Objects
from pipeline.tokens.corpus import CorpusSurvey, iter_parts, survey
from pipeline.tokens.packing import pack
from pipeline.tokens.part import TOKENIZER_KEY, PartJob, PartReceipt, read_receipt, special_ids, write_part
from pipeline.tokens.reading import IDENTITY_KEY, TABLE_KEY, TokenTable, read_facts, write_facts
from pipeline.tokens.tokenizer import Tokenizer, load_tokenizer
from schemas.corpus import ImagesCorpus, Packing, TokensSpec
from schemas.errors import CorpusError, CorruptionError
from schemas.fingerprint import fingerprint, require_equal
from schemas.model import ModelSpec

_SEMANTICS = 1
"""Raised when the same spec and corpus would give other rows than before."""

_GROWTH = "growth/"
"""Empty objects whose names say how far builds have come; the farthest one's stays."""


class MapParts(Protocol):
    """``map``, or the same on many workers: takes jobs only as it needs them, yields receipts in their order."""

    def __call__(
        self, function: Callable[[PartJob], PartReceipt], jobs: Iterable[PartJob], /
    ) -> Iterator[PartReceipt]: ...


def build_table(
    spec: TokensSpec,
    model: ModelSpec,
    *,
    url: str,
    shard_rows: int,
    map_parts: MapParts = map,
    progress: Callable[[int, int], None] | None = None,
) -> TokenTable:
    """The token table at ``url``, made as far as ``max_tokens`` asks and not made again where it exists.

    ``num_rows`` is ``max_tokens`` rounded up to whole shards, or all rows of a corpus that ends before. ``progress``
    gets rows so far and rows wanted (0: the whole corpus).

    Raises:
        CorpusError: text that cannot be read as the spec says, or a corpus without a single token.
        MissingError: a corpus URL that matches nothing, a tokenizer that is not there.
        MismatchError: the table at ``url`` was made from other facts.
    """
    surveyed, tokenizer = survey(spec), load_spec_tokenizer(spec, model)
    spec = packed_spec(spec, tokenizer)
    # An empty corpus through the packer: what the tokenizer or the spec lacks is said before any work.
    list(pack((), spec.packing, **special_ids(spec.packing, tokenizer)))
    identity = _identity(spec, surveyed, tokenizer)
    objects = Objects(url)
    _claim(objects, identity)
    wanted = -(-spec.max_tokens // shard_rows) * shard_rows
    existing = _existing(objects, wanted)
    if existing is not None:
        return existing
    objects.create(TOKENIZER_KEY, tokenizer.definition)
    jobs = (
        PartJob(objects.url, spec, part, tokenizer.specials, tokenizer.digest, single_thread=map_parts is not map)
        for part in iter_parts(spec, surveyed)
    )
    receipts: list[PartReceipt] = []
    num_rows = 0
    with closing(_receipts(objects, jobs, map_parts)) as made:
        for receipt in made:
            receipts.append(receipt)
            num_rows += receipt.num_rows
            if progress is not None:
                progress(min(num_rows, wanted) if wanted else num_rows, wanted)
            if wanted and num_rows >= wanted:
                break
    if not num_rows:
        raise CorpusError(f"the corpus has no tokens: {sum(r.num_documents for r in receipts)} documents, all empty")
    facts = {
        "fingerprint": fingerprint(identity),
        "identity": identity,
        "specials": tokenizer.specials,
        # Reaching the rows wanted says nothing of what comes after; only a loop that ran out does.
        "whole_corpus": not wanted or num_rows < wanted,
    }
    return _publish(objects, facts, receipts, min(num_rows, wanted) if wanted else num_rows)


def table_identity(spec: TokensSpec, model: ModelSpec) -> dict[str, Any]:
    """The facts under the table's fingerprint; reads the corpus's bytes at most once, tokenises nothing."""
    tokenizer = load_spec_tokenizer(spec, model)
    return _identity(packed_spec(spec, tokenizer), survey(spec), tokenizer)


def packed_spec(spec: TokensSpec, tokenizer: Tokenizer) -> TokensSpec:
    """The spec with the packing that it comes to: of images a context for each, as long as it has patches."""
    if not isinstance(spec.corpus, ImagesCorpus):
        return spec
    packing = Packing(mode="document", context_length=tokenizer.vocab_size, separator="none", begin_context="none")
    return spec.model_copy(update={"packing": packing})


def load_spec_tokenizer(spec: TokensSpec, model: ModelSpec) -> Tokenizer:
    """The tokenizer that the spec names: its own, or the model's; of images their patches."""
    if isinstance(spec.corpus, ImagesCorpus):
        from pipeline.models.vision import patch_grid

        return patch_grid(spec.corpus, model)
    if spec.tokenizer == "model":
        return load_tokenizer(model.path, model.revision)
    return load_tokenizer(spec.tokenizer)


def _identity(spec: TokensSpec, surveyed: CorpusSurvey, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "semantics": _SEMANTICS,
        "corpus": surveyed.facts,
        "tokenizer": {"sha256": tokenizer.digest},
        "packing": spec.packing.model_dump(mode="json"),
        "held_out_fraction": spec.held_out_fraction,
        "file_order": spec.file_order,
        "part_size_bytes": spec.part_size,
        "seed": spec.seed,
    }


def _claim(objects: Objects, identity: dict[str, Any]) -> None:
    """Make the place this identity's, or find that it is."""
    if objects.create(IDENTITY_KEY, json.dumps(identity, indent=1).encode()):
        return
    try:
        theirs = json.loads(objects.read(IDENTITY_KEY))
    except ValueError as exc:
        raise CorruptionError(f"{objects.url}/{IDENTITY_KEY} is no identity of a token table: {exc}") from exc
    remedy = "Write to another folder (tokens.output), or remove this token table and make it again."
    require_equal(identity, theirs, where=f"the token table at {objects.url}", remedy=remedy)


def _existing(objects: Objects, wanted: int) -> TokenTable | None:
    """The finished table, if it reaches far enough for ``wanted`` rows (0: all)."""
    if not objects.exists(TABLE_KEY):
        return None
    facts = read_facts(objects)
    table = TokenTable.open(objects.url)
    whole, written = bool(facts["whole_corpus"]), table.num_written_rows
    if not whole and (not wanted or written < wanted):
        return None
    num_rows = min(wanted, written) if wanted else written
    if num_rows > table.num_rows:
        return _publish(objects, facts, list(table.receipts), num_rows)
    return table.limited(num_rows)


def _receipts(objects: Objects, jobs: Iterator[PartJob], map_parts: MapParts) -> Generator[PartReceipt, None, None]:
    """Receipts in order. Parts that exist are read here; workers are asked from the first that does not."""
    for job in jobs:
        receipt = read_receipt(objects, job.part.index)
        if receipt is None:
            yield from map_parts(write_part, chain([job], jobs))
            return
        yield receipt


def _publish(objects: Objects, facts: dict[str, Any], receipts: list[PartReceipt], num_rows: int) -> TokenTable:
    """Write ``table.json``, so that of builds at the same time the longest one stays.

    Storage has no compare-and-swap, so every build first leaves word of how far it is (``growth/``), then writes what
    the farthest has come to, and looks again: whoever writes last either was the farthest, or sees who is. The rows
    are the same for all, so any of them can publish another's.
    """
    ours = _growth_key(num_rows, len(receipts), bool(facts["whole_corpus"]))
    objects.create(ours, b"")
    written = ""
    while written != (farthest := objects.list(_GROWTH)[-1]):
        rows, parts, whole = _grown(farthest)
        known = receipts[:parts] + [_receipt_of(objects, index) for index in range(len(receipts), parts)]
        write_facts(objects, {**facts, "whole_corpus": whole}, known, rows)
        written = farthest
    for key in objects.list(_GROWTH)[:-1]:
        objects.delete(key)
    return TokenTable.open(objects.url).limited(num_rows)


def _growth_key(num_rows: int, num_parts: int, is_whole: bool) -> str:
    """Sorted by how far a build is; more rows never come from fewer parts."""
    return f"{_GROWTH}{num_rows:016d}-{num_parts:010d}-{is_whole:d}"


def _grown(key: str) -> tuple[int, int, bool]:
    rows, parts, is_whole = key.removeprefix(_GROWTH).split("-")
    return int(rows), int(parts), is_whole == "1"


def _receipt_of(objects: Objects, index: int) -> PartReceipt:
    receipt = read_receipt(objects, index)
    if receipt is None:
        raise CorruptionError(f"{objects.url}: part {index} was published and has no receipt; delete the table")
    return receipt


__all__ = ["MapParts", "TokenTable", "build_table", "load_spec_tokenizer", "packed_spec", "table_identity"]
