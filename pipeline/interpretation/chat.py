"""Asking a language model behind an OpenAI-compatible address: ``POST {url}/chat/completions``.

The key comes from the environment and goes into one header; no message, log or result holds it. Redirects are not
followed: they could lead to an address that nobody allowed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2

from schemas.errors import SpecError, UnreachableError
from schemas.interpret import CHAT_KEY, ChatExplainer

Messages = list[dict[str, str]]

TRIES = 5
LARGEST_ANSWER = 4 << 20
"""Bytes of one answer."""
_WORTH_ANOTHER_TRY = {408, 409, 425, 429, 500, 502, 503, 504}


class ChatClient:
    """Questions to one model, several at a time; close it in the end."""

    def __init__(self, spec: ChatExplainer, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._spec = spec
        self._sleep = sleep
        self._key = os.environ.get(CHAT_KEY, "")
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx2.Client(headers=headers, timeout=spec.timeout, follow_redirects=False)
        self._threads = ThreadPoolExecutor(spec.connections, thread_name_prefix="chat")

    def __enter__(self) -> ChatClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._client.close()

    def ask_all(self, questions: Sequence[Messages]) -> list[str]:
        """The answers, in the order of the questions.

        Raises:
            SpecError: the server refuses the request, the model or the key.
            UnreachableError: no answer after several tries.
        """
        return list(self._threads.map(self.ask, questions))

    def ask(self, messages: Messages) -> str:
        """One answer. Raises as ``ask_all``."""
        trouble = ""
        for attempt in range(TRIES):
            if attempt:
                self._sleep(2.0**attempt / 2)
            try:
                status, body = self._post(messages)
            except httpx2.HTTPError as error:
                trouble = f"{type(error).__name__}: {error}"
                continue
            if status == httpx2.codes.OK:
                return self._content(body)
            trouble = f"status {status}: {self._shown(body)}"
            if status not in _WORTH_ANOTHER_TRY:
                raise SpecError(
                    f"{self._where} refuses explainer chat, {trouble}\nCheck url and model; a key goes into {CHAT_KEY} "
                    f"in the environment of the workers ({'it is set' if self._key else 'it is not set'})"
                )
        raise UnreachableError(
            f"{self._where} gave no answer in {TRIES} tries: {trouble}\nSee that it runs and can be reached from the "
            "workers, or raise explainer.timeout; then run the job again"
        )

    @property
    def _where(self) -> str:
        return f"{self._spec.url}/chat/completions"

    def _post(self, messages: Messages) -> tuple[int, bytes]:
        question = {
            "model": self._spec.model,
            "messages": messages,
            "temperature": self._spec.temperature,
            "max_tokens": self._spec.max_tokens,
        }
        parts, size = [], 0
        with self._client.stream("POST", self._where, json=question) as answer:
            for part in answer.iter_bytes():
                size += len(part)
                if size > LARGEST_ANSWER:
                    raise SpecError(f"{self._where} answers with more than {LARGEST_ANSWER >> 20} MiB; check url")
                parts.append(part)
        return answer.status_code, b"".join(parts)

    def _content(self, body: bytes) -> str:
        try:
            found: Any = json.loads(body)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError) as error:
            raise SpecError(
                f"{self._where} does not answer as OpenAI's chat completions do: expected choices[0].message.content, "
                f"got {self._shown(body)}"
            ) from error
        return str(found or "")

    def _shown(self, body: bytes) -> str:
        """The beginning of an answer, without a key that a server may have repeated."""
        text = body.decode("utf-8", "replace")
        return (text.replace(self._key, "***") if self._key else text)[:200]
