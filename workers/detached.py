"""A job that runs in the cluster, whoever watches: a detached, named actor, and the driver that only looks on.

The actor runs the same function that the driver would run itself, with a progress display that keeps instead of shows.
Drivers poll it. Nothing of the job depends on a driver: its death changes nothing, and a second driver with the same
job finds the actor by its name and looks on, too.

The actor holds no truth of its own. Where it dies, Ray starts it again (``max_restarts``, so that nobody need watch
for that), and the function begins anew: what the ledger has is not computed again. Its workers die with it, since it
owns them; their units come back by the same plan.

On a Ray that the driver has started itself all processes end with the driver: there the function runs in the driver,
which saves a process and its imports.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline import logs
from schemas.collect import CollectSpec
from schemas.errors import HeadworksError, JobError
from schemas.fingerprint import fingerprint
from schemas.shuffle import ShuffleSpec
from workers.cluster import NAMESPACE, living_nodes
from workers.events import EventLog
from workers.progress import Progress, Task
from workers.replica import FORWARDED

RESTARTS = 100
"""How often Ray starts a dead controller again; those whose node was preempted do not count."""
POLL_INTERVAL_S = 0.5
STOP_TIMEOUT_S = 2.0
"""How long Ctrl-C waits for the controller to say what is kept, before it is killed. Ray kills a driver that it is to
stop after 3 s, and nobody would then stop the controller."""
_LINGER_S = 10.0
"""How long the actor stays after its end was seen, for other drivers that look on."""
_UNSEEN_S = 3600.0
"""How long it stays where nobody has seen its end."""

Work = Callable[..., dict[str, Any]]
"""Called with ``progress``; returns the job's summary."""


@dataclass(frozen=True)
class TaskState:
    """A task of the progress display, by its place among all of the job."""

    number: int
    name: str
    unit: str
    total: int
    reused: int
    done: int
    size_bytes: int
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """How a job ended: with a summary, an error, or neither where it was stopped."""

    summary: dict[str, Any] | None = None
    error: HeadworksError | None = None


@dataclass(frozen=True)
class JobState:
    """What a driver is told."""

    begun_by: str
    """The driver that has started the actor."""
    life: str
    """Another after each restart."""
    pid: int
    notes: tuple[str, ...]
    """Further ones since those that the driver has."""
    tasks: tuple[TaskState, ...]
    """The last that the driver has, and those that began after it."""
    outcome: Outcome | None


class DetachedJob:
    """Runs one job in a thread, so that the actor can always answer. Its constructor cannot fail."""

    def __init__(self, name: str, work: Work, begun_by: str, events: EventLog | None) -> None:
        self._name = name
        self._begun_by = begun_by
        self._life = secrets.token_hex(8)
        self._kept = _Keeping(events)
        self._outcome: Outcome | None = None
        self._is_seen = threading.Event()
        threading.Thread(target=self._run, args=(work,), name="job", daemon=True).start()

    def poll(self, life: str, num_notes: int, last_task: int) -> JobState:
        """How things stand, without what the driver has seen of this ``life``."""
        if life != self._life:
            num_notes, last_task = 0, 0
        outcome = self._outcome  # read before the notes, so that none of them comes behind the end
        state = JobState(
            self._begun_by,
            self._life,
            os.getpid(),
            tuple(self._kept.notes[num_notes:]),
            self._kept.states(last_task),
            outcome,
        )
        if outcome is not None:
            self._is_seen.set()
        return state

    def stop(self) -> None:
        """End the job at its next sign of life; ``poll`` then tells what is kept."""
        self._kept.is_stopped = True

    def _run(self, work: Work) -> None:
        logs.configure_actor()
        self._outcome = _outcome(work, self._kept)
        if self._is_seen.wait(_UNSEEN_S):
            time.sleep(_LINGER_S)
        ray.kill(ray.get_actor(self._name, namespace=NAMESPACE), no_restart=True)


def _outcome(work: Work, progress: Progress) -> Outcome:
    try:
        return Outcome(summary=work(progress=progress))
    except HeadworksError as error:
        return Outcome(error=error)
    except KeyboardInterrupt:
        return Outcome()
    except BaseException as error:  # noqa: BLE001 - the driver is told, whatever it is
        said = traceback.format_exc()
        return Outcome(error=JobError(f"the controller failed: {type(error).__name__}: {error}\n{said}"))


class _Keeping(Progress):
    """Keeps what is shown until drivers ask for it."""

    def __init__(self, events: EventLog | None) -> None:
        super().__init__(None)
        self.events = events
        self.notes: list[str] = []
        self.is_stopped = False
        self._tasks: list[Task] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def states(self, first: int) -> tuple[TaskState, ...]:
        """Of the tasks from number ``first`` on."""
        return tuple(
            TaskState(number, one.name, one.unit, one.total, one.reused, one.done, one.size_bytes, one.seconds)
            for number, one in enumerate(self._tasks[first:], start=first)
        )

    def _line(self, task: Task, *more: str) -> None:
        pass  # every driver writes its own

    @contextmanager
    def _display(self, name: str) -> Iterator[Callable[[Task], None]]:
        yield self._shown

    def _shown(self, task: Task) -> None:
        if not self._tasks or self._tasks[-1] is not task:
            self._tasks.append(task)
        if self.is_stopped:
            raise KeyboardInterrupt


