"""A collect job over several snapshots: the jobs over one model each that it consists of, and the group that they make.

1. A pattern of folders is resolved, in natural order.
2. Every snapshot becomes a collect job of its own: the group's token table, its own model, a store below the group.
3. What can be said before anything runs is said then: folders and revisions that are not there, other tokenizers.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping
from pathlib import Path

from pipeline.collection.prepare import table_url
from pipeline.models.hub import resolve_commit
from pipeline.models.identity import check_spec
from pipeline.models.location import locate
from pipeline.models.weights import weight_files
from pipeline.tokens.table import load_spec_tokenizer
from pipeline.tokens.tokenizer import load_tokenizer
from schemas.collect import CollectSpec
from schemas.corpus import TokensSpec
from schemas.errors import MismatchError, MissingError, SpecError, UserError
from schemas.fields import is_name
from schemas.group import GroupMember, GroupRecord
from schemas.model import ModelSpec
from schemas.snapshots import GROUP, SnapshotSpec

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
)
_NAME_LENGTH = 64
_OF_THE_MODEL = TokensSpec.model_fields["tokenizer"].default


def snapshot_jobs(spec: CollectSpec) -> dict[str, CollectSpec]:
    """Snapshot -> the job over it alone, in order.

    Raises:
        MissingError: a pattern that matches nothing. SpecError: one whose matches cannot be named.
    """
    return {name: _job(spec, name, one) for name, one in _named(spec).items()}


def group_of(spec: CollectSpec, jobs: Mapping[str, CollectSpec], table_fingerprint: str) -> GroupRecord:
    """What the job says of its group; ``jobs`` as ``snapshot_jobs`` gives them."""
    named = _named(spec)
    members = [
        GroupMember(name=name, store=name, step=named[name].step_as(name), model=job.model)
        for name, job in jobs.items()
    ]
    return GroupRecord(
        table_fingerprint=table_fingerprint, table_url=table_url(spec), pattern=spec.snapshot_folders, members=members
    )


def require_snapshots(spec: CollectSpec, jobs: Mapping[str, CollectSpec]) -> None:
    """Refuse, before anything is computed, what one of the snapshots would end the job for. Loads no weights.

    Raises:
        MissingError, ModelError: a snapshot that is not there, or is no model; named. MismatchError: one that has
        another tokenizer than ``model``.
    """
    for name, job in jobs.items():
        try:
            _require_model(job.model)
        except UserError as error:
            raise type(error)(f"snapshot {name!r}: {error}") from error
    if spec.tokens.tokenizer == _OF_THE_MODEL:
        _require_one_tokenizer(spec, jobs)


def natural(text: str) -> list[tuple[int, int, str]]:
    """Sort key in which runs of digits are numbers: ``step8`` before ``step64``."""
    parts = re.split(r"(\d+)", text)
    return [(0, int(part), part) if part.isdigit() else (1, 0, part) for part in parts if part]


def _named(spec: CollectSpec) -> dict[str, SnapshotSpec]:
    if spec.snapshots_of:
        raise SpecError(
            f"{spec.name}: snapshots_of is {spec.snapshots_of!r}, which means a train_model job of the same pipeline; "
            "of a training that is done give its folders: snapshot_folders: OUTPUT/snapshots/step*"
        )
    return dict(spec.snapshots) or _matching(spec.snapshot_folders)


def _job(spec: CollectSpec, name: str, one: SnapshotSpec) -> CollectSpec:
    model = one.model(spec.model)
    tokens = {"output": table_url(spec)}
    if spec.tokens.tokenizer == _OF_THE_MODEL and model.path != spec.model.path:
        # A checkpoint need not have one; whoever decodes rows of its store later is told where it is.
        tokens["tokenizer"] = spec.model.path
    return spec.model_copy(
        update={
            "name": f"{spec.name}.{name}"[:_NAME_LENGTH],
            "model": model,
            "snapshots": {},
            "snapshots_of": "",
            "snapshot_steps": [],
            "snapshot_folders": "",
            "tokens": spec.tokens.model_copy(update=tokens),
            "output": f"{spec.output.rstrip('/')}/{name}",
        }
    )


def _matching(pattern: str) -> dict[str, SnapshotSpec]:
    """Folders and GGUF files that match, by the part of the path in which the pattern has its wildcards."""
    if "://" in pattern:
        raise SpecError(f"snapshot_folders {pattern!r}: models are read from local folders; name snapshots on the Hub")
    parts = Path(pattern).parts
    wild = [place for place, part in enumerate(parts) if glob.has_magic(part)]
    if not wild:
        raise SpecError(
            f"snapshot_folders {pattern!r} has no wildcard (*, ?, [...]); name a single model in model.path"
        )
    matches = [path for path in glob.glob(pattern, recursive=True) if os.path.isdir(path) or path.endswith(".gguf")]
    if not matches:
        raise MissingError(f"snapshot_folders {pattern!r} matches no folder")
    found: dict[str, SnapshotSpec] = {}
    for path in sorted(matches, key=natural):
        here = Path(path).parts
        name = "-".join(here[wild[0] : len(here) - (len(parts) - 1 - wild[-1])])
        if not is_name(name) or name == GROUP or name in found:
            raise SpecError(
                f"snapshot_folders {pattern!r} matches {path}, which would be called {name!r}: expected different "
                "names of letters, digits, '_', '.' and '-'; give the snapshots names of your own instead "
                "(snapshots: {NAME: {path: ...}})"
            )
        found[name] = SnapshotSpec(path=path)
    return found


def _require_model(model: ModelSpec) -> None:
    where = check_spec(model)
    if where.kind == "folder":
        weight_files(Path(where.path))
    elif where.kind == "hub":
        resolve_commit(where.path, model.revision)


def _require_one_tokenizer(spec: CollectSpec, jobs: Mapping[str, CollectSpec]) -> None:
    wanted = load_spec_tokenizer(spec.tokens, spec.model)
    for name, job in jobs.items():
        model = job.model
        if (model.path, model.revision) == (spec.model.path, spec.model.revision) or not _has_tokenizer(model):
            continue
        found = load_tokenizer(model.path, model.revision)
        if found.digest != wanted.digest:
            raise MismatchError(
                f"snapshot {name!r} ({model.path}) has another tokenizer than the model {spec.model.path}, so token "
                f"ids would mean other text to it: {found.vocab_size} entries with special tokens {found.specials}, "
                f"expected {wanted.vocab_size} with {wanted.specials}. Collect it by itself, or name in "
                "tokens.tokenizer the one that is right for all"
            )


def _has_tokenizer(model: ModelSpec) -> bool:
    where = locate(model.path)
    if where.kind == "folder":
        return any(Path(where.path, name).exists() for name in _TOKENIZER_FILES)
    return where.kind != "python"
