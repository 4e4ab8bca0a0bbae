"""Requests to S3 and what speaks its language, by botocore, which also finds endpoint, region and credentials.

Objects above ``2 x UPLOAD_BYTES`` go up in parts, several at once, each retried by itself. Put-if-absent is
``If-None-Match: *``, of an object in parts with the request that completes it. Every object carries a mark of the call
that wrote it in its metadata (``headworks-put``): a writer that is told "there is one" reads the mark and knows whether
it is its own, written by an earlier try whose answer was lost.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    ProxyConnectionError,
    ReadTimeoutError,
    SSLError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError
from botocore.session import get_session
from urllib3.exceptions import HTTPError

from pipeline.store.failures import missing
from pipeline.store.parallel import REQUESTS_AT_ONCE, UPLOAD_BYTES, at_once, spans_of, upload_slot
from pipeline.store.remote import Facts, Level, Page, Piece, RemoteBackend, require_length
from pipeline.store.retrying import NO_CONNECTION, retry_after_s
from pipeline.store.s3_reads import SignedReads
from schemas.errors import HeadworksError, MissingError, ResourceError, UnreachableError

SILENCE_S = 30.0
"""A connection on which nothing arrives for so long counts as lost."""
_MARK = "headworks-put"
_MOST_PARTS = 10_000
_PASSING_STATUS = {408, 429, 500, 502, 503, 504}
_PASSING_CODES = {
    "BadDigest", "BandwidthLimitExceeded", "ConditionalRequestConflict", "IncompleteBody", "InternalError",
    "OperationAborted", "RequestLimitExceeded", "RequestTimeout", "RequestTimeoutException", "ServiceUnavailable",
    "SlowDown", "Throttling", "ThrottlingException", "TooManyRequestsException", "XAmzContentSHA256Mismatch",
}  # fmt: skip
_PASSING_KINDS: dict[type[Exception] | tuple[type[Exception], ...], str] = {
    (EndpointConnectionError, ConnectTimeoutError, ProxyConnectionError): NO_CONNECTION,
    ReadTimeoutError: "timeout",
    IncompleteReadError: "body cut short",
    ResponseParserError: "answer cut short",
    # urllib3's own too: botocore lets them through where the body of an error or a listing is cut.
    (HTTPClientError, BotoConnectionError, HTTPError, ConnectionError, TimeoutError): "connection lost",
}
_FULL = {"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"}
_THERE_IS_ONE = {"PreconditionFailed", "412"}


class S3(RemoteBackend):
    """Objects below ``bucket/prefix``."""

    marks = True

    def __init__(self, url: str) -> None:
        self._bucket, _, prefix = url.split("://", 1)[1].strip("/").partition("/")
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        root = f"{self._bucket}/{self._prefix}".rstrip("/")
        super().__init__(f"s3://{root}", root, "the endpoint (AWS_ENDPOINT_URL), the network and the credentials")

    def reason(self, exc: Exception) -> str | None:
        if isinstance(exc, ClientError):
            code, status = _code(exc), _status(exc)
            passing = code in _PASSING_CODES or status in _PASSING_STATUS
            return f"{status} {code.removeprefix(str(status))}".strip() if passing else None
        if isinstance(exc, SSLError):
            return None
        return next((name for kinds, name in _PASSING_KINDS.items() if isinstance(exc, kinds)), None)

    def asked_s(self, exc: Exception) -> float:
        if not isinstance(exc, ClientError):
            return 0.0
        return retry_after_s(exc.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("retry-after"))

    @contextmanager
    def errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except HeadworksError:
            raise
        except ClientError as exc:
            raise self._explained(key, exc) from exc
        except BotoCoreError as exc:
            raise UnreachableError(f"{self.where(key)}: {exc}; check {self.retries.hint}") from exc

    def piece(self, key: str, start: int, stop: int) -> Piece:
        reads, name = self._connection.reads, f"{self._prefix}{key}"
        piece = reads.piece(name, start, stop) if reads else None
        if piece is None:
            piece = self._piece_by_client(key, start, stop)
            if reads:
                reads.note(name)
        return piece

    def _piece_by_client(self, key: str, start: int, stop: int) -> Piece:
        try:
            answer = self._call("get_object", key, Range=f"bytes={start}-{stop - 1}")
        except ClientError as exc:
            if _code(exc) not in {"InvalidRange", "416"}:
                raise
            facts = self.facts(key)
            if facts is None:
                raise missing(self.url, key) from exc
            require_length(b"", start, stop, facts.size)
            return Piece(b"", facts.size)
        with closing(answer["Body"]) as body:  # not body's own `with`, which gives another object
            data = bytes(body.read())
        if "ContentRange" not in answer:  # servers may answer a range that covers the object with the object
            data, size = data[start:stop], int(answer["ContentLength"])
        else:
            size = int(answer["ContentRange"].rpartition("/")[2])
        require_length(data, start, stop, size)
        return Piece(data, size, str(answer.get("ETag", "")))

    def put(self, key: str, data: bytes | bytearray | memoryview, *, mark: str, if_absent: bool) -> bool:
        return self._unless_there(
            lambda: self._call("put_object", key, Body=bytes(data), Metadata={_MARK: mark}, **_condition(if_absent))
        )

    def facts(self, key: str) -> Facts | None:
        try:
            answer = self._call("head_object", key)
        except ClientError as exc:
            if _status(exc) == 404:
                return None
            raise
        return Facts(
            int(answer["ContentLength"]), answer["LastModified"].timestamp(), answer.get("Metadata", {}).get(_MARK)
        )

    def page(self, folder: str, after: str | None) -> Page:
        below = f"{self._prefix}{folder}/" if folder else self._prefix
        answer = self._list(below, after)
        inside = len(self._prefix)
        found = {
            one["Key"][inside:]: Facts(int(one["Size"]), one["LastModified"].timestamp())
            for one in answer.get("Contents", [])
            if not one["Key"].endswith("/")  # a "folder" that some tool made
        }
        return found, answer.get("NextContinuationToken")

    def level(self, folder: str, after: str | None) -> Level:
        below = f"{self._prefix}{folder}/" if folder else self._prefix
        answer = self._list(below, after, Delimiter="/")
        files = [one["Key"][len(below) :] for one in answer.get("Contents", []) if not one["Key"].endswith("/")]
        folders = [one["Prefix"][len(below) : -1] for one in answer.get("CommonPrefixes", [])]
        return files, folders, answer.get("NextContinuationToken")

    def remove(self, key: str) -> None:
        self._call("delete_object", key)

    def _put(self, key: str, data: bytes | bytearray | memoryview, *, mark: str, if_absent: bool) -> bool:
        if len(data) <= 2 * UPLOAD_BYTES:
            return super()._put(key, data, mark=mark, if_absent=if_absent)
        if if_absent and self.size(key) is not None:
            return False
        return self._put_in_parts(key, data, mark, if_absent)

    def _put_in_parts(self, key: str, data: bytes | bytearray | memoryview, mark: str, if_absent: bool) -> bool:
        begun = self.request(key, lambda: self._call("create_multipart_upload", key, Metadata={_MARK: mark}))
        upload: str = begun["UploadId"]
        view = memoryview(data)

        def send(part: tuple[int, tuple[int, int]]) -> dict[str, Any]:
            number, (start, stop) = part
            with upload_slot():
                body = bytes(view[start:stop])
                call = lambda: self._call("upload_part", key, UploadId=upload, PartNumber=number, Body=body)  # noqa: E731
                return {"PartNumber": number, "ETag": self.request(key, call)["ETag"]}

        done = False
        try:
            size = max(UPLOAD_BYTES, -(-len(data) // _MOST_PARTS))
            parts = [*at_once(send, enumerate(spans_of(0, len(data), size), start=1))]
            done = self.request(key, lambda: self._complete(key, upload, parts, if_absent))
            done = done or self.request(key, lambda: self.is_ours(key, data, mark, uncertain=True))
            if not done and not if_absent:
                raise UnreachableError(f"{self.where(key)}: the storage forgot an upload under way; run again")
            return done
        finally:
            if not done:
                with suppress(HeadworksError):
                    self.request(key, lambda: self._call("abort_multipart_upload", key, UploadId=upload))

    def _complete(self, key: str, upload: str, parts: list[dict[str, Any]], if_absent: bool) -> bool:
        """False: there is an object already, or no such upload, which an earlier try may have completed."""
        options = {"UploadId": upload, "MultipartUpload": {"Parts": parts}, **_condition(if_absent)}
        try:
            return self._unless_there(lambda: self._call("complete_multipart_upload", key, **options))
        except ClientError as exc:
            if _code(exc) != "NoSuchUpload":
                raise
            return False

    def _unless_there(self, call: Callable[[], Any]) -> bool:
        """False where the storage says that there is one."""
        try:
            call()
        except ClientError as exc:
            if _code(exc) in _THERE_IS_ONE:
                return False
            raise
        return True

    def _list(self, below: str, after: str | None, **options: str) -> dict[str, Any]:
        if after:
            options["ContinuationToken"] = after
        answer: dict[str, Any] = self._client.list_objects_v2(Bucket=self._bucket, Prefix=below, **options)
        return answer

    def _call(self, operation: str, key: str, **options: Any) -> dict[str, Any]:
        answer: dict[str, Any] = getattr(self._client, operation)(
            Bucket=self._bucket, Key=f"{self._prefix}{key}", **options
        )
        return answer

    @property
    def _connection(self) -> _Connection:
        facts = sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))
        return _connection(self._bucket, os.getpid(), tuple(facts), SILENCE_S)

    @property
    def _client(self) -> Any:
        return self._connection.client

    def _explained(self, key: str, exc: ClientError) -> HeadworksError:
        code, status, where = _code(exc), _status(exc), self.where(key)
        if code == "NoSuchBucket":
            return MissingError(f"{where}: there is no bucket {self._bucket!r}; make it first, or correct its name")
        if status == 404:
            return missing(self.url, key)
        if code in _FULL or status == 507:
            return ResourceError(f"{where} cannot be written: {exc}. Free space or raise the quota, then run again")
        if status == 501:
            return ResourceError(
                f"{where}: {exc}. This storage does not offer what a store needs (put-if-absent by If-None-Match, "
                "uploads in parts); choose another"
            )
        return UnreachableError(f"{where}: {exc}; check the permissions and {self.retries.hint}")


@dataclass(frozen=True)
class _Connection:
    client: Any
    reads: SignedReads | None
    """None where buckets have signatures of their own: access points, directory buckets."""


@lru_cache(maxsize=8)
def _connection(bucket: str, pid: int, environment: tuple[tuple[str, str], ...], silence_s: float) -> _Connection:
    """One for each process, since a connection cannot be shared with a forked child, and for each environment. It
    retries nothing by itself."""
    is_plain = not bucket.startswith("arn:") and not bucket.endswith("--x-s3")
    client = get_session().create_client(
        "s3",
        config=Config(
            retries={"total_max_attempts": 1},
            max_pool_connections=2 * REQUESTS_AT_ONCE,
            connect_timeout=min(10, silence_s),
            read_timeout=silence_s,
            signature_version="s3v4" if is_plain else None,
            tcp_keepalive=True,
            user_agent_extra="headworks",
        ),
    )
    return _Connection(client, SignedReads(client, bucket, silence_s) if is_plain else None)


def _condition(if_absent: bool) -> dict[str, str]:
    return {"IfNoneMatch": "*"} if if_absent else {}


def _code(exc: ClientError) -> str:
    return str(exc.response.get("Error", {}).get("Code", ""))


def _status(exc: ClientError) -> int:
    return int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
