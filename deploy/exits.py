"""How a command ends: exit code and the words on stderr.

0    success
1    a job failed, stored data is damaged, or a defect of Headworks (``headworks --debug`` shows where)
2    the spec, an argument, the corpus or the machine is wrong: one message, no traceback
130  stopped by Ctrl-C or SIGTERM, with a word on what is kept
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import click

from pipeline import logs
from schemas.errors import HeadworksError, UserError

_log = logging.getLogger(__name__)

SUCCESS, FAILED, USER_ERROR, STOPPED = 0, 1, 2, 130


class Stopped(Exception):  # noqa: N818 - not an error
    """The user stopped the command; the message says what is kept."""


def guarded(action: Callable[[], int | None], *, debug: bool, as_json: bool, mistakes: bool = True) -> int:
    """Run a command and return its exit code, the one that it returns or that of the message for what it raises.

    ``debug`` puts the traceback before the message, unless the user made the mistake and ``mistakes`` is false.
    With ``as_json`` stdout gets ``{"error": {"type", "message"}}`` as well, so that a machine need not read stderr.
    """
    try:
        code = action()
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); nobody is left to tell.
        sys.stderr.close()
        return FAILED
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the last line of defence
        code, kind, message = _outcome(error, debug=debug)
        _say(message, kind, error if debug and (mistakes or code == FAILED) else None)
        if as_json:
            click.echo(json.dumps({"error": {"type": kind, "message": logs.redacted(message)}}))
        return code
    return code or SUCCESS


def _say(message: str, kind: str, shown: BaseException | None) -> None:
    """On stderr, with the traceback of ``shown``, as one line where the log is JSON; without secrets, whatever the
    message quotes."""
    if logs.wants_json():
        _log.error("%s", message, exc_info=shown, extra={"facts": {"error": kind}})
        return
    trace = "".join(traceback.format_exception(shown)) if shown is not None else ""
    click.echo(logs.redacted(f"{trace}headworks: {message}"), err=True)


def _outcome(error: BaseException, *, debug: bool) -> tuple[int, str, str]:
    """``(exit code, type, message)``."""
    kind = type(error).__name__
    match error:
        case click.ClickException():
            return USER_ERROR, kind, _click_message(error)
        case Stopped() | KeyboardInterrupt() | click.Abort():
            return STOPPED, "Stopped", str(error) or "stopped"
        case UserError():
            return USER_ERROR, kind, str(error)
        case HeadworksError():
            return FAILED, kind, str(error)
    hint = "" if debug else "\nThis is a defect of Headworks. `headworks --debug ...` shows where it happened."
    return FAILED, kind, f"{kind}: {error}{hint}"


def _click_message(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    usage = f"\n{context.get_usage()}" if context is not None else ""
    return f"{error.format_message()}{usage}"


@contextmanager
def stoppable(kept: Callable[[], str]) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM in the block into ``Stopped`` with what ``kept`` says."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(kept()) from None
    finally:
        signal.signal(signal.SIGTERM, before)
