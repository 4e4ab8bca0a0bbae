"""Every mistake in a job spec is one message that names the field; what is right survives the way from YAML to spec."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.spec_file import interpolated, load_job, override_field, parse_yaml, validated
from pipeline.spec_paths import anchored
from schemas.errors import MissingError, SpecError
from schemas.pipeline import PipelineSpec
from schemas.train import TrainSpec

PIPELINE = """
kind: pipeline
output: runs/x
jobs:
  - kind: collect
    model: {path: gpt2}
    tokens: {corpus: {format: text, urls: ["data/*.txt", "{stdlib}/*.py", "s3://bucket/a"]}, part_size: 2MiB}
    hook_points: [blocks.0.hook_resid_post]
    output: runs/x/store
  - kind: train
    name: train
    store: ${collect}
    dictionaries:
      - {name: sae, sources: [blocks.0.hook_resid_post], num_latents: 64}
    output: runs/x/dictionaries
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "job.yaml"
        path.write_text(textwrap.dedent(text), "utf-8")
        return path

    return write


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(SpecError) as refused:
        load_job(path, overrides)
    return str(refused.value)


def test_a_pipeline_is_read_and_its_references_resolve(write: Write) -> None:
    job = load_job(write(PIPELINE))
    assert isinstance(job, PipelineSpec)
    assert job.jobs[0].tokens.part_size == 2 * 2**20  # type: ignore[union-attr]
    train = job.resolved()[1]
    assert isinstance(train, TrainSpec)
    assert train.store == "runs/x/store"


def test_the_examples_are_valid() -> None:
    examples = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
    assert examples
    for path in examples:
        load_job(path)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("jobs[1].batch_rows=17", 17),
        ("jobs[train].batch_rows=17", 17),
        ("jobs[-1].batch_rows= 17 ", 17),
        ("jobs[1].order.seed=3", 3),
        ("jobs[1].rows.exclude_positions=[0, 1]", [0, 1]),
        ("jobs[train].dictionaries[sae].learning_rate=1e-4", 1e-4),
        ("jobs[collect].tokens.part_size=1MiB", "1MiB"),
        ("jobs[collect].hook_points[0]=a", "a"),
        ("jobs[1].dictionaries[0].activation={kind: topk, k: 3}", {"kind": "topk", "k": 3}),
    ],
)
def test_overrides_reach_their_field(write: Write, override: str, value: Any) -> None:
    found: Any = load_job(write(PIPELINE), [override]).model_dump()
    path = override.partition("=")[0].replace("]", "").replace("[", ".")
    for step in path.split("."):
        if isinstance(found, list):
            names = [item.get("name") if isinstance(item, dict) else None for item in found]
            found = found[names.index(step) if step in names else int(step)]
        else:
            found = found[step]
    if isinstance(value, dict):
        assert value.items() <= found.items()
    else:
        assert found == value


def test_later_overrides_win(write: Write) -> None:
    job = load_job(write(PIPELINE), ["jobs[1].batch_rows=5", "jobs[1].batch_rows=6"])
    assert isinstance(job, PipelineSpec)
    assert job.jobs[1].batch_rows == 6  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("jobs[1].batch_rows", "expected PATH=VALUE"),
        ("=1", "is not a field path"),
        ("jobs..x=1", "is not a field path"),
        ("[0]=1", "is not a field path"),
        ("jobs[9].name=x", "jobs has 2 items, so [9] is not there"),
        ("jobs[trian].name=x", "no item of jobs is named 'trian' (known: ['collect', 'train']); did you mean 'train'?"),
        ("jobs.name=x", "jobs is a list, not a mapping"),
        ("output[0]=x", "output is text, not a list"),
        ("output.x=1", "output is text, not a mapping"),
        ("name=[1", "line 1, column 3"),
        ("jobs[1].batch_row=1", "jobs[1].batch_row: unknown field; did you mean 'batch_rows'"),
    ],
)
def test_overrides_that_go_nowhere_are_refused(write: Write, override: str, message: str) -> None:
    assert message in refusal(write(PIPELINE), override)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("num_latents: 64", "num_latent: 64", "jobs[1].dictionaries[0].num_latent: unknown field; did you mean"),
        (", num_latents: 64", "", "jobs[1].dictionaries[0].num_latents: required, but not given (Size of the"),
        ("num_latents: 64", "num_latents: many", "jobs[1].dictionaries[0].num_latents: should be a valid integer"),
        ("num_latents: 64", "num_latents: 0", "should be greater than 0, got 0"),
        ("num_latents: 64", "num_latents: 8", "activation.k (32) is larger than num_latents (8)"),
        ("format: text", "format: txt", "jobs[0].tokens.corpus: format: expected 'text', 'jsonl', 'parquet'"),
        ("format: text", "format: txt", "got 'txt'; did you mean 'text'?"),
        ("format: text, ", "", "jobs[0].tokens.corpus: required field 'format' is not given"),
        ("2MiB", "2MiBi", "jobs[0].tokens.part_size: a size is a number and a unit"),
        ("kind: train", "kind: trian", "jobs[1]: kind: expected"),
        ("${collect}", "${colect}", "did you mean 'collect'?"),
        ("kind: pipeline", "kind: pipelin", "'pipeline', got 'pipelin'; did you mean 'pipeline'?"),
        ("[blocks.0.hook_resid_post]\n", "[blocks 0]\n", "jobs[0].hook_points[0]: String should match"),
    ],
)
def test_wrong_fields_are_named_by_their_full_path(write: Write, before: str, after: str, message: str) -> None:
    assert before in PIPELINE
    assert message in refusal(write(PIPELINE.replace(before, after, 1)))


