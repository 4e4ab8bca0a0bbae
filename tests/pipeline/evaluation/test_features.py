from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pipeline.evaluation.features import FeatureSearch, SearchedRows, choose_latents
from pipeline.evaluation.reconstruction import Firings
from schemas.evaluate import ReportSpec

# Three contexts of 6, 4 and 6 rows; contexts 0 and 2 hold the same text.
TEXT = [10, 11, 12, 13, 14, 15]
TOKENS = [*TEXT, 11, 13, 11, 12, *TEXT]


def searched(**changes: Any) -> SearchedRows:
    num_rows = len(TOKENS)
    fields: dict[str, Any] = {
        "row": np.arange(100, 100 + num_rows),
        "context": np.repeat([0, 1, 2], [6, 4, 6]),
        "token_id": np.array(TOKENS, dtype=np.int32),
        "document_id": np.repeat([7, 8, 9], [6, 4, 6]),
        "position": np.concatenate([np.arange(6), np.arange(4), np.arange(6)]).astype(np.int32),
        "held_out": np.repeat([False, True, False], [6, 4, 6]),
        "eligible": np.ones(num_rows, dtype=np.bool_),
    }
    return SearchedRows(**{**fields, **changes})


def pieces(ids: list[int]) -> list[str]:
    return [f"<{token}>" for token in ids]


def search(codes: torch.Tensor, latents: list[int], *, rows: SearchedRows | None = None, **spec: int) -> Any:
    fired = (codes > 0).sum(dim=0).numpy()
    found = FeatureSearch(np.array(latents), fired, len(codes), rows or searched(), ReportSpec(**spec))
    for start in range(0, len(codes), 5):
        part = codes[start : start + 5]
        found.add(np.arange(start, start + len(part)), Firings.from_dense(part))
    return found.features(pieces)


def codes_with(**values: float) -> torch.Tensor:
    """``latent_place = value``, for example ``l1_4=2.0``."""
    codes = torch.zeros(len(TOKENS), 3)
    for name, value in values.items():
        latent, place = name[1:].split("_")
        codes[int(place), int(latent)] = value
    return codes


def test_a_feature_by_hand() -> None:
    (feature,) = search(codes_with(l1_1=2.0, l1_6=4.0, l1_8=1.0, l2_0=9.0), [1])
    assert feature["latent"] == 1
    assert feature["fired"] == feature["found"] == 3
    assert feature["density"] == pytest.approx(np.log10(3 / 16), abs=1e-3)
    assert feature["max"] == 4.0
    assert sum(feature["histogram"]) == 3
    # Token 11 is there four times (rows 1, 6, 8, 11), active three times: (2 + 4 + 1) / 4.
    assert feature["tokens"] == [{"text": "<11>", "mean": 1.75, "active": 3, "occurrences": 4}]
    strongest, second = feature["contexts"]
    assert strongest["tokens"] == ["<11>", "<13>", "<11>", "<12>"]
    assert strongest["values"] == [4.0, 0.0, 1.0, 0.0]
    assert (strongest["top"], strongest["document"], strongest["position"], strongest["row"]) == (0, 8, 0, 106)
    assert strongest["held_out"] is True
    assert second["tokens"][second["top"]] == "<11>"
    assert second["values"] == [0.0, 2.0, 0.0, 0.0, 0.0, 0.0]


def test_one_line_to_a_context_and_no_text_twice() -> None:
    (feature,) = search(codes_with(l0_2=3.0, l0_4=2.0, l0_12=1.0), [0])
    assert [context["row"] for context in feature["contexts"]] == [102]


def test_contexts_are_as_many_as_asked_strongest_first_and_never_cross_a_boundary() -> None:
    codes = codes_with(l0_5=1.0, l0_7=2.0, l0_11=3.0)
    (feature,) = search(codes, [0], contexts_per_feature=2, context_tokens=3)
    assert [context["values"][context["top"]] for context in feature["contexts"]] == [3.0, 2.0]
    assert feature["contexts"][0]["tokens"] == ["<10>", "<11>", "<12>"]
    assert feature["contexts"][1]["tokens"] == ["<11>", "<13>", "<11>"]
    (feature,) = search(codes_with(l0_5=1.0), [0], context_tokens=3)
    assert feature["contexts"][0]["tokens"] == ["<13>", "<14>", "<15>"]


def test_latents_that_did_not_fire_on_the_searched_rows_are_left_out() -> None:
    rows = searched()
    found = FeatureSearch(np.array([0, 1]), np.array([5, 5, 5]), 16, rows, ReportSpec())
    found.add(np.arange(len(rows)), Firings.from_dense(codes_with(l1_3=1.0)))
    assert [feature["latent"] for feature in found.features(pieces)] == [1]
    assert FeatureSearch(np.array([0]), np.array([5]), 16, rows, ReportSpec()).features(pieces) == []


def test_means_count_only_rows_that_the_dictionary_sees() -> None:
    eligible = np.ones(len(TOKENS), dtype=np.bool_)
    eligible[[8, 11]] = False
    (feature,) = search(codes_with(l0_1=3.0, l0_6=1.0), [0], rows=searched(eligible=eligible))
    assert feature["tokens"] == [{"text": "<11>", "mean": 2.0, "active": 2, "occurrences": 2}]


def test_tokens_seen_once_are_shown_only_where_there_is_nothing_else() -> None:
    token_id = np.array([*range(20, 34), 11, 11], dtype=np.int32)
    both = search(codes_with(l0_0=9.0, l0_14=1.0), [0], rows=searched(token_id=token_id))
    assert [token["text"] for token in both[0]["tokens"]] == ["<11>"]
    alone = search(codes_with(l0_0=9.0), [0], rows=searched(token_id=token_id))
    assert [token["text"] for token in alone[0]["tokens"]] == ["<20>"]


def test_latents_are_spread_over_the_densities() -> None:
    fired = np.arange(1000)
    chosen = choose_latents(fired, 5)
    assert chosen.tolist() == [16, 262, 508, 753, 999]
    assert choose_latents(fired, 10_000).tolist() == list(range(1, 1000))
    assert choose_latents(np.zeros(4, dtype=np.int64), 3).tolist() == []
    assert choose_latents(np.array([0, 3, 1, 0, 2]), 3).tolist() == [2, 4, 1]
    assert choose_latents(fired, 0).tolist() == []
