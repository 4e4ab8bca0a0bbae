"""The dataset of cached activations: loaded by ``datasets``, and by SAELens itself where it is installed."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.exporting import sae_lens
from pipeline.store.reader import Store
from schemas.errors import MismatchError, SpecError
from schemas.export import ExportSpec

Make = Callable[..., Store]
PEERS = Path(__file__).parents[3] / ".venv-peers/bin/python"


def export(source: Store, output: Path, **facts: Any) -> dict[str, Any]:
    spec = {"store": source.url, "output": str(output), "format": "sae-lens", **facts}
    job = sae_lens.prepare(ExportSpec.model_validate(spec))
    return sae_lens.write(job, begin=lambda total, done: None, advance=lambda rows, size: None)


def load(path: Path) -> Any:
    datasets = pytest.importorskip("datasets", reason="needs the extra `hf`")
    return datasets.load_from_disk(str(path)).with_format("numpy")


def test_contexts_are_the_rows_of_the_dataset(source: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = source()
    monkeypatch.setattr(sae_lens, "FILE_BYTES", 4 * 10 * 13 * 4)  # four contexts
    monkeypatch.setattr(sae_lens, "_BATCH_BYTES", 3 * 10 * 13 * 4)
    export(before, tmp_path / "cached")
    found = load(tmp_path / "cached")
    assert sorted(path.name for path in (tmp_path / "cached").glob("*.arrow")) == [
        f"data-{index:05d}-of-00004.arrow" for index in range(4)
    ]
    assert len(found) == 15
    for hook, width in before.hook_points.items():
        assert found.features[hook].shape == (10, width)
        np.testing.assert_array_equal(found[hook], before.read_values(hook, 0, 150).reshape(15, 10, width))
    np.testing.assert_array_equal(found["token_ids"], before.tokens().token_id.reshape(15, 10))


def test_the_columns_are_those_that_the_library_writes(source: Make, tmp_path: Path) -> None:
    """Our Arrow schema against the one that ``datasets`` makes of the same features."""
    datasets = pytest.importorskip("datasets", reason="needs the extra `hf`")
    pa = pytest.importorskip("pyarrow")
    export(source(), tmp_path / "cached", hook_points=["resid"], dtype="float16", lossy=True)
    ours = load(tmp_path / "cached")
    features = datasets.Features(
        {"resid": datasets.Array2D((10, 6), "float16"), "token_ids": datasets.Sequence(datasets.Value("int32"), 10)}
    )
    assert ours.features == features
    with pa.ipc.open_stream(str(tmp_path / "cached/data-00000-of-00001.arrow")) as stream:
        assert stream.schema.equals(features.arrow_schema, check_metadata=True)


def test_the_runner_s_own_configuration_lies_beside_the_dataset(source: Make, tmp_path: Path) -> None:
    export(source(), tmp_path / "cached", hook_points=["mlp", "resid"])
    facts = json.loads((tmp_path / "cached" / "cache_activations_runner_cfg.json").read_text())
    asked = {"hook_name": "mlp", "d_in": 3, "context_size": 10, "training_tokens": 150, "dtype": "float32"}
    assert {name: facts[name] for name in asked} == asked
    assert facts["new_cached_activations_path"] == str(tmp_path / "cached")


def test_short_contexts_are_left_out_on_request_only(source: Make, tmp_path: Path) -> None:
    before = source(short=True)
    with pytest.raises(SpecError, match=r"14 contexts have 10 tokens, but 10 of 150 rows .*--drop-short-contexts"):
        export(before, tmp_path / "refused")
    facts = export(before, tmp_path / "cached", short_contexts="drop")
    # Row 144 begins a context that the store's end cuts off.
    assert (facts["num_contexts"], facts["num_rows_dropped"]) == (14, 10)
    found = load(tmp_path / "cached")
    rows = np.concatenate([np.arange(0, 40), np.arange(44, 144)])
    np.testing.assert_array_equal(found["mlp"], before.gather_values("mlp", rows).reshape(14, 10, 3))
    np.testing.assert_array_equal(found["token_ids"], before.tokens().token_id[rows].reshape(14, 10))


def test_parts_of_contexts_are_not_put_together(source: Make, tmp_path: Path) -> None:
    """Documents of seven tokens lie across contexts of ten: their rows are no contexts."""
    before = source()
    rows = {"kind": "documents", "documents": [0, 1, 9, 20]}
    with pytest.raises(SpecError, match="parts of contexts"):
        export(before, tmp_path / "refused", rows=rows)
    export(before, tmp_path / "cached", rows=rows, short_contexts="drop")
    found = load(tmp_path / "cached")
    # Documents 0 and 1 hold the first context whole and four rows of the second.
    np.testing.assert_array_equal(found["attn"], before.read_values("attn", 0, 10)[None])
    with pytest.raises(SpecError, match="no row of the export begins a context"):
        export(before, tmp_path / "none", rows={"kind": "range", "start": 1, "stop": 9})


def test_held_out_contexts_are_whole(source: Make, tmp_path: Path) -> None:
    before = source()
    export(before, tmp_path / "cached", rows={"kind": "split", "split": "held_out"})
    held_out = np.flatnonzero(before.tokens().held_out)
    np.testing.assert_array_equal(
        load(tmp_path / "cached")["resid"], before.gather_values("resid", held_out).reshape(5, 10, 6)
    )


def test_a_killed_export_goes_on(source: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = source()
    monkeypatch.setattr(sae_lens, "FILE_BYTES", 2 * 10 * 13 * 4)
    spec = ExportSpec(store=before.url, output=str(tmp_path / "cached"), format="sae-lens")
    written: list[int] = []

    def die(rows: int, size_bytes: int) -> None:
        written.append(rows)
        if len(written) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sae_lens.write(sae_lens.prepare(spec), begin=lambda total, done: None, advance=die)
    assert not (tmp_path / "cached/state.json").exists()
    begun: list[tuple[int, int]] = []
    sae_lens.write(
        sae_lens.prepare(spec), begin=lambda *rows: begun.append(rows), advance=lambda rows, size: written.append(rows)
    )
    assert begun == [(150, 60)]
    assert sum(written) == 150
    assert len(load(tmp_path / "cached")) == 15
    with pytest.raises(MismatchError, match="dtype"):
        export(before, tmp_path / "cached", dtype="float16", lossy=True)


@pytest.mark.slow
@pytest.mark.skipif(not PEERS.exists(), reason="SAELens is not installed: make peers")
def test_saelens_reads_it(source: Make, tmp_path: Path) -> None:
    """Its own configuration, in every field, its own loader, its own check of shapes, its own batches."""
    before = source()
    export(before, tmp_path / "cached", hook_points=["resid", "mlp"])
    program = """
