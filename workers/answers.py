"""The answer of a task or an actor, or what became of it as one of our errors."""

from __future__ import annotations

from typing import Any

import ray
from ray import exceptions

from schemas.errors import HeadworksError, JobError


def answer_of(reference: Any, what: str, *, advice: str) -> Any:
    """Wait for what ``reference`` gives.

    ``what`` ran it, for the message; ``advice`` is a sentence on what to do where its process died.

    Raises:
        HeadworksError: the very error that was raised there, where it is one of ours.
        JobError: any other was raised, and the message has its traceback; or the process died as often as it was
            started.
    """
    try:
        return ray.get(reference)
    except exceptions.RayTaskError as error:
        if isinstance(error.cause, HeadworksError):
            raise error.cause from None
        raise JobError(f"{what} failed: {error}") from error
    except exceptions.RayError as error:
        raise JobError(f"{what}: its process died, and none took its place: {error}\n{advice}") from error
