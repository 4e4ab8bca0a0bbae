"""The files of a corpus: reads globs and fsspec URLs, yields named, digested files in the order of the table."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import IO, Any, Literal

import fsspec

from pipeline.tokens.document import CorpusFile
from schemas.errors import CorpusError, MissingError

_MAGIC = "*?["
_BLOCK_BYTES = 1 << 20
_REMOTE_CHECKSUMS = ("ETag", "etag", "md5Hash", "content_md5", "crc32c", "checksum")
"""What S3, HTTP, Google and Azure call the checksum of an object in fsspec's ``info``."""


def find_files(urls: Sequence[str], exclude: Sequence[str] = ()) -> list[CorpusFile]:
    """All files that the URLs name, each once, sorted by name; digests are left empty.

    Raises:
        MissingError: a URL that matches no file.
        CorpusError: a URL that is a folder, or ``exclude`` that leaves nothing.
    """
    found: dict[str, CorpusFile] = {}
    for url in urls:
        for file in _match(url):
            found.setdefault(file.url, file)
    kept = [file for file in found.values() if not any(fnmatchcase(file.name, pattern) for pattern in exclude)]
    if not kept:
        raise CorpusError(f"corpus.exclude {list(exclude)} leaves none of the {len(found)} files of {list(urls)}")
    return sorted(kept, key=lambda file: (file.name, file.url))


def digest_files(files: Iterable[CorpusFile]) -> list[CorpusFile]:
    """The same files with their digests: local and checksum-less ones are read through once, block by block."""
    return [replace(file, digest=_digest(file)) for file in files]


def order_files(files: Iterable[CorpusFile], order: Literal["sorted", "shuffled"], seed: int) -> list[CorpusFile]:
    """The order of the table: by name, or by SHA-256 of seed and name. Digests break ties, folders never count."""
    if order == "sorted":
        return sorted(files, key=lambda file: (file.name, file.digest))
    return sorted(files, key=lambda file: (_shuffle_key(seed, file.name), file.name, file.digest))


def open_file(file: CorpusFile) -> IO[bytes]:
    """Open for reading; the caller closes it.

    Raises:
        MissingError: the file went away after it was listed.
        CorpusError: it cannot be read, or has another length than when it was listed.
    """
    try:
        filesystem, path = fsspec.url_to_fs(file.url)
        size_bytes = filesystem.info(path)["size"]
        if size_bytes != file.size_bytes:
            raise CorpusError(
                f"corpus file {file.url} changed while the job ran: it was {file.size_bytes} bytes, "
                f"now {size_bytes}; run the job again, with another tokens.output if a table was begun"
            )
        stream: IO[bytes] = filesystem.open(path, "rb")
    except FileNotFoundError as exc:
        raise MissingError(f"corpus file {file.url} is not there any more") from exc
    except OSError as exc:
        if isinstance(exc, MissingError | CorpusError):
            raise
        raise CorpusError(f"corpus file {file.url} cannot be read: {exc}") from exc
    return stream


def _match(url: str) -> list[CorpusFile]:
    """The files that one URL or glob names."""
    filesystem, pattern = fsspec.url_to_fs(url.replace("{stdlib}", sysconfig.get_path("stdlib")))
    fixed = _fixed_part(pattern)
    if any(letter in pattern for letter in _MAGIC):
        entries: dict[str, dict[str, Any]] = filesystem.glob(pattern, detail=True)
    elif filesystem.isdir(pattern):
        raise CorpusError(f"corpus url {url!r} is a folder; say which files in it, for example {url.rstrip('/')}/**/*")
    else:
        entries = {pattern: filesystem.info(pattern)} if filesystem.exists(pattern) else {}
    files = {path: entry for path, entry in entries.items() if entry["type"] == "file"}
    if not files:
        folder = "" if filesystem.exists(fixed) else ", which does not exist"
        raise MissingError(f"corpus url {url!r} matches no file; searched {fixed or '/'}{folder}")
    return [
        CorpusFile(path.removeprefix(fixed).lstrip("/"), filesystem.unstrip_protocol(path), int(entry["size"] or 0))
        for path, entry in files.items()
    ]


def _fixed_part(pattern: str) -> str:
    """The folders before the first wildcard: the root that names, ``exclude`` and digests are relative to."""
    magic = min((pattern.find(letter) for letter in _MAGIC if letter in pattern), default=len(pattern))
    return pattern[:magic].rpartition("/")[0]


def _digest(file: CorpusFile) -> str:
    filesystem, path = fsspec.url_to_fs(file.url)
    if "file" not in _protocols(filesystem):
        info = filesystem.info(path)
        for field in _REMOTE_CHECKSUMS:
            if info.get(field):
                return f"{field.lower()}:{str(info[field]).strip(chr(34))}"
    digest = hashlib.sha256()
    with open_file(file) as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def _shuffle_key(seed: int, name: str) -> str:
    # surrogateescape: file names on Linux are bytes and need not be UTF-8.
    return hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogateescape")).hexdigest()
