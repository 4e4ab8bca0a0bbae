"""The audit log, for admins."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict

from deploy.service.answers import described
from deploy.service.audit import AuditFacts, AuditRecord
from deploy.service.context import Admin, InService

router = APIRouter(prefix="/api/v1", tags=["audit"])

Equal = Annotated[str, Query(max_length=64)]


class AuditView(AuditFacts):
    """A record of what somebody did."""

    time: str
    """ISO 8601, UTC."""


class AuditPage(BaseModel):
    """Some records, the newest first."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    records: list[AuditView]
    """Those of this page."""
    before: int | None
    """What to ask for next as ``before``; null: these were the last."""


@router.get("/audit", responses=described())
def audit(
    service: InService,
    _who: Admin,
    principal: Equal = "",
    team: Equal = "",
    action: Equal = "",
    outcome: Equal = "",
    before: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> AuditPage:
    """Who did what, the newest first; whether the log is whole is for `headworks audit verify` to say."""
    wanted = {"principal": principal, "team": team, "action": action, "outcome": outcome}
    found = service.audit.read({name: text for name, text in wanted.items() if text}, before=before, limit=limit)
    more = found[-1].sequence if len(found) == limit and found[-1].sequence > 1 else None
    return AuditPage(records=[_view(record) for record in found], before=more)


def _view(record: AuditRecord) -> AuditView:
    when = datetime.fromtimestamp(record.time, UTC).isoformat(timespec="milliseconds")
    return AuditView.model_validate({**record.model_dump(), "time": when})
