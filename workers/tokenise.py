"""``map`` over Ray tasks: the same results in the same order, computed side by side.

Made for the token table: each item is a part of the corpus, the function writes the part's tokens to storage and
returns a small receipt. Bulk data never comes here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar, cast

import ray

from workers.answers import answer_of
from workers.cluster import total_resources

Item = TypeVar("Item")
Result = TypeVar("Result")

# One process per core: the tokenizer's own threads would only fight over them.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def map_parts(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The results of ``function`` over ``items``, in order and lazily; equal to the builtin ``map``.

    Items are taken as the caller takes results: at first one for each core, later up to two, so that a caller that
    stops early (a token table of a few parts) has not had the whole corpus computed. Stopping cancels what still runs.

    Raises:
        HeadworksError: what ``function`` raised, of the first item in order for which it did.
        JobError: the same for any other error; or a process died each time that it computed one item.
    """
    num_cores = max(1, int(total_resources().get("CPU", 1)))
    source = iter(items)
    task: Any = ray.remote(num_cpus=1, runtime_env={"env_vars": _ONE_THREAD})(_call)
    shared = ray.put(function)
    running: deque[Any] = deque()
    width = num_cores
    try:
        while True:
            running.extend(task.remote(shared, item) for item in islice(source, width - len(running)))
            if not running:
                return
            result = _result(running[0])
            running.popleft()
            width = min(width + 1, 2 * num_cores)
            yield cast("Result", result)
    finally:
        for reference in running:
            ray.cancel(reference, force=False)


def _call(function: Callable[[Item], Result], item: Item) -> Result:
    return function(item)


def _result(reference: Any) -> Any:
    advice = (
        "It was most often killed for its memory: lower tokens.part_size or cluster.num_cpus. Finished parts are kept; "
        "run again to go on."
    )
    return answer_of(reference, "the making of the token table", advice=advice)
