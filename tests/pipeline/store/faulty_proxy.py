"""A proxy in front of an HTTP server that fails on purpose, as networks and busy storages do.

It understands requests well enough to forward them one by one (Content-Length, chunked bodies, 100-continue) and asks a
``choose`` function what to do with each. The faults:

    503, 500   answer so, without forwarding
    reset      cut the connection, without forwarding
    delay      forward after ``delay_s``
    cut        forward, then cut the connection in the middle of the answer's body
    short      forward, answer with half of the body as if it were the whole (lying Content-Length)
    lost       forward, then cut the connection: the server has done it, the client never hears
    stall      forward nothing and keep silent for ``delay_s``, then cut the connection
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = ("503", "500", "reset", "delay", "cut", "short", "lost")
_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect"}
_SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
_INTERNAL = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>Try again.</Message></Error>"


@dataclass
class FaultyProxy:
    """``with FaultyProxy(port_of_the_server) as proxy: ... proxy.port``."""

    upstream: int
    choose: Callable[[str, str], str | None] = lambda method, path: None
    """(method, path with query) -> fault, or None; called in turn of the requests, one at a time."""
    delay_s: float = 0.05
    retry_after: str = ""
    """Header of that name in answers of 503."""
    seen: list[tuple[str, str, str | None]] = field(default_factory=list, repr=False)
    """(method, path, fault) of every request so far."""

    def __enter__(self) -> FaultyProxy:
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def faults(self) -> Counter[str]:
        """fault -> how often it was done."""
        return Counter(fault for _, _, fault in self.seen if fault)

    def decide(self, method: str, path: str) -> str | None:
        with self._lock:
            fault = self.choose(method, path)
            self.seen.append((method, path, fault))
            return fault


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are the purpose here."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    owner: FaultyProxy
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        body = self._body()
        fault = self.owner.decide(self.command, self.path)
        if fault in {"503", "500"}:
            asked = self.owner.retry_after if fault == "503" else ""
            headers = [("Retry-After", asked)] if asked else []
            self._answer(int(fault), headers, _SLOW_DOWN if fault == "503" else _INTERNAL)
            return
        if fault in {"delay", "stall"}:
            time.sleep(self.owner.delay_s)
        if fault in {"reset", "stall"}:
            self._reset()
            return
        status, headers, answer = self._forward(body)
        if fault == "lost":
            self._reset()
        elif fault == "cut" and len(answer) > 1:
            self._answer(status, headers, answer[: len(answer) // 2], declared=len(answer))
            self._reset()
        elif fault == "short" and len(answer) > 1:
            self._answer(status, headers, answer[: len(answer) // 2])
        else:
            self._answer(status, headers, answer)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):  # every method alike
            return self._serve
        raise AttributeError(name)

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            data = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection("127.0.0.1", self.owner.upstream, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():  # Host as the client signed it
                if name.lower() not in _HOP:
                    upstream.putheader(name, value)
            if body or self.command in {"PUT", "POST"}:
                upstream.putheader("Content-Length", str(len(body)))
            upstream.endheaders(body)
            answer = upstream.getresponse()
            data = answer.read()
            length = answer.getheader("Content-Length")
            headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in _HOP]
            if self.command == "HEAD" and length is not None:
                headers.append(("Content-Length", length))
            return answer.status, headers, data
        finally:
            upstream.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, *, declared: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(body) if declared is None else declared))
        elif not any(name == "Content-Length" for name, _ in headers):
            self.send_header("Content-Length", "0")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def _reset(self) -> None:
        """Close with RST instead of FIN, as a dying machine or a firewall does."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def finish(self) -> None:
        with contextlib.suppress(OSError):  # it was reset
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        pass
