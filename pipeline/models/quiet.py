"""No progress bars and no load reports of other libraries while a model loads; as it was before, afterwards."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TextIO


class _WithoutBars:
    """A stream that drops what progress bars write (they begin with a carriage return) and passes all else on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar_open = False

    def write(self, text: str) -> int:
        bar = text.startswith("\r") or (self._bar_open and not text.strip())
        self._bar_open = bar
        return len(text) if bar else self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return False


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence transformers' bars and reports and bars on stderr for the duration of the block."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call,unused-ignore]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call,unused-ignore]
    try:
        with contextlib.redirect_stderr(_WithoutBars(sys.stderr)):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call,unused-ignore]