def run_detached(spec: CollectSpec | ShuffleSpec, work: Work, progress: Progress) -> dict[str, Any]:
    """Have the cluster run the job, or look on where it runs already; returns the summary.

    Ctrl-C stops the job, not only the watching. ``work`` is picklable.

    Raises:
        HeadworksError: what the job raised. JobError: the job is gone, stopped by another driver for example.
    """
    name = actor_name(spec)
    handle, watch = _attached(name, work, progress, spec.name)
    try:
        while True:
            state = watch.poll(handle)
            if state is not None and (outcome := state.outcome) is not None:
                if outcome.error is not None:
                    raise outcome.error
                if outcome.summary is None:
                    raise JobError(f"{spec.name} was stopped by another driver; what was committed is kept")
                return outcome.summary
            time.sleep(POLL_INTERVAL_S)
    except exceptions.RayActorError as error:
        raise JobError(
            f"{spec.name} is gone from the cluster: it was stopped, or its controller died for good. What was "
            f"committed is kept; run again to go on. ({error})"
        ) from error
    except KeyboardInterrupt:
        _stop(handle, watch)
        raise
    finally:
        watch.close()


def actor_name(spec: CollectSpec | ShuffleSpec) -> str:
    """Of what the job computes and where it puts it: the same for whoever runs the job, with whatever resources."""
    facts = spec.model_dump(mode="json", exclude={"workers", "name"})
    return f"headworks-{spec.kind}-{fingerprint(facts)[:32]}"


def _attached(name: str, work: Work, progress: Progress, job: str) -> tuple[Any, _Watching]:
    """The actor that runs the job, a new one unless it runs already, and what is shown of it."""
    me = secrets.token_hex(8)
    while True:
        handle: Any = ray.remote(DetachedJob).options(name=name, **_options()).remote(name, work, me, progress.events)
        watch = _Watching(progress, job)
        try:
            state = watch.poll(handle, shows=False)
        except exceptions.ActorDiedError:
            state = None  # one that ended has just gone; its name is free in a moment
        if state is not None and (state.begun_by == me or state.outcome is None):
            if state.begun_by != me:
                progress.note(f"{job}: it runs on this cluster already, looking on")
            return handle, watch
        with suppress(exceptions.RayError):
            if state is not None:
                ray.kill(handle, no_restart=True)  # an earlier run's, which has ended
        time.sleep(POLL_INTERVAL_S)


def _options() -> dict[str, Any]:
    heads = [node["NodeID"] for node in living_nodes() if "node:__internal_head__" in node["Resources"]]
    # The node that lives as long as the cluster, where it can be had.
    place = {"scheduling_strategy": NodeAffinitySchedulingStrategy(heads[0], soft=True)} if heads else {}
    return {
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "num_cpus": 0,
        "max_restarts": RESTARTS,
        "max_task_retries": 0,
        "max_concurrency": 4,
        "runtime_env": {"env_vars": {name: os.environ[name] for name in FORWARDED if name in os.environ}},
        **place,
    }


def _stop(handle: Any, watch: _Watching) -> None:
    """Ask the job to end and show what it says is kept; then the actor and its workers are killed."""
    deadline_s = time.monotonic() + STOP_TIMEOUT_S
    with suppress(exceptions.RayError):
        ray.get(handle.stop.remote(), timeout=STOP_TIMEOUT_S)
        while time.monotonic() < deadline_s:
            state = watch.poll(handle)
            if state is not None and state.outcome is not None:
                break
            time.sleep(0.1)
    with suppress(exceptions.RayError):
        ray.kill(handle, no_restart=True)


@dataclass
class _Watching:
    """What a driver has seen of a job, shown as if the job ran in it."""

    progress: Progress
    job: str
    _life: str = ""
    _num_notes: int = 0
    _number: int = -1
    _task: Task | None = None
    _open: ExitStack = field(default_factory=ExitStack)

    def poll(self, handle: Any, *, shows: bool = True) -> JobState | None:
        """Ask once and show what is new; None while the actor is being started again. Raises ActorDiedError."""
        try:
            state: JobState = ray.get(self._asked(handle))
        except exceptions.ActorUnavailableError:
            return None
        if shows:
            self._show(state)
        return state

    def _asked(self, handle: Any) -> Any:
        try:
            return handle.poll.remote(self._life, self._num_notes, max(0, self._number))
        except Exception as error:
            # Of an actor that the cluster has forgotten Ray says so in a bare Exception, and at once.
            if "Can't find actor" not in str(error) and "Failed to submit task" not in str(error):
                raise
            raise exceptions.ActorDiedError from error

    def close(self) -> None:
        """End the display of the last task."""
        self._open.close()

    def _show(self, state: JobState) -> None:
        if self._life and state.life != self._life:
            self.progress.note(f"{self.job}: the controller died and was started again from what is committed")
            self._num_notes, self._number = 0, -1
            self._open.close()
        self._life = state.life
        for note in state.notes:
            self.progress.note(note)
        self._num_notes += len(state.notes)
        for one in state.tasks:
            self._show_task(one)

    def _show_task(self, state: TaskState) -> None:
        if state.number != self._number:
            self._open.close()
            context = self.progress.task(state.name, unit=state.unit, total=state.total, done=state.reused)
            self._task, self._number = self._open.enter_context(context), state.number
        task = self._task
        assert task is not None
        task.total, task.done, task.size_bytes = state.total, state.done, state.size_bytes
        task.started_s = task.clock() - state.seconds
        task.tick()
