"""Every text of a job spec says what it reaches, and everything that a job reaches is found in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel, StringConstraints

from pipeline.spec_file import validated
from schemas.evaluate import EvaluateSpec
from schemas.pipeline import JOB_ADAPTER, AnyJob
from schemas.reach import Reach, branches, is_bound, reach_of, reached
from schemas.sweep import Sweep

NO_FIELD = {
    "entrypoint", "runtime_env", "working_dir", "env", "env_vars", "environment", "pip", "conda", "py_modules",
    "container", "image", "image_uri", "command", "trust_remote_code", "code_revision", "pickle",
}  # fmt: skip
"""Fields by which a spec could bring code of its own along."""

PLACES = ["/etc/passwd", "../x", "~/x", "s3://bucket/key", "file:///etc", "a\\b", "a/b/c", "$HOME"]


def specs(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every spec that a job can have in it."""
    seen: set[Any] = set()
    waiting = [annotation]
    while waiting:
        for member, _ in branches(waiting.pop()):
            if isinstance(member, type) and issubclass(member, BaseModel):
                if member not in seen:
                    seen.add(member)
                    yield member
                    waiting += [field.annotation for field in member.model_fields.values()]
            else:
                waiting += [each for each in get_args(member) if get_origin(member) is not Literal]


JOB_SPECS = sorted(specs(AnyJob), key=lambda spec: spec.__name__)


def unclassified(annotation: Any, path: str) -> Iterator[str]:
    """Texts, and values of any kind, whose type says nothing of their reach."""
    for member, metadata in branches(annotation):
        if reach_of(metadata) or member is type(None):
            continue
        arguments = get_args(member)
        if member in (str, bytes, Any, object, dict, list) and not is_bound(metadata):
            yield path
        elif get_origin(member) is not Literal:
            for argument in arguments:
                yield from unclassified(argument, path)


def test_the_walk_over_types_comes_everywhere() -> None:
    names = {spec.__name__ for spec in JOB_SPECS}
    assert {"PipelineSpec", "ModelSpec", "SnapshotSpec", "HuggingFaceCorpus", "EndToEnd", "LatentGroup"} <= names
    assert len(names) > 40


@pytest.mark.parametrize("spec", JOB_SPECS, ids=lambda spec: spec.__name__)
def test_every_text_says_what_it_reaches(spec: type[BaseModel]) -> None:
    if spec is Sweep:
        return  # It has become dictionaries when a job is validated, see below.
    found = [
        name
        for name, field in spec.model_fields.items()
        if any(unclassified(Annotated[field.annotation, *field.metadata, None], name))
    ]
    assert not found, f"{spec.__name__}: {found} take free text; give their types a schemas.reach.Reach"


@pytest.mark.parametrize("spec", JOB_SPECS, ids=lambda spec: spec.__name__)
def test_no_spec_brings_code_along(spec: type[BaseModel]) -> None:
    assert not NO_FIELD & set(spec.model_fields)
    assert spec.model_config["extra"] == "forbid"


def patterns(annotation: Any) -> Iterator[str]:
    for member, metadata in branches(annotation):
        yield from (each.pattern for each in metadata if getattr(each, "pattern", None))
        if get_origin(member) is not Literal:
            for argument in get_args(member):
                yield from patterns(argument)


def test_text_that_a_pattern_binds_names_no_place() -> None:
    found = {
        pattern
        for spec in JOB_SPECS
        for field in spec.model_fields.values()
        for pattern in patterns(Annotated[field.annotation, *field.metadata, None])
    }
    assert len(found) > 2
    for pattern in found:
        assert pattern.startswith("^")
        assert pattern.endswith("$")
        matched = [place for place in PLACES if re.search(pattern, place)]
        assert not matched, pattern


@pytest.mark.parametrize(
    "annotation",
    [str, str | None, list[str], dict[str, str], Annotated[str, StringConstraints(min_length=1)], Any, dict[str, Any]],
)
def test_an_unmarked_text_is_found(annotation: Any) -> None:
    assert list(unclassified(annotation, "x"))

    class New(BaseModel):
        field: annotation

    value = {"x": "/etc"} if "dict" in str(annotation) else ["/etc"] if "list" in str(annotation) else "/etc"
    with pytest.raises(TypeError, match=r"field.*does not say"):
        list(reached(New(field=value)))


def test_a_marked_text_is_found_behind_unions_lists_and_mappings() -> None:
    place = Annotated[str, Reach("read")]

    class Inner(BaseModel):
        path: place | None = None

    class Outer(BaseModel):
        one: place | dict[str, place]
        more: list[Inner | place] = []
        kind: Literal["a"] = "a"

    found = [
        (each.field, each.what, each.value) for each in reached(Outer(one={"x": "p"}, more=[Inner(path="q"), "r"]))
    ]
    assert found == [("one.x", "read", "p"), ("more[0].path", "read", "q"), ("more[1]", "read", "r")]
    assert not list(reached(Inner()))


TRAIN = {
    "kind": "train",
    "store": {"a": "/data/a", "b": "s3://bucket/b"},
    "sweep": {
        "base": {"sources": ["a/h"], "num_latents": 8, "activation": {"kind": "topk", "k": 2}},
        "over": {"seed": [0, 1]},
    },
    "output": "/out",
}


def test_a_job_says_all_that_it_reaches() -> None:
    job = validated(TRAIN, where="x")
    found = {each.field: (each.what, each.value) for each in reached(job)}
    assert found == {
        "store.a": ("read", "/data/a"),
        "store.b": ("read", "s3://bucket/b"),
        "trackers[0]": ("tracker", "tensorboard"),
        "output": ("write", "/out"),
    }


def test_models_deep_in_a_job_are_found() -> None:
    one = {"name": "d", "sources": ["h"], "num_latents": 64, "end_to_end": {"model": {"path": "/deep"}}}
    snapshots = {"s": {"path": "/snap", "arguments": {"x": "/y"}, "revision": "r"}}
    tokens = {"corpus": {"format": "huggingface", "path": "/set"}, "tokenizer": "/tok", "output": "/table"}
    jobs = [
        {"kind": "collect", "model": {"path": "/base"}, "snapshots": snapshots, "tokens": tokens, "hook_points": ["h"],
         "output": "/store"},
        {"kind": "shuffle", "store": "/store", "scratch": "/scratch", "output": "/shuffled"},
        {"kind": "train", "store": "/store", "dictionaries": [one], "output": "/d"},
    ]  # fmt: skip
    job = validated({"kind": "pipeline", "jobs": jobs, "output": "/run"}, where="x")
    found = {each.field: each.value for each in reached(job) if each.what not in ("nothing", "tracker")}
    texts = {value for value in found.values() if isinstance(value, str)}
    assert {
        "/base",
        "/snap",
        "/set",
        "/tok",
        "/table",
        "/store",
        "/scratch",
        "/shuffled",
        "/deep",
        "/d",
        "/run",
    } <= texts
    assert found["jobs[0].snapshots.s.arguments"] == {"x": "/y"}
    assert found["jobs[2].dictionaries[0].end_to_end.model.path"] == "/deep"
    plain: Any = job.model_dump(mode="json")
    for each in reached(job):
        there = plain
        for step in each.steps:
            there = there[step]
        assert there == each.value, each


def test_sweeps_are_dictionaries_when_a_job_is_validated() -> None:
    job = JOB_ADAPTER.validate_python(TRAIN)
    assert job.kind == "train"
    assert not job.sweep
    assert len(job.dictionaries) == 2
    assert not list(reached(EvaluateSpec(store="/a", dictionaries="/b", output="/c").report))
