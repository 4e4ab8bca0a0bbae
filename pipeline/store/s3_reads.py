"""Ranged reads of S3 objects with URLs that are signed once and used for ten minutes.

botocore takes 2 to 4 ms of a core for each request (rules, signature, parsing), under Python's lock: a few hundred
reads a second in a process, however many threads. A signed URL leaves little more than the connection. What such a read
cannot do (another region, rotated credentials, a refusal) is left to the client, whose errors are the ones to show.
A signed URL is a credential for as long as it lasts, so none gets into a message.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from threading import Lock
from typing import Any

from botocore.awsrequest import AWSPreparedRequest, HeadersDict
from botocore.exceptions import BotoCoreError
from botocore.httpsession import URLLib3Session
from botocore.utils import get_environ_proxies
from urllib3.exceptions import HTTPError

from pipeline.store.parallel import REQUESTS_AT_ONCE
from pipeline.store.remote import Piece, require_length
from pipeline.store.retrying import PassingError, retry_after_s

_LIFE_S = 600
_URLS = 4096
_PASSING = {408, 429, 500, 502, 503, 504}


class SignedReads:
    """For one bucket and one client. Safe to use from several threads."""

    def __init__(self, client: Any, bucket: str, silence_s: float) -> None:
        self._client = client
        self._bucket = bucket
        self._session = URLLib3Session(
            verify=os.environ.get("AWS_CA_BUNDLE") or os.environ.get("REQUESTS_CA_BUNDLE") or True,
            proxies=get_environ_proxies(client.meta.endpoint_url),
            timeout=(min(10, silence_s), silence_s),
            max_pool_connections=2 * REQUESTS_AT_ONCE,
        )
        self._urls: OrderedDict[str, tuple[str, float]] = OrderedDict()
        """name -> signed URL and until when; an empty URL: none signed yet."""
        self._lock = Lock()

    def piece(self, name: str, start: int, stop: int) -> Piece | None:
        """None: let the client do it.

        Raises:
            PassingError: the storage is busy or the connection broke.
        """
        url = self._url(name)
        if not url:
            return None
        headers = HeadersDict({"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"})
        try:
            answer = self._session.send(AWSPreparedRequest("GET", url, headers, None, stream_output=True))
            if answer.status_code == 206:
                data: bytes = answer.raw.read()
            else:
                answer.raw.drain_conn()
        except (BotoCoreError, HTTPError, OSError) as exc:
            self._forget(name)
            raise PassingError("connection lost", f"{type(exc).__name__} while reading from {start}") from None
        if answer.status_code != 206:
            self._forget(name)
            if answer.status_code in _PASSING:
                asked_s = retry_after_s(answer.headers.get("Retry-After"))
                raise PassingError(str(answer.status_code), "the storage is busy", asked_s=asked_s)
            return None
        size = int(answer.headers["Content-Range"].rpartition("/")[2])
        require_length(data, start, stop, size)
        return Piece(data, size, str(answer.headers.get("ETag", "")))

    def note(self, name: str) -> None:
        """The client has read from it: the next read is worth a signature. Most objects are read once."""
        with self._lock:
            self._urls.setdefault(name, ("", 0.0))
            self._urls.move_to_end(name)
            if len(self._urls) > _URLS:
                self._urls.popitem(last=False)

    def _forget(self, name: str) -> None:
        with self._lock:
            self._urls.pop(name, None)

    def _url(self, name: str) -> str:
        """Empty for an object that the client has not read yet."""
        now = time.monotonic()
        with self._lock:
            if name not in self._urls:
                return ""
            url, until = self._urls[name]
        if url and now < until:
            return url
        signed: str = self._client.generate_presigned_url(
            "get_object", Params={"Bucket": self._bucket, "Key": name}, ExpiresIn=2 * _LIFE_S
        )
        with self._lock:
            self._urls[name] = (signed, now + _LIFE_S)
        return signed
