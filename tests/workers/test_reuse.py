"""Jobs that share a store or a token table: overtaken by others, in two processes, over two models at once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from small_job import HOOKS, WIDTH, built_table, save_model, small_spec
from transformers import LlamaForCausalLM

from pipeline.collection.prepare import prepare
from pipeline.collection.unit import UnitCollector, collect_units
from pipeline.dictionaries.folder import load_dictionary
from pipeline.store.joined import JoinedStore
from pipeline.store.objects import Objects
from pipeline.store.reader import Store
from pipeline.store.retention import read_last_use, read_retention
from schemas.collect import CollectSpec
from schemas.errors import MismatchError
from schemas.pipeline import JOB_ADAPTER
from workers.collect import run_collect
from workers.collector import Collector, Receipt
from workers.run import run_job

FIRST, SECOND = HOOKS
SCRIPT = Path(__file__).parents[1] / "pipeline" / "collection" / "racing_job.py"


def collect_here(spec: CollectSpec) -> None:
    """The whole job in this process, without Ray."""
    passes = prepare(spec, built_table(spec))
    collectors = [(UnitCollector.open(one.of), one.units) for one in passes]
    for collector, units in collectors:
        list(collect_units(collector, units))
    for collector, _ in collectors:
        collector.writer.finish()


def rows_of(url: str, hook: str) -> bytes:
    store = Store.open(url)
    return store.read_rows(hook, 0, store.num_rows).tobytes()


@pytest.fixture
def make_spec(model: Path, corpus: Path, tmp_path: Path) -> Callable[..., CollectSpec]:
    return partial(small_spec, model, corpus, tmp_path / "store")


def overtaken_by(others: dict[str, Any]) -> type[Collector]:
    """A collector during whose first unit another job adds to the same store from beginning to end."""

    class Overtaken(Collector):
        def collect(self, unit: int, attempt: int) -> Receipt:
            if unit == 0:
                sys.path[:0] = others["path"]
                from test_reuse import collect_here as whole_job

                whole_job(CollectSpec.model_validate(others["spec"]))
            return super().collect(unit, attempt)

    return Overtaken


@pytest.fixture
def path() -> list[str]:
    """Where a worker finds this file and the small job."""
    return [str(Path(__file__).parent), str(SCRIPT.parent)]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
class TestOvertaken:
    @pytest.fixture(autouse=True)
    def by_value(self) -> None:
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

    @pytest.mark.slow
    def test_a_job_that_adds_hook_points_ends_with_the_rows_that_another_added(
        self, make_spec: Callable[..., CollectSpec], path: list[str], tmp_path: Path
    ) -> None:
        collect_here(make_spec(hook_points=[FIRST], tokens={"max_tokens": 128}))
        grow = make_spec(hook_points=[FIRST], tokens={"max_tokens": 320})
        add = make_spec(hook_points=[SECOND], tokens={"max_tokens": 128}, workers={"num_workers": 1})
        others = {"path": path, "spec": grow.model_dump(mode="json")}
        summary = run_collect(add, actor_class=overtaken_by(others))
        assert summary["tokens"] == 320
        store = Store.open(str(tmp_path / "store"))
        assert (set(store.hook_points), store.num_rows) == ({FIRST, SECOND}, 320)
        assert store.verify(deep=True) == []

    @pytest.mark.slow
    def test_a_job_that_adds_rows_adds_them_to_hook_points_that_came_meanwhile(
        self, make_spec: Callable[..., CollectSpec], path: list[str], tmp_path: Path
    ) -> None:
        collect_here(make_spec(hook_points=[FIRST], tokens={"max_tokens": 128}))
        add = make_spec(hook_points=[SECOND], tokens={"max_tokens": 128})
        # Unit 0 is there already: the first that this job computes is made to be overtaken.
        grow = make_spec(
            hook_points=[FIRST, "blocks.1.hook_resid_post"], tokens={"max_tokens": 320}, workers={"num_workers": 1},
            retention={"ttl": "2d"},
        )  # fmt: skip
        others = {"path": path, "spec": add.model_dump(mode="json")}
        run_collect(grow, actor_class=overtaken_by(others))
        store = Store.open(str(tmp_path / "store"))
        assert (set(store.hook_points), store.num_rows) == ({FIRST, SECOND, "blocks.1.hook_resid_post"}, 320)
        assert store.verify(deep=True) == []
        assert read_retention(store.objects).expires > 0


@pytest.mark.slow
def test_jobs_of_two_processes_at_once(make_spec: Callable[..., CollectSpec], tmp_path: Path) -> None:
    """Two models in two processes, started together: hook points that overlap, and more rows."""
    collect_here(make_spec(hook_points=[FIRST], tokens={"max_tokens": 128}))
    wanted = [
        make_spec(hook_points=[FIRST, SECOND], tokens={"max_tokens": 320}),
        make_spec(hook_points=[SECOND, "blocks.1.hook_resid_post"], tokens={"max_tokens": 320}),
    ]
    running = []
    for at, spec in enumerate(wanted):
        (tmp_path / f"{at}.json").write_text(json.dumps(spec.model_dump(mode="json")))
        command = [sys.executable, str(SCRIPT), str(tmp_path / f"{at}.json"), str(tmp_path / f"ready-{at}")]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    said = [process.communicate(timeout=200)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    store = Store.open(str(tmp_path / "store"))
    assert (set(store.hook_points), store.num_rows) == ({FIRST, SECOND, "blocks.1.hook_resid_post"}, 320)
    assert store.verify(deep=True) == []
    alone = small_spec(Path(wanted[0].model.path), tmp_path, tmp_path / "alone" / "store").model_copy(
        update={"tokens": wanted[0].tokens, "hook_points": sorted(store.hook_points)}
    )
    collect_here(alone)
    for hook in store.hook_points:
        assert rows_of(alone.output, hook) == rows_of(store.url, hook)


@pytest.mark.ray
@pytest.mark.slow
def test_two_models_over_one_table_train_as_one(
    ray_cluster: object, model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tuned = save_model(tmp_path / "tuned")
    network = LlamaForCausalLM.from_pretrained(tuned)
    torch.manual_seed(1)
    with torch.no_grad():
        for weights in network.parameters():
            weights.add_(torch.randn_like(weights), alpha=0.02)
    network.save_pretrained(tuned)
    table = {"output": "tokens"}
    jobs = [
        {**small_spec(folder, corpus, Path(name), tokens=table).model_dump(mode="json"), "name": f"collect-{name}"}
        for name, folder in (("base", model), ("tuned", tuned))
    ]
    both = [f"base/{SECOND}", f"tuned/{SECOND}"]
    topk = {"kind": "topk", "k": 4, "aux_k": 8, "dead_after_tokens": 2000}
    train = {
        "kind": "train",
        "store": {"base": "${collect-base}", "tuned": "${collect-tuned}"},
        "dictionaries": [
            {"name": "both", "sources": both, "num_latents": 64, "activation": topk},
            {"name": "across", "sources": both[:1], "targets": both[1:], "num_latents": 64, "activation": topk},
        ],
        "batch_rows": 128,
        "num_epochs": 3,
        "output": "dictionaries",
    }
    job = {"kind": "pipeline", "name": "diff", "jobs": [*jobs, train], "output": "diff"}
    summary = run_job(JOB_ADAPTER.validate_python(job))
    assert summary["status"] == "succeeded"
    joined = JoinedStore.open({"base": "base", "tuned": "tuned"})
    dictionary = load_dictionary("dictionaries/both")
    record = dictionary.record
    assert record is not None
    assert record.d_source == dict.fromkeys(both, WIDTH)
    assert record.store_fingerprint == joined.fingerprint
    assert set(record.model) == {"base", "tuned"}
    assert record.model["base"]["weights"] != record.model["tuned"]["weights"]
    # It reconstructs both models' activations of the same tokens better than their means do.
    acts = {hook: torch.from_numpy(joined.read_values(hook, 0, joined.num_rows)) for hook in both}
    for hook, rebuilt in dictionary.reconstruct(acts).items():
        error = (rebuilt - acts[hook]).square().sum() / (acts[hook] - acts[hook].mean(0)).square().sum()
        assert error < 0.8, hook
    use = read_last_use(Objects("tuned"))
    assert use is not None
    assert use.job == "train"
    wrong = {**train, "store": {"base": "${collect-base}", "tuned": "${collect-tunde}"}}
    with pytest.raises(ValueError, match=r"store\.tuned refers to .*did you mean 'collect-tuned'"):
        JOB_ADAPTER.validate_python({**job, "jobs": [*jobs, wrong]})
    again = run_job(JOB_ADAPTER.validate_python(job))
    assert again["jobs"]["train"]["reused"]
    other = small_spec(
        model, corpus, Path("other"), tokens={"output": "other-tokens", "packing": {"context_length": 12}}
    )
    collect_here(other)
    with pytest.raises(MismatchError, match=r"packing\.context_length: base has 24, other has 12"):
        JoinedStore.open(["base", "other"])
