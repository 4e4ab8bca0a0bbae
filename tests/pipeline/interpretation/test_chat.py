"""Questions over HTTP: what is tried again, what is refused, what is never told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pipeline.interpretation.chat import TRIES, ChatClient
from schemas.errors import SpecError, UnreachableError
from schemas.interpret import CHAT_KEY, ChatExplainer

KEY = "sk-never-to-be-seen-0123456789"
QUESTION = [{"role": "user", "content": "why?"}]
Answers = list[tuple[int, bytes]]


@pytest.fixture
def serve() -> Iterator[Callable[[Answers], tuple[ChatExplainer, list[str]]]]:
    """A server that gives these answers, the last one for ever; its address and the paths that were asked."""
    running: list[ThreadingHTTPServer] = []

    def start(answers: Answers) -> tuple[ChatExplainer, list[str]]:
        paths: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                status, body = answers[min(len(paths), len(answers) - 1)]
                paths.append(self.path)
                self.send_response(status)
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        running.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return ChatExplainer(url=f"http://127.0.0.1:{server.server_port}/v1/", model="m", timeout=5), paths

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def content(text: str) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


def test_what_may_pass_is_tried_again_with_longer_waits(serve: Any) -> None:
    spec, paths = serve([(429, b""), (503, b""), (200, content("because"))])
    waits: list[float] = []
    with ChatClient(spec, sleep=waits.append) as client:
        assert client.ask(QUESTION) == "because"
    assert paths == ["/v1/chat/completions"] * 3
    assert waits == [1.0, 2.0]


def test_a_server_that_never_answers_is_unreachable(serve: Any) -> None:
    spec, paths = serve([(500, b"broken")])
    with ChatClient(spec, sleep=lambda _: None) as client, pytest.raises(UnreachableError, match="500: broken"):
        client.ask(QUESTION)
    assert len(paths) == TRIES


def test_a_refusal_is_not_tried_again_and_never_tells_the_key(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHAT_KEY, KEY)
    spec, paths = serve([(401, f"bad key {KEY}".encode())])
    with ChatClient(spec) as client, pytest.raises(SpecError, match=r"401: bad key \*\*\*") as caught:
        client.ask(QUESTION)
    assert KEY not in str(caught.value)
    assert len(paths) == 1


def test_a_redirect_is_not_followed(serve: Any) -> None:
    spec, paths = serve([(307, b"")])
    with ChatClient(spec) as client, pytest.raises(SpecError, match="status 307"):
        client.ask(QUESTION)
    assert paths == ["/v1/chat/completions"]


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"choices": []}', b"[1]"])
def test_another_kind_of_answer_is_refused(serve: Any, body: bytes) -> None:
    spec, _ = serve([(200, body)])
    with ChatClient(spec) as client, pytest.raises(SpecError, match="does not answer as OpenAI"):
        client.ask(QUESTION)


def test_an_endless_answer_is_refused(serve: Any) -> None:
    spec, _ = serve([(200, b"x" * (5 << 20))])
    with ChatClient(spec) as client, pytest.raises(SpecError, match="more than 4 MiB"):
        client.ask(QUESTION)


def test_answers_come_in_the_order_of_the_questions(serve: Any) -> None:
    spec, _ = serve([(200, content(str(number))) for number in range(6)])
    with ChatClient(spec.model_copy(update={"connections": 1})) as client:
        assert client.ask_all([QUESTION] * 6) == [str(number) for number in range(6)]


@pytest.mark.parametrize(
    ("url", "message"),
    [("file:///etc/passwd", "address of a chat server"), ("http://me:pass@host/v1", "credentials"),
     ("http://host/v1?key=1", "no query")],
)  # fmt: skip
def test_addresses_that_cannot_be(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChatExplainer(url=url, model="m")
