"""Several models under one collect job: checkpoints of one training, revisions, or related models."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, NonNegativeInt, StringConstraints

from schemas.fields import Name, Spec
from schemas.model import Arguments, ModelPath, ModelSpec, Revision

GROUP = "group.json"
"""The one document of a store group; no snapshot has this name."""

_STEP = re.compile(r"(?:^|[^a-z])(?:step|steps|checkpoint|ckpt|iter|iteration)[-_=]?(\d+)$", re.I)


class SnapshotSpec(Spec):
    """What one snapshot has that the job's ``model`` has not: every field given here goes before that of ``model``."""

    path: ModelPath | None = None
    """As in ``model``; ``${NAME}`` of a train_model job with a ``step`` is the snapshot that it keeps after that
    step."""
    revision: Revision | None = None
    """As in ``model``."""
    dtype: Literal["bfloat16", "float16", "float32", "native"] | None = None
    """As in ``model``."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] | None = None
    """As in ``model``."""
    arguments: Arguments | None = None
    """As in ``model``."""
    step: NonNegativeInt | None = None
    """Training step, for people and plots; if not given, the number at the end of a name, revision or folder such as
    ``step512`` or ``checkpoint-512``."""

    def model(self, base: ModelSpec) -> ModelSpec:
        """``base`` with the fields that the snapshot gives."""
        given = {field: value for field, value in self if field != "step" and value is not None}
        return base.model_copy(update=given)

    def step_as(self, name: str) -> int | None:
        """The step, as given or as the name, the revision or the last part of the path ends; None if none says it."""
        if self.step is not None:
            return self.step
        folder = (self.path or "").rstrip("/").rpartition("/")[2]
        matches = (_STEP.search(text) for text in (name, self.revision or "", folder))
        return next((int(match[1]) for match in matches if match), None)


def _no_document(name: str) -> str:
    if name == GROUP:
        raise ValueError(f"no snapshot may be named {GROUP}: that is the group's own document")
    return name


SnapshotName = Annotated[Name, AfterValidator(_no_document)]
"""A name that is also the folder of the snapshot's store in the group."""

ModelReference = Annotated[str, StringConstraints(pattern=r"^(\$\{[A-Za-z0-9_.\-]+\})?$")]
"""``${NAME}`` of a job that trains a model; empty: none."""

Snapshots = dict[SnapshotName, SnapshotSpec]
"""Name -> what it has of its own, in the order in which they are collected."""
