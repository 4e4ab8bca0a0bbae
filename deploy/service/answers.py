"""Errors as answers: one form, ``{"error": {"type", "message", "field"?}}``, for everything from 400 on."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic_core import ErrorDetails
from sqlalchemy.exc import DBAPIError
from starlette.exceptions import HTTPException

from deploy.service.views import ErrorAnswer
from pipeline.logs import redacted
from pipeline.spec_errors import explained_details, locate
from schemas.errors import (
    BusyError,
    DataError,
    ForbiddenError,
    HeadworksError,
    JobError,
    MismatchError,
    MissingError,
    UnreachableError,
)  # fmt: skip
from schemas.pipeline import AnyJob

_log = logging.getLogger(__name__)

_STATUS: dict[type[HeadworksError], int] = {
    ForbiddenError: 403, MissingError: 404, MismatchError: 409, BusyError: 409, DataError: 409, JobError: 409,
    UnreachableError: 502,
}  # fmt: skip
"""The rest are mistakes in what was sent: 422."""

_NAMES = {401: "Unauthorized", 404: "NotFound", 405: "MethodNotAllowed", 413: "TooLarge", 429: "TooManyRequests"}
_PATH = r"((?:[a-z_]\w*)(?:\[\d+\])*(?:\.[\w\-]+(?:\[\d+\])*)*): "
_FIELD = re.compile(_PATH)
_LISTED_FIELD = re.compile(f"^  {_PATH}", re.MULTILINE)

Responses = dict[int | str, dict[str, Any]]


def described(*statuses: int) -> Responses:
    """The errors of a route, for OpenAPI."""
    return {status: {"model": ErrorAnswer} for status in (*statuses, 401, 403, 422)}


def described_beside_text(*statuses: int) -> Responses:
    """The same of a route whose good answer is plain text: FastAPI would describe its errors as text, too."""
    form = {"application/json": {"schema": {"$ref": f"#/components/schemas/{ErrorAnswer.__name__}"}}}
    return {status: {"description": "What is wrong", "content": form} for status in (*statuses, 401, 403, 422)}


def error_answer(status: int, kind: str, message: str, field: str = "", headers: Any = None) -> JSONResponse:
    """An answer in the one form; secrets in what the message quotes are taken out."""
    facts = {"type": kind, "message": redacted(message), **({"field": field} if field else {})}
    return JSONResponse({"error": facts}, status_code=status, headers=headers)


def install(app: FastAPI) -> None:
    """Answer every error of the app in the one form."""
    app.add_exception_handler(HeadworksError, _headworks_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RecursionError, _too_deep)
    app.add_exception_handler(DBAPIError, _database_error)
    app.add_exception_handler(Exception, _defect)


async def _headworks_error(_request: Request, error: Exception) -> JSONResponse:
    status = next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), 422)
    message = str(error)
    # Of several that are listed, the first.
    match = _FIELD.match(message) or _LISTED_FIELD.search(message)
    return error_answer(status, type(error).__name__, message, match[1] if match else "")


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    body = getattr(request.scope.get("route"), "body_field", None)
    model = body.field_info.annotation if body is not None else Any
    found = [_named(cast(ErrorDetails, details), model) for details in error.errors()]
    message = "\n".join(f"{field}: {said}" if field else said for field, said in found)
    return error_answer(422, "SpecError", message, found[0][0])


def _named(details: ErrorDetails, body: Any) -> tuple[str, str]:
    """``(field, what is wrong with it)`` of one of pydantic's errors, in the words of a spec's file; ``body``: the type
    of the request's body. Fields of a spec are named as in its file."""
    where: Sequence[Any] = details["loc"]
    if details["type"] == "json_invalid":
        return "", f"the body is not JSON: {details.get('ctx', {}).get('error', details['msg'])}"
    in_spec = tuple(where[:2]) == ("body", "spec") and len(where) > 2
    inner: ErrorDetails = {**details, "loc": tuple(where[2:] if in_spec else where[1:])}
    spec = AnyJob if in_spec else body if where[0] == "body" else Any
    field, _ = locate(inner["loc"], spec)
    return field or str(where[0]), explained_details(inner, spec).removeprefix(f"{field}: ")


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = str(error.detail)
    if message == HTTPStatus.NOT_FOUND.phrase:
        message = f"nothing is at {request.url.path}; /docs describes every route"
    return error_answer(error.status_code, _NAMES.get(error.status_code, "HttpError"), message, headers=error.headers)


async def _too_deep(_request: Request, _error: Exception) -> JSONResponse:
    # Nothing here recurses by itself but over what was sent.
    return error_answer(422, "SpecError", "the body has lists or mappings that are nested too deeply")


async def _database_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, DBAPIError)
    _log.error("service.database", exc_info=error)
    return error_answer(503, "UnreachableError", f"the service's database does not answer: {error.orig}; try again")


async def _defect(request: Request, error: Exception) -> JSONResponse:
    _log.error("service.defect", exc_info=error, extra={"facts": {"path": request.url.path}})
    return error_answer(500, "InternalError", "a defect of the service; its log says where it happened")


def plain(value: Any) -> Any:
    """As JSON takes it."""
    return jsonable_encoder(value)
