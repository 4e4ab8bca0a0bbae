from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.collection.snapshots import group_of, snapshot_jobs
from pipeline.dictionaries.folder import load_dictionary, save_dictionary
from pipeline.evaluation import belonging
from pipeline.evaluation.evaluate import evaluate
from pipeline.store.group import join_group
from pipeline.store.objects import Objects
from pipeline.store.reader import Store
from pipeline.store.rounding import relative_error
from pipeline.training.engine import train
from pipeline.training.world import SingleWorld
from schemas.collect import CollectSpec
from schemas.errors import HeadworksError, HookPointError, MismatchError, MissingError, SpecError
from schemas.evaluate import EvaluateSpec
from schemas.train import TrainSpec

RESID = "blocks.1.hook_resid_post"


def spec_of(flow: Any, output: Path, **changes: Any) -> EvaluateSpec:
    facts = {
        "store": flow.store,
        "dictionaries": flow.dictionaries,
        "max_rows": 5000,
        "cross_entropy_tokens": 400,
        "report": {"num_features": 12, "contexts_per_feature": 3, "context_tokens": 12, "rows": 3000},
        "output": str(output),
    }
    return EvaluateSpec.model_validate({**facts, **changes})


@pytest.fixture(scope="module")
def evaluated(flow: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, list[dict[str, Any]]]:
    output = tmp_path_factory.mktemp("evaluation")
    told: list[dict[str, Any]] = []
    return evaluate(spec_of(flow, output), progress=told.append), output, told


def require_phases(result: dict[str, Any], names: Sequence[str]) -> None:
    """The models have learned how frequent tokens are and which follow which; every latent is of one kind."""
    found = result["snapshots"]
    assert [one["name"] for one in found["snapshots"]] == [*names]
    assert 0.5 < found["entropy_bigram"] < found["entropy_unigram"] < 3
    for one in found["snapshots"]:
        assert min(one["kl_unigram"], one["kl_bigram"]) > 0
    assert found["snapshots"][0]["loss"] < found["entropy_unigram"]
    assert found["snapshots"][0]["kl_bigram"] < found["snapshots"][0]["kl_unigram"]
    kinds = result["dictionaries"]["both"]["crosscoder"]["hierarchy"]["kinds"]
    assert sum(one["count"] for one in kinds.values()) == 96
    assert kinds["token_identity"]["count"] > 0


def test_a_store_of_rounded_rows_gives_nearly_the_same_figures(
    flow: Any, evaluated: tuple[dict[str, Any], Path, Any], rounded_store: str, tmp_path: Path
) -> None:
    result = evaluate(spec_of(flow, tmp_path, store=rounded_store, cross_entropy_tokens=0))
    statistics = Store.open(rounded_store).statistics[RESID]
    assert statistics.rounding is not None
    assert 0 < relative_error(statistics.rounding) < 0.01
    for name, expected in evaluated[0]["dictionaries"].items():
        figures = result["dictionaries"][name]
        assert figures["fvu"] == pytest.approx(expected["fvu"], rel=0.02)
        assert figures["l0"] == pytest.approx(expected["l0"], rel=0.02)


def test_figures_are_written_and_sensible(evaluated: tuple[dict[str, Any], Path, Any]) -> None:
    result, output, told = evaluated
    assert json.loads((output / "evaluation.json").read_text()) == result
    assert list(result["dictionaries"]) == ["sae", "transcoder", "dense"]
    for figures in result["dictionaries"].values():
        assert 0 < figures["fvu"] < 0.9
        assert 0 <= figures["dead_share"] < 1
        assert figures["ce_spliced"] < figures["ce_mean"]
        assert 0.2 < figures["ce_recovered"] < 1.2
        assert figures["splice_check"] <= 1e-5
        assert figures["excluded"] == "special tokens; position 0 of each context"
        assert sum(figures["density_histogram"]["counts"]) == figures["num_latents"] - figures["dead_latents"]
    assert result["dictionaries"]["sae"]["l0"] <= 8
    stages = {stage: [one for one in told if one["stage"] == stage] for stage in [one["stage"] for one in told]}
    assert list(stages) == ["reconstruction", "cross-entropy", "features"]
    for said in stages.values():
        assert said[-1]["done"] == said[-1]["total"] > 0
        assert [one["done"] for one in said] == sorted(one["done"] for one in said)


