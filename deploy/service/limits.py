"""How much one client may ask of the service: bytes of a request, requests a minute, log streams at a time.

    1. requests per address, then per token: a bucket of tokens each, refilled evenly, 429 with Retry-After when empty
    2. bytes of the body, as announced and as they come: 413
    3. log streams open at a time, per token and in all: 409

Buckets lie in this process's memory: several processes of one service each allow as much.
"""

from __future__ import annotations

import json
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

from deploy.service.access import token_id
from deploy.service.audit import client_address
from schemas.errors import BusyError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_MOST_CLIENTS = 20_000


@dataclass(frozen=True)
class RequestLimits:
    """What the operator allows."""

    body_bytes: int = 4 * 2**20
    """Of one request."""
    per_minute: int = 600
    """Requests of one token; as many may come at once."""
    address_per_minute: int = 3000
    """Requests of one address, whatever tokens they carry; people behind one proxy share it."""
    streams: int = 200
    """Log streams open at a time."""
    streams_of_one: int = 60
    """Of these, by one token."""


class Rate:
    """Requests of many clients, each with its own bucket of ``per_minute``, refilled evenly. Of the clients that were
    not seen for longest the buckets are dropped when there are too many; they were most likely full."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._size = float(per_minute)
        self._per_s = per_minute / 60
        self._clock = clock
        self._lock = Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> float:
        """0 where the request may pass, else seconds until one may."""
        now = self._clock()
        with self._lock:
            left, since = self._buckets.pop(client, (self._size, now))
            left = min(self._size, left + (now - since) * self._per_s)
            wait_s = 0.0 if left >= 1 else (1 - left) / self._per_s
            self._buckets[client] = (left - 1 if left >= 1 else left, now)
            while len(self._buckets) > _MOST_CLIENTS:
                self._buckets.popitem(last=False)
        return wait_s


class Slots:
    """So many things open at a time, in all and for each client."""

    def __init__(self, total: int, of_one: int) -> None:
        self._total, self._of_one = total, of_one
        self._lock = Lock()
        self._open: dict[str, int] = {}

    @contextmanager
    def taken(self, client: str) -> Iterator[None]:
        """One of them, for the length of the block.

        Raises:
            BusyError: there is none left.
        """
        with self._lock:
            mine, all_of_them = self._open.get(client, 0), sum(self._open.values())
            if mine >= self._of_one or all_of_them >= self._total:
                whose, most = (client, self._of_one) if mine >= self._of_one else ("all clients together", self._total)
                raise BusyError(f"{most} log streams of {whose} are open, and no more are allowed; close one and retry")
            self._open[client] = mine + 1
        try:
            yield
        finally:
            with self._lock:
                self._open[client] -= 1
                if not self._open[client]:
                    del self._open[client]


class _TooLarge(Exception):  # noqa: N818 - never leaves this module
    """The body went on after its last allowed byte."""


class LimitRequests:
    """ASGI middleware: rates and sizes of requests. ``exempt``: paths that are neither counted nor limited (health)."""

    def __init__(
        self,
        app: App,
        limits: RequestLimits | None = None,
        *,
        exempt: frozenset[str] = frozenset(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._limits = limits or RequestLimits()
        self._exempt = exempt
        self._by_address = Rate(self._limits.address_per_minute, clock)
        self._by_token = Rate(self._limits.per_minute, clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        if scope["type"] == "http":
            client_address.set(_address(scope))
        if scope["type"] != "http" or scope["path"] in self._exempt:
            await self._app(scope, receive, send)
            return
        if wait_s := self._wait_s(scope):
            seconds = math.ceil(wait_s)
            message = f"too many requests; at most {self._limits.per_minute} a minute, wait {seconds} s"
            await _answer(send, 429, message, [(b"retry-after", str(seconds).encode())])
            return
        announced = _header(scope, b"content-length")
        if announced.isdigit() and int(announced) > self._limits.body_bytes:
            await self._refuse_size(send)
            return
        await self._measured(scope, receive, send)

    def _wait_s(self, scope: Scope) -> float:
        identifier = token_id(_header(scope, b"authorization").partition(" ")[2].strip())
        # The address first: identifiers can be made up, and each would have a bucket of its own.
        wait_s = self._by_address.take(_address(scope))
        return wait_s or (self._by_token.take(identifier) if identifier else 0.0)

    async def _measured(self, scope: Scope, receive: Receive, send: Send) -> None:
        taken, has_begun = 0, False

        async def measured_receive() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._limits.body_bytes:
                raise _TooLarge
            return message

        async def noted_send(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, measured_receive, noted_send)
        except _TooLarge:
            if not has_begun:
                await self._refuse_size(send)

    async def _refuse_size(self, send: Send) -> None:
        message = f"the request is larger than {self._limits.body_bytes:,} bytes, the most that is taken"
        # What is still under way of the body is not read, so the connection cannot be used again.
        await _answer(send, 413, message, [(b"connection", b"close")])


def _address(scope: Scope) -> str:
    return str((scope.get("client") or ("unknown",))[0])


def _header(scope: Scope, name: bytes) -> str:
    found: bytes = next((value for key, value in scope["headers"] if key.lower() == name), b"")
    return found.decode("latin-1")


async def _answer(send: Send, status: int, message: str, headers: list[tuple[bytes, bytes]]) -> None:
    kind = "TooManyRequests" if status == 429 else "TooLarge"
    body = json.dumps({"error": {"type": kind, "message": message}}).encode()
    start = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body})
