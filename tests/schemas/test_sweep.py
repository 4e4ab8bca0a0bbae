"""A sweep becomes the dictionaries that it stands for, and says what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.spec_file import load_job, validated
from pipeline.training.identity import identity
from schemas.errors import SpecError
from schemas.train import TrainSpec

BASE = {"sources": ["resid"], "num_latents": 64}


def job(sweep: Any, **fields: Any) -> TrainSpec:
    found = validated({"kind": "train", "store": "s", "output": "o", "sweep": sweep, **fields}, where="job.yaml")
    assert isinstance(found, TrainSpec)
    return found


def test_product_of_nested_fields_in_order() -> None:
    spec = job({"base": BASE, "over": {"activation.k": [4, 8], "learning_rate": [1e-3, 5e-4]}})
    assert [one.name for one in spec.dictionaries] == [
        "k4-learning_rate0.001", "k4-learning_rate0.0005", "k8-learning_rate0.001", "k8-learning_rate0.0005",
    ]  # fmt: skip
    last = spec.dictionaries[-1]
    assert (last.activation.kind, last.learning_rate, last.num_latents) == ("topk", 5e-4, 64)
    assert getattr(last.activation, "k", 0) == 8


def test_zip_of_whole_activations_after_listed_dictionaries() -> None:
    activations = [{"kind": "relu_l1"}, {"kind": "batch_topk", "k": 4}]
    listed = [{"name": "first", **BASE}]
    sweep = {"name": "all", "base": BASE, "mode": "zip", "over": {"activation": activations, "num_latents": [32, 48]}}
    spec = job(sweep, dictionaries=listed)
    assert [one.name for one in spec.dictionaries] == ["first", "all-relu_l1-num_latents32",
                                                      "all-batch_topk-num_latents48"]  # fmt: skip
    assert [one.num_latents for one in spec.dictionaries] == [64, 32, 48]


def test_several_sweeps_labels_booleans_and_hook_points() -> None:
    labelled = {"base": BASE, "over": {"activation": {"narrow": {"kind": "topk", "k": 4}, "wide": {"kind": "topk"}}}}
    points = {
        "base": {"num_latents": 64, "sources": ["a"], "tied": False},
        "over": {"tied": [True, False], "sources": [["blocks.1.hook_resid_post"], ["a", "b"]]},
    }
    names = [one.name for one in job([labelled, points]).dictionaries]
    assert names == [
        "narrow", "wide",
        "tied-blocks.1.hook_resid_post", "tied-a_b", "no_tied-blocks.1.hook_resid_post", "no_tied-a_b",
    ]  # fmt: skip


def test_what_comes_after_sees_the_long_list_only() -> None:
    short = job({"base": BASE, "over": {"activation.k": [4, 8]}})
    long = job([], dictionaries=[one.model_dump(mode="json") for one in short.dictionaries])
    assert short.sweep == []
    assert TrainSpec.model_validate(short.model_dump(mode="json")) == short
    facts = {"store_fingerprint": "f", "num_rows": 10}
    assert identity(short, **facts) == identity(long, **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"base": BASE, "over": {"learning_rat": [1]}}, "'learning_rat'.*did you mean 'learning_rate'"),
        ({"base": BASE, "over": {"activation.kk": [1]}}, "dictionary 'kk1' of the sweep: activation.kk: unknown field"),
        ({"base": BASE, "over": {"seed.deep": [1]}}, "seed is 0, which has no field 'deep'"),
        ({"base": BASE, "over": {"activation.k": [100]}}, "'k100' of the sweep: activation.k .100. is larger"),
        ({"base": {**BASE, "name": "x"}, "over": {"seed": [1]}}, "base has a name"),
        ({"base": BASE, "over": {"seed": []}}, "seed takes a list of values"),
        ({"base": BASE, "over": {"seed": 3}}, "seed takes a list of values, or label -> value, got 3"),
        ({"base": BASE, "over": {}}, r"sweep\[0\].over"),
        (5, "sweep: should be a valid list, got 5"),
        ({"base": BASE, "mode": "zip", "over": {"seed": [1], "learning_rate": [1, 2]}}, "seed has 1, learning_rate"),
        ({"base": BASE, "over": {"seed": list(range(17)), "learning_rate": list(range(1, 17))}}, "272 dictionaries"),
        ({"base": BASE, "over": {"activation": [{"kind": "topk", "k": 2}, {"kind": "topk"}]}}, "be called 'topk'"),
        ({"base": BASE, "over": {"seed": [1]}, "modus": "zip"}, "modus: unknown field; did you mean 'mode'"),
        ([{"base": BASE, "over": {"seed": [1]}}, {"base": BASE, "over": {"seed": [1]}}], "two dictionaries have one"),
        ([], "nothing to train: give dictionaries, or a sweep"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_message(sweep: Any, message: str) -> None:
    with pytest.raises(SpecError, match=f"(?s){message}"):
        job(sweep)


@given(
    st.lists(st.integers(1, 64), min_size=1, max_size=6, unique=True),
    st.sets(st.floats(1e-5, 1), min_size=1, max_size=4),
)
def test_every_combination_is_there_once(sizes: list[int], rates: set[float]) -> None:
    labels = {f"rate{index}": rate for index, rate in enumerate(sorted(rates))}
    spec = job({"base": BASE, "over": {"activation.k": sizes, "learning_rate": labels}})
    found = {(getattr(one.activation, "k", 0), one.learning_rate) for one in spec.dictionaries}
    assert found == {(k, rate) for k in sizes for rate in rates}
    assert len(spec.dictionaries) == len(sizes) * len(rates)


def test_the_example_is_a_sweep() -> None:
    spec = load_job(Path(__file__).parents[2] / "examples" / "sweep.yaml")
    assert isinstance(spec, TrainSpec)
    names = [one.name for one in spec.dictionaries]
    assert len(names) == 11
    assert names[1] == "k8-learning_rate0.001"
    assert {one.optimiser.kind for one in spec.dictionaries} == {"adam", "muon", "signum"}