def test_figures_equal_a_computation_over_all_held_out_rows_at_once(
    flow: Any, evaluated: tuple[dict[str, Any], Path, Any]
) -> None:
    figures = evaluated[0]["dictionaries"]["sae"]
    store = Store.open(flow.store)
    tokens = store.tokens()
    kept = tokens.held_out & (tokens.position > 0) & ~np.isin(tokens.token_id, list(store.record.specials.values()))
    x = torch.from_numpy(store.gather(RESID, np.flatnonzero(kept)).copy()).double()
    dictionary = load_dictionary(f"{flow.dictionaries}/sae")
    x_hat = dictionary.reconstruct({RESID: x.float()})[RESID].double()
    codes = dictionary.codes_dense(dictionary.join_sources({RESID: x.float()}))
    assert figures["rows"] == int(kept.sum())
    assert figures["fvu"] == pytest.approx(float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum()), rel=1e-6)
    assert figures["l0"] == pytest.approx(float((codes > 0).sum(1).double().mean()))
    assert figures["dead_latents"] == int((~(codes > 0).any(0)).sum())


def test_latents_are_listed_one_by_one(evaluated: tuple[dict[str, Any], Path, Any]) -> None:
    result, output, _ = evaluated
    figures = result["dictionaries"]["dense"]
    rows = list(csv.DictReader(io.StringIO((output / "dense.latents.csv").read_text())))
    assert [int(row["latent"]) for row in rows] == list(range(48))
    assert sum(int(row["fired"]) for row in rows) == pytest.approx(figures["l0"] * figures["rows"])
    assert sum(row["log10_density"] == "" for row in rows) == figures["dead_latents"]
    for row in rows:
        if row["log10_density"]:
            assert float(row["log10_density"]) == pytest.approx(
                math.log10(int(row["fired"]) / figures["rows"]), abs=1e-4
            )
            assert 0 < float(row["mean_active"]) <= float(row["max"])


def test_the_report_shows_features_in_their_contexts(evaluated: tuple[dict[str, Any], Path, Any]) -> None:
    page = (evaluated[1] / "report.html").read_text()
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert [one["name"] for one in data["dictionaries"]] == ["sae", "transcoder", "dense"]
    for one in data["dictionaries"]:
        assert 6 <= len(one["features"]) <= 12
        densities = [feature["density"] for feature in one["features"]]
        assert densities == sorted(densities)
        for feature in one["features"]:
            assert 1 <= len(feature["contexts"]) <= 3
            tops = [context["values"][context["top"]] for context in feature["contexts"]]
            assert tops[0] == feature["max"]
            assert tops == sorted(tops, reverse=True)
            for context in feature["contexts"]:
                assert max(context["values"]) == context["values"][context["top"]]
                # Rows that training left out are shown but never lit.
                dark = [v for t, v in zip(context["tokens"], context["values"], strict=True) if t in ("<bos>", "<eos>")]
                assert not any(dark)


def test_a_second_run_finds_the_first(flow: Any, evaluated: tuple[dict[str, Any], Path, Any]) -> None:
    result, output, _ = evaluated
    before = (output / "report.html").stat().st_mtime_ns
    assert evaluate(spec_of(flow, output)) == result
    assert (output / "report.html").stat().st_mtime_ns == before


def test_reconstruction_alone(flow: Any, tmp_path: Path) -> None:
    spec = spec_of(flow, tmp_path, rows="all", max_rows=300, cross_entropy_tokens=0, report={"num_features": 0})
    result = evaluate(spec)
    assert all(figures["ce_recovered"] is None for figures in result["dictionaries"].values())
    assert all(figures["rows"] == 300 for figures in result["dictionaries"].values())
    assert "not measured" in (tmp_path / "report.html").read_text()


def test_one_dictionary_by_its_own_folder(flow: Any, tmp_path: Path) -> None:
    spec = spec_of(
        flow, tmp_path, dictionaries=f"{flow.dictionaries}/sae", cross_entropy_tokens=0, report={"num_features": 0}
    )
    assert list(evaluate(spec)["dictionaries"]) == ["sae"]


def altered(flow: Any, folder: Path, **changes: Any) -> str:
    dictionary = load_dictionary(f"{flow.dictionaries}/sae")
    assert dictionary.record is not None
    save_dictionary(f"{folder}/sae", dictionary, dictionary.record.model_copy(update=changes))
    return str(folder)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": {"weights": "other"}}, MismatchError, "dictionary 'sae' was made from other facts"),
        ({"table_fingerprint": "other"}, MismatchError, "rows: all to evaluate it on other text"),
    ],
)
def test_what_does_not_belong_is_refused(
    flow: Any, tmp_path: Path, changes: dict[str, Any], error: type[HeadworksError], message: str
) -> None:
    spec = spec_of(flow, tmp_path / "out", dictionaries=altered(flow, tmp_path / "in", **changes))
    with pytest.raises(error, match=message):
        evaluate(spec)
    assert not (tmp_path / "out").exists()