import json, sys
from dataclasses import fields
import numpy as np
from sae_lens.config import CacheActivationsRunnerConfig
from sae_lens.training.activations_store import ActivationsStore
path = sys.argv[1]
facts = json.load(open(path + "/cache_activations_runner_cfg.json"))
cfg = CacheActivationsRunnerConfig(**facts)
assert {field.name for field in fields(cfg)} == {*facts}
assert (cfg.n_seq_in_dataset, cfg.hook_name) == (15, "resid")
store = ActivationsStore.from_cache_activations(None, cfg)
acts, tokens = store.get_raw_llm_batch()
np.savez(sys.argv[2], acts=acts.numpy(), tokens=tokens.numpy())
"""
    answer = tmp_path / "answer.npz"
    subprocess.run(
        [str(PEERS), "-c", program, str(tmp_path / "cached"), str(answer)], check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}, timeout=280,
    )  # fmt: skip
    with np.load(answer) as found:
        acts = found["acts"].reshape(-1, 6)
        np.testing.assert_array_equal(acts, before.read_values("resid", 0, len(acts)))
        np.testing.assert_array_equal(found["tokens"].reshape(-1), before.tokens(0, len(acts)).token_id)


def test_facts_are_beside_the_data(source: Make, tmp_path: Path) -> None:
    before = source()
    facts = export(before, tmp_path / "cached", hook_points=["mlp"])
    assert json.loads((tmp_path / "cached/headworks.json").read_text()) == facts
    assert (facts["store"], facts["context_length"], facts["hook_points"]) == (before.fingerprint, 10, {"mlp": 3})
