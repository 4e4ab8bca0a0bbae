"""Log lines of processes, for people or for machines, and the words that must never be in one.

``HEADWORKS_LOG=json`` makes every line on stderr one JSON object: ``time`` (UTC), ``level``, ``logger``, ``message``,
the process, and the facts that the code gave as ``extra={"facts": {...}}``. Without it, lines are for people.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import socket
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

VARIABLE = "HEADWORKS_LOG"
HIDDEN = "***"

_PACKAGES = ("schemas", "pipeline", "workers", "deploy")
_SECRET_VARIABLES = (
    "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "RAY_AUTH_TOKEN",
    "WANDB_API_KEY",
)  # fmt: skip
_LEAST_SECRET = 8
"""Values shorter than this are no secrets, and replacing them would garble the text."""

_IN_AUTHORITY = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_IN_QUERY = re.compile(
    r"(?i)(?<=[?&;])((?:x-amz-|x-goog-)?(?:signature|credential|security-token|sig|token|access_token|api_key|key"
    r"|secret|password|awsaccesskeyid|googleaccessid))=[^&\s#'\"]+"
)
_BEARER = re.compile(r"(?i)\b(bearer|basic) [a-z0-9+/_.~=-]{8,}")
_NAMES = (
    r"(?:[a-z0-9]+[_-])*(?:secret[_-]access[_-]key|secret[_-]key|client[_-]secret|api[_-]key|password|passwd"
    r"|(?:session|access|auth|refresh|security)[_-]token)|(?:hf_|hugging_face_hub_|headworks_)?token"
)
"""What secrets are called; ``bos_token`` and its like are none."""
_IN_ASSIGNMENT = re.compile(
    rf"(?i)(?<![\w-])({_NAMES})(['\"]?\s*[=:]\s*['\"]?)(?!\*\*\*|none\b|null\b|\d+\b)[^\s'\",;&]{{6,}}"
)
_SECRET_NAME = re.compile(rf"(?i)secret|authorization|{_NAMES}")
_TOKENS = re.compile(
    r"\b(hw_)[0-9A-Za-z]{12}_[0-9A-Za-z]{20,}|\b(hf_)[0-9A-Za-z]{20,}|\b(AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|\b(gh[opsu]_)[0-9A-Za-z]{30,}|\b(sk-)[0-9A-Za-z_-]{20,}|\b(eyJ)[\w-]{10,}\.[\w-]{10,}\.[\w-]*"
)
"""Of Headworks, the Hugging Face Hub, AWS (the id of a key), GitHub, model providers; JSON web tokens."""


def redacted(text: str) -> str:
    """The text without what lies between ``://`` and ``@``, values of signing parameters, authorisation headers, tokens
    of known forms, what is assigned to a password, token or key, and the values that the usual secret variables of this
    process have."""
    text = _IN_AUTHORITY.sub(HIDDEN, text)
    text = _IN_QUERY.sub(rf"\1={HIDDEN}", text)
    text = _BEARER.sub(rf"\1 {HIDDEN}", text)
    text = _TOKENS.sub(lambda match: f"{match[match.lastindex or 0]}{HIDDEN}", text)
    text = _IN_ASSIGNMENT.sub(rf"\1\2{HIDDEN}", text)
    for name in _SECRET_VARIABLES:
        value = os.environ.get(name, "")
        if len(value) >= _LEAST_SECRET:
            text = text.replace(value, HIDDEN)
    return text


def redacted_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The same of every string in nested mappings and lists, and whatever text has the name of a secret."""
    return {
        name: HIDDEN if isinstance(value, str) and value and _SECRET_NAME.fullmatch(name) else _redacted_value(value)
        for name, value in facts.items()
    }


def now() -> str:
    """This moment as ISO 8601 in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class JsonFormatter(logging.Formatter):
    """One JSON object a record, on one line, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "host": socket.gethostname(),
            "pid": record.process,
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(redacted_facts(line | getattr(record, "facts", {})), default=str)


class _PlainFormatter(logging.Formatter):
    """``logger: message``, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


class JsonLines(io.TextIOBase):
    """A text stream for code that writes lines for people: each goes out as a log record instead. Never a terminal."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def write(self, text: str) -> int:
        """Log the lines of ``text``."""
        for line in text.splitlines():
            if line.strip():
                self._logger.info("%s", line)
        return len(text)


def wants_json() -> bool:
    """Whether ``HEADWORKS_LOG`` asks for JSON."""
    return os.environ.get(VARIABLE, "") == "json"


def configure(level: int = logging.WARNING) -> None:
    """Set up this process's log on stderr; as JSON from level INFO on for Headworks' own loggers, if asked for.

    Called by whatever starts a process, the command line or an actor, never on import.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if wants_json() else _PlainFormatter("%(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=wants_json())
    if wants_json():
        for package in _PACKAGES:
            logging.getLogger(package).setLevel(min(level, logging.INFO))


def configure_actor() -> None:
    """For processes that Ray starts, whose log Ray keeps: JSON if asked for, else what Ray has set up."""
    if wants_json():
        configure()


def progress_stream() -> TextIO:
    """Where the lines for people go: stderr, or the log where it is JSON."""
    if wants_json():
        return JsonLines(logging.getLogger("workers.progress"))  # type: ignore[return-value]
    return sys.stderr


def _redacted_value(value: Any) -> Any:
    match value:
        case str():
            return redacted(value)
        case Mapping():
            return redacted_facts(value)
        case list() | tuple():
            return [_redacted_value(each) for each in value]
    return value
