"""Dictionaries compared on the rows of a real, small store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from deploy.cli import cli
from pipeline.analysis.compare import Side, compare_dictionaries
from pipeline.dictionaries.folder import load_dictionary
from pipeline.evaluation.belonging import tokenizer_of
from pipeline.evaluation.evaluate import evaluate
from pipeline.store.reader import Store
from schemas.collect import CollectSpec
from schemas.errors import HookPointError, MismatchError, SpecError
from schemas.evaluate import EvaluateSpec


def side(flow: Any, name: str, store: str = "") -> Side:
    return Side(load_dictionary(f"{flow.dictionaries}/{name}"), Store.open(store or flow.store))


def test_a_dictionary_knows_what_it_knows_itself(flow: Any) -> None:
    found = compare_dictionaries(side(flow, "sae"), side(flow, "sae"), max_rows=1500, num_shuffles=20)
    assert found["rows"] == 1500
    assert found["one_to_one"] > 30
    assert all(pair["first"] == pair["second"] for pair in found["pairs"])
    assert found["correlation"] == pytest.approx(1.0, abs=1e-4)
    assert found["mmcs"] == pytest.approx({"first_to_second": 1.0, "second_to_first": 1.0}, abs=1e-5)
    assert found["rsa"]["observed"] == pytest.approx(1.0, abs=1e-6)
    assert found["rsa"]["p_value"] == pytest.approx(1 / 21)
    again = compare_dictionaries(side(flow, "sae"), side(flow, "sae"), max_rows=1500, num_shuffles=20)
    assert found == again


def test_two_dictionaries_of_one_hook_point_share_features(flow: Any) -> None:
    found = compare_dictionaries(side(flow, "sae"), side(flow, "dense"), max_rows=1500, num_shuffles=50)
    assert found["one_to_one"] >= 5
    assert found["correlation"] > 0.4
    assert len({pair["first"] for pair in found["pairs"]}) == len(found["pairs"])


def test_concepts_are_the_pairs_whose_words_are_alike(flow: Any) -> None:
    options: dict[str, Any] = {"max_rows": 1500, "num_shuffles": 20}
    pieces = tokenizer_of(Store.open(flow.store)).pieces
    found = compare_dictionaries(side(flow, "sae"), side(flow, "dense"), **options, pieces=pieces)
    assert 3 <= found["concepts"]["one_to_one"] < found["one_to_one"]
    assert found["concepts"]["svcca"]["observed"] <= 1
    stops = compare_dictionaries(side(flow, "sae"), side(flow, "dense"), **options, pieces=lambda ids: ["."] * len(ids))
    assert stops["concepts"] == {"one_to_one": 0, "correlation": None, "svcca": None, "rsa": None}
    assert stops["svcca"] == found["svcca"], "all pairs, whatever their tokens are"


def test_an_evaluation_compares_its_dictionaries(flow: Any, tmp_path: Path) -> None:
    spec = {
        "store": flow.store, "dictionaries": flow.dictionaries, "cross_entropy_tokens": 0, "max_rows": 500,
        "report": {"num_features": 0}, "output": str(tmp_path),
        "universality": {"pairs": [["sae", "dense"]], "rows": 1000, "shuffles": 10},
    }  # fmt: skip
    (found,) = evaluate(EvaluateSpec.model_validate(spec))["universality"]
    direct = compare_dictionaries(
        side(flow, "sae"),
        side(flow, "dense"),
        max_rows=1000,
        num_shuffles=10,
        pieces=tokenizer_of(Store.open(flow.store)).pieces,
    )
    assert found == {"first": "sae", "second": "dense", **direct}
    page = (tmp_path / "report.html").read_text("utf-8")
    section = page[page.index('<section id="universality"') :]
    assert section.count("sae ~ dense") == 2
    assert f"<td>{found['rsa']['observed']:.3f}</td>" in section.replace("\u2212", "-")
    with pytest.raises(SpecError, match=r"names 'danse'.*did you mean 'dense'"):
        evaluate(EvaluateSpec.model_validate(spec | {"universality": {"pairs": [["sae", "danse"]]}}))
    alone = spec | {"dictionaries": f"{flow.dictionaries}/sae", "universality": {}}
    with pytest.raises(SpecError, match="alone"):
        evaluate(EvaluateSpec.model_validate(alone))


def test_the_command_says_the_same(flow: Any) -> None:
    arguments = ["dictionary", "compare", f"{flow.dictionaries}/sae", f"{flow.dictionaries}/transcoder"]
    options = ["--store", flow.store, "--rows", "1000", "--shuffles", "10", "--concepts"]
    words = CliRunner().invoke(cli, [*arguments, *options])
    assert words.exit_code == 0, words.output
    assert "1,000" in words.output
    assert "concepts:" in words.output
    assert "MMCS" not in words.output, "targets differ"
    data = CliRunner().invoke(cli, [*arguments, *options, "--json"])
    assert json.loads(data.output)["rows"] == 1000


def test_what_does_not_belong_together_is_refused(flow: Any, collect_here: Callable[[CollectSpec], None]) -> None:
    facts = flow.collect.model_dump(mode="json")
    facts["tokens"] |= {"seed": 77, "output": f"{flow.root}/other_tokens"}
    other = CollectSpec.model_validate(facts | {"output": f"{flow.root}/other_store"})
    collect_here(other)
    with pytest.raises(MismatchError, match="different token tables"):
        compare_dictionaries(side(flow, "sae"), side(flow, "sae", other.output))
    facts = flow.collect.model_dump(mode="json")
    narrow = facts | {"hook_points": facts["hook_points"][:1], "output": f"{flow.root}/narrow"}
    collect_here(CollectSpec.model_validate(narrow))
    lacking = [
        name for name in ("sae", "transcoder") if narrow["hook_points"][0] not in side(flow, name).dictionary.d_source
    ]
    with pytest.raises(HookPointError, match="does not have"):
        compare_dictionaries(side(flow, "sae"), side(flow, lacking[0], narrow["output"]))
