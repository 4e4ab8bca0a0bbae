"""Plain text: reads one file, yields one document."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterator

from pipeline.tokens.document import Document, Piece
from pipeline.tokens.files import open_file
from schemas.corpus import TextCorpus
from schemas.errors import CorpusError, SpecError

_REPLACE_EACH_BYTE = "headworks-replace-each-byte"


def read_text(corpus: TextCorpus, piece: Piece) -> Iterator[Document]:
    """The one document of a file; line ends stay as they are.

    Raises:
        CorpusError: bytes that do not decode, or a file that changed since it was digested.
        SpecError: an encoding that Python does not know.
    """
    with open_file(piece.file) as stream:
        raw = stream.read()
    kind, _, digest = piece.file.digest.partition(":")
    if kind == "sha256" and hashlib.sha256(raw).hexdigest() != digest:
        raise CorpusError(f"corpus file {piece.file.url} changed while the job ran; run the job again")
    try:
        yield Document(piece.file.name, raw.decode(corpus.encoding))
    except UnicodeDecodeError as exc:
        if corpus.on_bad_text == "refuse":
            raise CorpusError(
                f"corpus file {piece.file.url} is not {corpus.encoding}: byte {exc.start} is "
                f"0x{raw[exc.start]:02x} ({exc.reason}); exclude the file, name its encoding in corpus.encoding, "
                "or set corpus.on_bad_text: replace"
            ) from exc
        text = _replace_bad(raw, corpus.encoding)
        num_replaced = text.count("\ufffd") - raw.decode(corpus.encoding, "ignore").count("\ufffd")
        yield Document(piece.file.name, text, num_replaced)
    except LookupError as exc:
        raise SpecError(f"corpus.encoding {corpus.encoding!r} is no text encoding that Python knows") from exc


def _replace_bad(raw: bytes, encoding: str) -> str:
    """U+FFFD for every bad byte; Python's own ``replace`` gives one for a whole bad sequence."""
    codecs.register_error(_REPLACE_EACH_BYTE, _one_for_each_byte)
    return raw.decode(encoding, _REPLACE_EACH_BYTE)


def _one_for_each_byte(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end
