"""One Ray on two cores for all tests of workers, and the small collect job."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# The faults here, the small jobs and the failing storage of other tests; test modules have no packages, so the path
# finds them.
_PIPELINE = Path(__file__).parents[1] / "pipeline"
sys.path[:0] = [
    str(Path(__file__).parent),
    *(str(_PIPELINE / name) for name in ("collection", "pretraining", "shuffling", "store")),
]


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[object]:
    """A running Ray; starting one takes ten seconds, so the tests share it."""
    import ray

    from schemas.pipeline import ClusterSpec
    from workers.cluster import connect

    with connect(ClusterSpec(num_cpus=2, object_store_memory=90 * 2**20), "local") as cluster:
        yield cluster
    assert not ray.is_initialized()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from small_job import save_model

    return save_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from small_job import save_corpus

    return save_corpus(tmp_path_factory.mktemp("corpus") / "text", num_files=10)
