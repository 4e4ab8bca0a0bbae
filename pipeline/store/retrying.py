"""Doing a request again when its failure may pass by itself: bounded in number and in time, and honest at the end.

Between two tries lies a random time below a limit that doubles ("full jitter"), so that many workers whom a storage
turned away together do not come back together. Source: Brooker, "Exponential backoff and jitter", AWS architecture
blog, 2015.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TypeVar

from schemas.errors import HeadworksError, SpecError, UnreachableError

Result = TypeVar("Result")
Reason = Callable[[Exception], str | None]
"""What to call a failure that may pass by itself ("503 SlowDown"), None of one that will not."""

SECONDS_VARIABLE = "HEADWORKS_STORAGE_SECONDS"
NO_CONNECTION = "no connection"
"""The reason where nobody answers at all: a restarting server, or a wrong address."""

_SECONDS = 120.0
_TRIES = 10
_FIRST_TRIES = 3
"""Before the first answer ever, "no connection" is most likely a wrong address, which the user should hear soon."""
_FIRST_LIMIT_S, _LIMIT_S = 0.2, 20.0
_MOST_ASKED_S = 60.0
"""What a storage may ask for at most (``Retry-After``); what remains of the patience bounds it too."""
_log = logging.getLogger(__name__)


class PassingError(OSError):
    """A failure that this package found itself, always retried, so callers never meet it."""

    def __init__(self, reason: str, message: str, *, asked_s: float = 0.0) -> None:
        super().__init__(message)
        self.reason = reason
        self.asked_s = asked_s
        """How long the storage asked to be left alone."""


@dataclass
class Retries:
    """Of one storage in this process: knows whether it ever answered. Safe to use from several threads."""

    reason: Reason
    hint: str
    """What to look at when the storage does not answer: ends the message."""
    asked_s: Callable[[Exception], float] = lambda exc: 0.0
    """How long the storage asks to be left alone, by the failure; 0 where it does not say."""
    answered: bool = field(default=False, init=False)

    def run(self, where: str, action: Callable[[], Result]) -> Result:
        """``action()``, again after each failure that has a ``reason``. Other errors pass unchanged, at once.

        Raises:
            UnreachableError: it failed too often or for too long; says what failed how often.
        """
        began = time.monotonic()
        patience_s = seconds()
        failures: Counter[str] = Counter()
        while True:
            try:
                result = action()
            except Exception as exc:
                reason = exc.reason if isinstance(exc, PassingError) else self._reason_of(exc)
                if reason is None:
                    self.answered = True
                    raise
                failures[reason] += 1
                self.answered = self.answered or reason != NO_CONNECTION
                delay_s = random.uniform(0, min(_LIMIT_S, _FIRST_LIMIT_S * 2 ** (failures.total() - 1)))
                spent_s = time.monotonic() - began
                if (asked_s := self._asked_s(exc)) > 0:
                    # Never before it was asked for; some time after it, as many others were told the same.
                    delay_s += min(asked_s, _MOST_ASKED_S, max(0.0, patience_s - spent_s - delay_s))
                if failures.total() >= self._tries(reason) or spent_s + delay_s > patience_s:
                    raise UnreachableError(
                        f"{where}: gave up after {failures.total()} tries in {spent_s:.1f} s: {_said(failures)}; the "
                        f"last: {str(exc) or type(exc).__name__}. Check {self.hint}, or allow it more time than "
                        f"{patience_s:g} s ({SECONDS_VARIABLE})"
                    ) from exc
                time.sleep(delay_s)
            else:
                self.answered = True
                if failures:
                    _log.info(
                        "storage.retried object=%s tries=%d seconds=%.1f failures=%s",
                        where, failures.total() + 1, time.monotonic() - began, _said(failures),
                    )  # fmt: skip
                return result

    def _asked_s(self, exc: Exception) -> float:
        return exc.asked_s if isinstance(exc, PassingError) else self.asked_s(exc)

    def _reason_of(self, exc: Exception) -> str | None:
        return None if isinstance(exc, HeadworksError) else self.reason(exc)

    def _tries(self, reason: str) -> int:
        return _FIRST_TRIES if reason == NO_CONNECTION and not self.answered else _TRIES


def retry_after_s(value: str | None) -> float:
    """Seconds of an HTTP ``Retry-After``, a number or a date (RFC 9110, section 10.2.3); 0 of what is neither."""
    if not value:
        return 0.0
    if value.strip().isdigit():
        return float(value)
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return max(0.0, until.timestamp() - time.time())


def seconds() -> float:
    """How long one request may be retried, from the environment.

    Raises:
        SpecError: the variable is no positive number.
    """
    text = os.environ.get(SECONDS_VARIABLE, str(_SECONDS))
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not value > 0:
        raise SpecError(f"{SECONDS_VARIABLE}: expected a positive number of seconds, got {text!r}")
    return value


def _said(failures: Counter[str]) -> str:
    return ", ".join(f"{reason} {count}x" for reason, count in failures.most_common())
