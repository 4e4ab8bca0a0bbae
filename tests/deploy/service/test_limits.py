"""What one client may ask: requests a minute, bytes of a request, streams at a time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.service import limits as module
from deploy.service.audit import client_address
from deploy.service.limits import LimitRequests, Message, Rate, Receive, RequestLimits, Scope, Send, Slots
from schemas.errors import BusyError

TOKEN = f"hw_{'a' * 12}_{'b' * 43}"
OTHER = f"hw_{'c' * 12}_{'b' * 43}"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that reads its whole body and says how long it was."""
    length = 0
    while True:
        message = await receive()
        length += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": f"{length} {client_address.get()}".encode()})


def ask(
    app: Callable[[Scope, Receive, Send], Awaitable[None]],
    *,
    body: list[bytes] | None = None,
    headers: dict[str, str] | None = None,
    client: str = "10.0.0.1",
    path: str = "/",
) -> tuple[int, dict[str, str], bytes]:
    """One request: status, headers and body of the answer."""
    parts = body or [b""]
    incoming = [
        {"type": "http.request", "body": part, "more_body": index < len(parts) - 1} for index, part in enumerate(parts)
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        return incoming.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    given_headers = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    scope: dict[str, Any] = {"type": "http", "path": path, "headers": given_headers, "client": (client, 1)}
    asyncio.run(_call(app, scope, receive, send))
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    start, content = sent
    return start["status"], {key.decode(): value.decode() for key, value in start["headers"]}, content["body"]


async def _call(app: Any, scope: Scope, receive: Receive, send: Send) -> None:
    await app(scope, receive, send)


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def test_each_token_has_its_own_rate_and_is_told_when_to_come_again() -> None:
    clock = Clock()
    app = LimitRequests(echo, RequestLimits(per_minute=3), clock=clock)
    assert [ask(app, headers=bearer(TOKEN))[0] for _ in range(4)] == [200, 200, 200, 429]
    status, headers, body = ask(app, headers=bearer(TOKEN))
    assert (status, headers["retry-after"]) == (429, "20")
    assert "at most 3 a minute, wait 20 s" in json.loads(body)["error"]["message"]
    assert ask(app, headers=bearer(OTHER))[0] == 200
    clock.now += 20
    assert [ask(app, headers=bearer(TOKEN))[0] for _ in range(2)] == [200, 429]


def test_made_up_tokens_do_not_get_around_the_rate_of_an_address() -> None:
    app = LimitRequests(echo, RequestLimits(address_per_minute=5), clock=Clock())
    made_up = [f"hw_{index:012d}_{'b' * 43}" for index in range(10)]
    assert [ask(app, headers=bearer(token))[0] for token in made_up].count(200) == 5
    assert ask(app)[0] == 429
    assert ask(app, client="10.0.0.2")[0] == 200


def test_health_is_never_refused() -> None:
    app = LimitRequests(echo, RequestLimits(address_per_minute=1), exempt=frozenset({"/healthz"}), clock=Clock())
    assert [ask(app, path="/healthz")[0] for _ in range(5)] == [200] * 5
    assert [ask(app)[0] for _ in range(2)] == [200, 429]


@pytest.mark.parametrize("parts", [[b"x" * 10], [b"x" * 5] * 2, [b"x"] * 10, [b""]])
def test_a_body_within_the_limit_passes_whole(parts: list[bytes]) -> None:
    app = LimitRequests(echo, RequestLimits(body_bytes=10))
    total = sum(map(len, parts))
    assert ask(app, body=parts) == (200, {}, f"{total} 10.0.0.1".encode())
    assert ask(app, body=parts, headers={"content-length": str(total)})[0] == 200


@pytest.mark.parametrize(
    ("parts", "headers"),
    [
        ([b"x" * 11], {}),
        ([b"x"] * 11, {"transfer-encoding": "chunked"}),
        ([b""], {"content-length": "11"}),
        ([b"x" * 11], {"content-length": "3"}),
        ([b"x" * 11], {"content-length": "-1"}),
        ([b"x" * 11], {"content-length": "\u00b2"}),
    ],
)
def test_a_larger_body_is_refused_whatever_it_was_announced_as(parts: list[bytes], headers: dict[str, str]) -> None:
    status, answered, body = ask(LimitRequests(echo, RequestLimits(body_bytes=10)), body=parts, headers=headers)
    assert (status, answered["connection"]) == (413, "close")
    assert "larger than 10 bytes" in json.loads(body)["error"]["message"]


@given(st.integers(1, 600), st.lists(st.floats(0, 30), min_size=1, max_size=60))
def test_no_client_gets_more_than_its_bucket_and_what_flows_in(per_minute: int, gaps: list[float]) -> None:
    clock = Clock()
    rate = Rate(per_minute, clock)
    passed = 0
    for gap in gaps:
        clock.now += gap
        wait_s = rate.take("a")
        passed += wait_s == 0
        assert 0 <= wait_s <= 60 / per_minute + 1e-9
    assert passed <= per_minute + (clock.now - 100.0) * per_minute / 60 + 1


def test_buckets_of_clients_long_gone_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_CLIENTS", 3)
    rate = Rate(1, Clock())
    assert [rate.take(client) for client in "abc"] == [0, 0, 0]
    assert rate.take("a") > 0
    assert rate.take("d") == 0
    assert rate.take("a") > 0
    assert rate.take("b") == 0


def test_streams_are_bounded_for_each_and_for_all() -> None:
    slots = Slots(total=3, of_one=2)
    with slots.taken("a"), slots.taken("a"):
        with pytest.raises(BusyError, match="2 log streams of a"), slots.taken("a"):
            pass
        with slots.taken("b"), pytest.raises(BusyError, match="3 log streams of all clients"), slots.taken("c"):
            pass
        with slots.taken("b"):
            pass
    with slots.taken("a"), slots.taken("a"):
        pass


def test_other_protocols_pass() -> None:
    seen: list[str] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(scope["type"])

    asyncio.run(_call(LimitRequests(app), {"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == ["lifespan"]