MODEL = """
kind: train_model
tokens: {corpus: {format: grammar, grammar: {kind: bigram}}, packing: {context_length: 64}, held_out_fraction: 0.1}
steps: 9
output: out
snapshots: SNAPSHOTS
"""


@pytest.mark.parametrize(
    ("snapshots", "message"),
    [
        ("[0, -1]", ": snapshots[1]: should be greater than or equal to 0, got -1"),
        ("{cuont: 4}", ": snapshots.cuont: unknown field; did you mean 'count'?"),
        (
            "all",
            ": snapshots: should be a valid dictionary or instance of LogSpaced, or should be a valid list",
        ),
    ],
)
def test_a_field_of_several_forms_is_judged_by_the_form_that_it_has(write: Write, snapshots: str, message: str) -> None:
    text = refusal(write(MODEL.replace("SNAPSHOTS", snapshots)))
    assert message in text
    assert "fields are wrong" not in text


def test_all_wrong_fields_are_told_at_once(write: Write) -> None:
    text = refusal(write(PIPELINE), "jobs[0].storage.dtype=bf16", "jobs[1].batch_rows=0", "zzz=1")
    assert "3 fields are wrong" in text
    known = "'bfloat16', 'float16', 'float32', 'int8' or 'float8_e4m3'"
    assert f"jobs[0].storage.dtype: expected {known}, got 'bf16'" in text
    assert "Traceback" not in text
    assert "pydantic" not in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "line 2, column 1: the key 'a' is given twice"),
        ("a: {b: 1, b: 2}\n", "the key 'b' is given twice"),
        ("a: [1\n", "line 2, column 1"),
        ("- 1\n", "a job spec is a mapping that begins with `kind:`; got a list"),
        ("", "got nothing"),
        ("a: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
    ],
)
def test_files_that_are_no_spec(write: Write, text: str, message: str) -> None:
    assert message in refusal(write(text))


def test_merge_keys_may_be_overridden() -> None:
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, x: 2}", where="t")["b"] == {"x": 2}


def test_missing_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text("kind: pipeline")
    with pytest.raises(MissingError, match=r"did you mean '.*quickstart\.yaml'"):
        load_job(tmp_path / "quikstart.yaml")
    with pytest.raises(SpecError, match="Is a directory"):
        load_job(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"kind: pipeline # \xe9")
    with pytest.raises(SpecError, match="not UTF-8 at byte 17"):
        load_job(tmp_path / "latin.yaml")


def test_environment_only_for_listed_names(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(PIPELINE.replace("output: runs/x/store", "output: '${env:ROOT}/store'"))
    monkeypatch.setenv("ROOT", "/data")
    monkeypatch.delenv("HEADWORKS_ALLOWED_ENV", raising=False)
    assert "jobs[0].output: ${env:ROOT} is not allowed here" in refusal(path)
    monkeypatch.setenv("HEADWORKS_ALLOWED_ENV", "OTHER, ROOT")
    job = load_job(path)
    assert isinstance(job, PipelineSpec)
    assert job.jobs[0].output == "/data/store"
    assert job.resolved()[1].store == "/data/store"  # type: ignore[union-attr]
    monkeypatch.delenv("ROOT")
    assert "the environment variable ROOT is not set" in refusal(path)


def test_what_is_interpolated_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWORKS_ALLOWED_ENV", "A,B")
    monkeypatch.setenv("A", "${env:B}: [1, 2]")
    assert interpolated({"x": ["${env:A}!"]}, where="t") == {"x": ["${env:B}: [1, 2]!"]}


def test_relative_paths_are_anchored_and_nothing_else(write: Write, tmp_path: Path) -> None:
    (tmp_path / "gpt2").mkdir()
    job = load_job(write(PIPELINE), ["jobs[0].tokens.output=memory://t", "jobs[0].model.path=gpt2"])
    there = anchored(job, tmp_path)
    assert isinstance(there, PipelineSpec)
    collect, train = there.jobs
    assert there.output == str(tmp_path / "runs/x")
    assert collect.tokens.corpus.urls == [f"{tmp_path}/data/*.txt", "{stdlib}/*.py", "s3://bucket/a"]  # type: ignore[union-attr]
    assert collect.tokens.output == "memory://t"  # type: ignore[union-attr]
    assert collect.tokens.tokenizer == "model"  # type: ignore[union-attr]
    assert collect.model.path == str(tmp_path / "gpt2")  # type: ignore[union-attr]
    assert train.store == "${collect}"  # type: ignore[union-attr]
    assert anchored(there, Path("/elsewhere")) == there


def test_stores_are_anchored_under_whatever_names_a_user_gives_them(tmp_path: Path) -> None:
    names = {"a.b": "one", "output": "two", "store": "s3://b/three", "path": "/four"}
    facts = {
        "kind": "train", "store": names, "output": "out",
        "dictionaries": [{"name": "output", "sources": ["a.b/h"], "num_latents": 64}],
    }  # fmt: skip
    there = anchored(validated(facts, where="test"), tmp_path)
    assert isinstance(there, TrainSpec)
    assert there.store == {**names, "a.b": f"{tmp_path}/one", "output": f"{tmp_path}/two"}
    assert there.dictionaries[0].name == "output"


KEYS = st.text("abcdefgh", min_size=1, max_size=4)


@given(st.lists(KEYS, min_size=1, max_size=5), st.one_of(st.integers(), st.booleans(), st.lists(st.integers())))
def test_any_path_of_mappings_can_be_set(steps: list[str], value: Any) -> None:
    data: dict[str, Any] = {}
    override_field(data, f"{'.'.join(steps)}={yaml.safe_dump(value, default_flow_style=True).removesuffix('...')}")
    found: Any = data
    for step in steps:
        found = found[step]
    assert found == value
