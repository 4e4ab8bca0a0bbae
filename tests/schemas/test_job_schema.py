"""The specs as a contract: described field by field, valid JSON Schema, stable fingerprints, sizes that round-trip."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import schemas
from schemas.collect import Storage
from schemas.errors import MismatchError
from schemas.fields import Spec, format_bytes, parse_bytes
from schemas.fingerprint import canonical_json, differences, fingerprint, require_equal
from schemas.pipeline import JOB_ADAPTER, PipelineSpec

ROOT = Path(__file__).parents[2]


def all_specs() -> Iterator[type[Spec]]:
    for module in pkgutil.iter_modules(schemas.__path__):
        importlib.import_module(f"schemas.{module.name}")
    waiting = [Spec]
    while waiting:
        for spec in waiting.pop().__subclasses__():
            yield spec
            waiting.append(spec)


@pytest.mark.parametrize("spec", list(all_specs()), ids=lambda spec: spec.__name__)
def test_every_field_is_described(spec: type[Spec]) -> None:
    undescribed = [name for name, field in spec.model_fields.items() if not field.description]
    assert not undescribed
    assert spec.__doc__
    assert spec.model_config["frozen"]
    assert spec.model_config["extra"] == "forbid"


def test_the_json_schema_is_valid_and_accepts_the_examples() -> None:
    schema = JOB_ADAPTER.json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for path in (ROOT / "examples").glob("*.yaml"):
        data = yaml.safe_load(path.read_text("utf-8"))
        validator.validate(data)
        broken = {**data, "unheard_of": 1}
        assert not validator.is_valid(broken)


@given(st.integers(1, 2**60))
def test_sizes_round_trip(size_bytes: int) -> None:
    assert parse_bytes(format_bytes(size_bytes)) == size_bytes or size_bytes % 1024


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("512MiB", 2**29), ("1GB", 10**9), ("7B", 7), (" 1.5 KiB ", 1536), ("2TiB", 2**41)]
)
def test_sizes_have_units(text: str, size_bytes: int) -> None:
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize("text", ["512", "512 mib", "MiB", "-1MiB", ""])
def test_sizes_without_a_unit_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a size is a number and a unit"):
        parse_bytes(text)


def test_specs_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Storage().codec = "zstd"  # type: ignore[misc]


FACTS = {"model": {"path": "gpt2", "dtype": "bfloat16"}, "unicode": "Größe", "list": [1, 2.5, None, True], "a": {}}


def test_fingerprints_are_those_of_earlier_versions() -> None:
    """A changed digest here would orphan every store and token table that exists."""
    assert canonical_json(FACTS) == (
        '{"a":{},"list":[1,2.5,null,true],"model":{"dtype":"bfloat16","path":"gpt2"},"unicode":"Größe"}'.encode()
    )
    assert fingerprint(FACTS) == "50dc9b6890baab50c6ce0c0999c14f7510bb0fa5592fc0feabae5957882a1d47"


def test_fingerprints_ignore_the_order_of_keys_only() -> None:
    assert fingerprint(dict(reversed(FACTS.items()))) == fingerprint(FACTS)
    assert fingerprint({**FACTS, "list": [2.5, 1, None, True]}) != fingerprint(FACTS)
    with pytest.raises(ValueError, match="not JSON compliant"):
        fingerprint({"x": float("nan")})


def test_differences_name_the_leaf() -> None:
    other = {**FACTS, "model": {"path": "gpt2", "dtype": "float32"}, "more": 1}
    assert list(differences(FACTS, other)) == [("model.dtype", "bfloat16", "float32"), ("more", None, 1)]
    require_equal(FACTS, dict(FACTS), where="there", remedy="")
    with pytest.raises(MismatchError, match=r"model\.dtype: this job has 'bfloat16', there has 'float32'") as refused:
        require_equal(FACTS, other, where="there", remedy="Choose another output.")
    assert str(refused.value).endswith("Choose another output.")


def pipeline(*jobs: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "pipeline", "output": "x", "jobs": list(jobs)}


COLLECT: dict[str, Any] = {
    "kind": "collect", "name": "c", "model": {"path": "m"}, "hook_points": ["h"], "output": "store",
    "tokens": {"corpus": {"format": "text", "urls": ["a"]}},
}  # fmt: skip
TRAIN: dict[str, Any] = {
    "kind": "train", "name": "t", "store": "${c}", "output": "dictionaries",
    "dictionaries": [{"name": "d", "sources": ["h"], "num_latents": 64}],
}  # fmt: skip
EVALUATE: dict[str, Any] = {
    "kind": "evaluate", "name": "e", "store": "${c}", "dictionaries": "${t}", "output": "report",
}  # fmt: skip


def test_references_become_outputs() -> None:
    jobs = PipelineSpec.model_validate(pipeline(COLLECT, TRAIN, EVALUATE)).resolved()
    assert [getattr(job, "store", "") for job in jobs] == ["", "store", "store"]
    assert jobs[2].dictionaries == "dictionaries"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        ((TRAIN, COLLECT), "no earlier job of kind 'collect' or 'shuffle' has that name"),
        ((COLLECT, {**TRAIN, "store": "${cc}"}), "did you mean 'c'"),
        ((COLLECT, TRAIN, {**EVALUATE, "dictionaries": "${c}"}), "no earlier job of kind 'train'"),
        ((COLLECT, {**TRAIN, "name": "c"}), "the name 'c' is taken"),
        ((COLLECT, {**TRAIN, "dictionaries": TRAIN["dictionaries"] * 2}), "two dictionaries have one name"),
        (({**COLLECT, "hook_points": ["h", "h"]},), "names one hook point twice"),
        ((), "at least 1 item"),
    ],
)
def test_pipelines_that_cannot_work_are_refused(jobs: tuple[dict[str, Any], ...], message: str) -> None:
    with pytest.raises(ValidationError) as refused:
        PipelineSpec.model_validate(pipeline(*jobs))
    assert message in str(refused.value)
