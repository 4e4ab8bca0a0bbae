"""The public face of Headworks: open what jobs made, run and submit jobs. Nothing heavy is imported before a call."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploy.submission import ClusterJob
    from pipeline.dictionaries.dictionary import Dictionary
    from pipeline.models.family import Family
    from pipeline.store.catalogue import StoreEntry
    from pipeline.store.joined import JoinedStore
    from pipeline.store.reader import Store
    from schemas.pipeline import AnyJob

__all__ = [
    "Family", "__version__", "find_stores", "join_stores", "load_dictionary", "load_job", "open_store", "run", "submit",
]  # fmt: skip

try:
    __version__ = metadata.version("headworks")
except metadata.PackageNotFoundError:
    __version__ = "0+source"


def __getattr__(name: str) -> Any:
    """``Family``, which needs torch, is imported only by who asks for it."""
    if name != "Family":
        raise AttributeError(f"module 'headworks' has no attribute {name!r}")
    from pipeline.models.family import Family

    return Family


def open_store(url: str, *, allow_partial: bool = False) -> Store | JoinedStore:
    """A finished activation store, or with ``allow_partial`` what there is of one; the stores of a group as one."""
    from pipeline.store.joined import open_any

    return open_any(url, allow_partial=allow_partial)


def join_stores(urls: Mapping[str, str] | Sequence[str]) -> JoinedStore:
    """Several stores of one token table as one, row by row; hook points are ``NAME/HOOK``."""
    from pipeline.store.joined import JoinedStore

    return JoinedStore.open(urls)


def find_stores(
    *urls: str, model: str = "", corpus: str = "", hook_point: str = "", fingerprint: str = ""
) -> list[StoreEntry]:
    """The stores at or below the URLs that match; see ``pipeline.store.catalogue.find_stores``."""
    from pipeline.store.catalogue import find_stores

    return [*find_stores(urls, model=model, corpus=corpus, hook_point=hook_point, fingerprint=fingerprint)]


def load_dictionary(url: str) -> Dictionary:
    """A trained dictionary from its folder."""
    from pipeline.dictionaries.folder import load_dictionary

    return load_dictionary(url)


def load_job(path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> AnyJob:
    """The job of a YAML file; ``overrides`` are ``path=value``."""
    from pipeline.spec_file import load_job

    return load_job(path, overrides)


def run(job: AnyJob, *, address: str | None = None) -> dict[str, Any]:
    """Run a job, on a Ray of its own or the one at ``address``, and return its summary."""
    from workers.run import run_job

    return run_job(job, address=address)


def submit(job: AnyJob, address: str, *, attempt: int | None = None) -> ClusterJob:
    """Hand a job to the service, or to the cluster whose dashboard is, at ``address``, and return without waiting."""
    from deploy import client, submission

    if client.is_service(address):
        return client.submit(job, address, attempt=attempt)
    return submission.submit(job, address, attempt=attempt)


if __name__ == "__main__":
    from deploy.cli import main

    main()
