"""A service that listens on this machine, whose cluster and jobs do what the test says."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn
import yaml

from deploy.service.app import build_service, create_app
from deploy.service.context import Service
from deploy.service.jobs import Job
from deploy.service.settings import Settings
from deploy.service.states import Delivery, State
from pipeline.spec_file import validated


class Cluster:
    """A cluster in this process, whose jobs write what the test says."""

    address = "http://127.0.0.1:9"

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.is_over = False

    def session(self) -> str:
        return "session"

    def logs(self, _identifier: str) -> str:
        return "".join(self.lines)

    async def tail(self, _identifier: str) -> AsyncIterator[str]:
        num_sent = 0
        while True:
            is_over = self.is_over
            for line in self.lines[num_sent:]:
                yield line
                num_sent += 1
            if is_over:
                return
            await asyncio.sleep(0.05)


class Site:
    """A service that listens on this machine."""

    def __init__(self, folder: Path, *, has_policy: bool) -> None:
        self.folder = folder
        facts: dict[str, Any] = {
            "database": f"sqlite:///{folder}/db",
            "clusters": {"a": {"address": Cluster.address}},
        }
        if has_policy:
            (folder / "policy.yaml").write_text(yaml.safe_dump({"teams": {"lab": {"write": [str(folder)]}}}))
            facts["policy"] = str(folder / "policy.yaml")
        self.service: Service = build_service(Settings.model_validate(facts))
        # The test moves the jobs itself.
        self.service.runners.clear()
        self.cluster = Cluster()
        self.service.clusters["a"] = self.cluster  # type: ignore[assignment]
        self._server = uvicorn.Server(
            uvicorn.Config(create_app(self.service), port=0, log_config=None, timeout_graceful_shutdown=1)
        )
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    def close(self) -> None:
        self.cluster.is_over = True
        self._server.should_exit = True
        self._thread.join()

    def job(self, name: str, state: State = State.ACCEPTED, message: str = "", kind: str = "train") -> Job:
        spec = validated(
            {
                "kind": kind, "name": name, "store": f"{self.folder}/store", "output": f"{self.folder}/out/{name}",
                "dictionaries": [{"name": "d", "sources": ["h"], "num_latents": 64}],
            },
            where="test",
        )  # fmt: skip
        job, _ = self.service.jobs.accept(spec, cluster="a", owner="me", team="lab")
        return self.move(job, state, message)

    def move(self, job: Job, state: State, message: str = "") -> Job:
        job = self.service.jobs.get(job.id)
        delivery = Delivery.NONE if state in (State.ACCEPTED, State.WAITING) else Delivery.CONFIRMED
        ended = time.time() if state.has_ended else None
        progress = replace(
            job.progress, state=state, delivery=delivery, message=message, started_s=time.time() - 65, ended_s=ended
        )
        changed = self.service.jobs.change(job, progress)
        assert changed is not None
        return changed