def test_a_store_without_the_hook_point_is_refused(flow: Any, tmp_path: Path) -> None:
    dictionary = load_dictionary(f"{flow.dictionaries}/sae")
    record = dictionary.record
    assert record is not None
    other = "blocks.2.hook_resid_post"
    spec = record.spec.model_copy(update={"sources": [other]})
    moved = type(dictionary)(spec, {other: 24}, {other: 24}, {other: 1.0})
    changes = {"spec": spec, "d_source": {other: 24}, "d_target": {other: 24}, "scales": {other: 1.0}}
    save_dictionary(f"{tmp_path}/in/sae", moved, record.model_copy(update=changes))
    with pytest.raises(HookPointError, match=r"blocks.2.hook_resid_post.*did you mean 'blocks.1.hook_resid_post'"):
        evaluate(spec_of(flow, tmp_path / "out", dictionaries=f"{tmp_path}/in"))


def test_an_empty_folder_has_no_dictionaries(flow: Any, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no dictionaries at"):
        evaluate(spec_of(flow, tmp_path / "out", dictionaries=str(tmp_path)))


def test_too_few_held_out_rows_are_said(flow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(flow, tmp_path, rows="all", max_rows=10, report={"num_features": 0})
    monkeypatch.setattr("pipeline.evaluation.evaluate.choose_contexts", lambda *_, **__: [])
    with pytest.raises(SpecError, match="has no held-out contexts"):
        evaluate(spec)


def test_the_tokenizer_is_the_tables_or_the_models_where_the_table_has_gone(flow: Any, tmp_path: Path) -> None:
    store = Store.open(flow.store)
    assert store.record.table_url == f"{flow.root}/tokens"
    kept = belonging.tokenizer_of(store)
    store.record = store.record.model_copy(update={"table_url": str(tmp_path / "gone")})
    assert belonging.tokenizer_of(store).digest == kept.digest
    assert kept.pieces([2, 12]) == ["cat", "the"]


def test_a_crosscoder_over_a_group_is_evaluated_at_each_of_its_models(
    flow: Any, collect_here: Callable[[CollectSpec], None], tmp_path: Path
) -> None:
    """Figures of each target as computed from all rows at once; no cross-entropy, and the page says so."""
    names = ["whole", "half"]
    points = [f"{name}/{RESID}" for name in names]
    facts = flow.collect.model_dump(mode="json") | {"hook_points": [RESID], "output": str(tmp_path / "group")}
    spec = CollectSpec.model_validate(facts | {"snapshots": {"whole": {}, "half": {"dtype": "bfloat16"}, "other": {}}})
    jobs = snapshot_jobs(spec)
    for name in names:
        collect_here(jobs[name])
    table = Store.open(jobs["whole"].output).table_fingerprint
    join_group(Objects(spec.output), group_of(spec, jobs, table))  # "other" is not there, and nobody asks for it
    dictionary = {"name": "both", "sources": points, "num_latents": 96, "activation": {"kind": "topk", "k": 8}}
    trained = flow.train.model_dump(mode="json") | {
        "store": spec.output, "dictionaries": [dictionary], "output": str(tmp_path / "dictionaries"),
    }  # fmt: skip
    train(TrainSpec.model_validate(trained), SingleWorld())
    asked = {"dictionaries": trained["output"], "max_rows": 10**6}
    snapshots = {"tokens": 400, "rows": 1500}
    result = evaluate(spec_of(flow, tmp_path / "out", store=spec.output, **asked, snapshots=snapshots))
    require_phases(result, names)
    figures = result["dictionaries"]["both"]
    assert figures["kind"] == "crosscoder"
    assert figures["ce_clean"] is None
    assert "Cross-entropy is left out" in (tmp_path / "out" / "report.html").read_text()

    stores = {f"{name}/{RESID}": Store.open(jobs[name].output) for name in names}
    tokens = stores[points[0]].tokens()
    specials = list(stores[points[0]].record.specials.values())
    kept = np.flatnonzero(tokens.held_out & (tokens.position > 0) & ~np.isin(tokens.token_id, specials))
    rows = {point: torch.from_numpy(store.gather_values(RESID, kept)) for point, store in stores.items()}
    made = load_dictionary(f"{trained['output']}/both").reconstruct(rows)
    assert figures["rows"] == len(kept)
    for point, x in rows.items():
        expected = (x - made[point]).double().square().sum() / (x - x.mean(0)).double().square().sum()
        assert figures["fvu_of_target"][point] == pytest.approx(float(expected), rel=1e-4)
    by_name = {name: jobs[name].output for name in names}
    again = evaluate(spec_of(flow, tmp_path / "named", store=by_name, **asked, report={"num_features": 0}))
    assert again["dictionaries"]["both"]["fvu"] == figures["fvu"]
