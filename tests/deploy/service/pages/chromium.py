"""Chromium over its debugging pipe: no driver and no port between the test and the browser."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--remote-debugging-pipe",
]  # fmt: skip
WAIT_S = 30.0


class Browser:
    """One page of one browser, whose profile lies in ``folder``. A context manager."""

    def __init__(self, folder: Path, width: int = 1280, height: int = 900) -> None:
        assert CHROMIUM is not None
        self.complaints: list[str] = []
        """What the console said of errors, broken policies and failed loads."""
        self.addresses: list[str] = []
        """Of every request that the page made."""
        self._numbers = itertools.count(1)
        self._pending = b""
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()

        # The browser reads commands from its descriptor 3 and writes to 4; a shell puts them there.
        script = f'exec 3<&{to_read} 4>&{to_write}; exec "$0" "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", script, CHROMIUM, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
            pass_fds=(to_read, to_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        self._session = ""
        page = next(each for each in self.call("Target.getTargets")["targetInfos"] if each["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        # Without it a page that nobody looks at gets no focus events.
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)
        self.resize(width, height)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command of the DevTools protocol."""
        number = next(self._numbers)
        session = {"sessionId": self._session} if self._session else {}
        message = {"id": number, "method": method, "params": parameters, **session}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != number:
            self._note(answer)
        assert "error" not in answer, (method, answer["error"])
        found: dict[str, Any] = answer["result"]
        return found

    def open(self, url: str) -> None:
        """Go there."""
        self.call("Page.navigate", url=url)

    def resize(self, width: int, height: int) -> None:
        """The window, in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def scheme(self, name: str) -> None:
        """``light`` or ``dark``, as a reader prefers."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def run(self, script: str) -> Any:
        """The value of an expression on the page; promises are awaited."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str) -> Any:
        """The value of an expression as soon as it is true, however long its page takes to come."""
        deadline = time.monotonic() + WAIT_S
        while True:
            found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
            value = None if "exceptionDetails" in found else found["result"].get("value")
            if value:
                return value
            assert time.monotonic() < deadline, (script, self.run("document.body.innerText"), self.complaints)
            time.sleep(0.05)

    def in_frame(self, script: str) -> Any:
        """The value of an expression in the page's one frame as soon as it is true. A frame of no origin is a target
        of its own."""
        deadline = time.monotonic() + WAIT_S
        page = self._session
        while True:
            self._session = ""
            targets = self.call("Target.getTargets", filter=[{}])["targetInfos"]
            if found := [each for each in targets if each["type"] == "iframe"]:
                attached = self.call("Target.attachToTarget", targetId=found[0]["targetId"], flatten=True)
                self._session = attached["sessionId"]
                value = self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")
                self._session = page
                if value:
                    return value
            self._session = page
            assert time.monotonic() < deadline, (script, self.complaints)
            time.sleep(0.1)

    def press(self, key: str, code: int = 0, text: str = "") -> None:
        """A key of the keyboard, as a person presses it."""
        facts = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", **facts, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **facts)

    def type(self, text: str) -> None:
        """Into whatever has the focus."""
        self.call("Input.insertText", text=text)

    def screenshot(self, path: Path) -> None:
        """The window as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._pending:
            assert select.select([self._from], [], [], WAIT_S)[0], "Chromium does not answer"
            part = os.read(self._from, 1 << 20)
            assert part, "Chromium has ended"
            self._pending += part
        message, _, self._pending = self._pending.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def _note(self, message: dict[str, Any]) -> None:
        facts = message.get("params", {})
        match message.get("method"):
            case "Log.entryAdded" if facts["entry"]["level"] == "error":
                self.complaints.append(f"{facts['entry']['text']} {facts['entry'].get('url', '')}")
            case "Network.requestWillBeSent":
                self.addresses.append(facts["request"]["url"])
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(facts["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if facts["type"] in ("error", "warning"):
                self.complaints.append(json.dumps(facts["args"]))
