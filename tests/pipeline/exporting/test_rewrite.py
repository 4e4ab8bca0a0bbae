"""Exports: the same numbers in another form, parts of a store that do not pretend to be the whole, kills, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_source import SHARD_ROWS

from pipeline.exporting.prepare import prepare
from pipeline.exporting.rewrite import rewrite
from pipeline.store.reader import Store
from pipeline.store.rounding import relative_error
from schemas.errors import CorruptionError, HookPointError, MismatchError, SpecError
from schemas.export import ExportSpec

Make = Callable[..., Store]


def export(source: Store, output: Path | str, **facts: Any) -> Store:
    job = prepare(ExportSpec.model_validate({"store": source.url, "output": str(output), **facts}))
    rewrite(job, begin=lambda total, done: None, advance=lambda rows, size: None)
    return Store.open(str(output))


def everything(store: Store) -> dict[str, np.ndarray]:
    return {hook: store.read_rows(hook, 0, store.num_rows) for hook in store.hook_points}


def require_same(ours: Store, theirs: Store) -> None:
    assert ours.hook_points == theirs.hook_points
    for hook, words in everything(theirs).items():
        np.testing.assert_array_equal(ours.read_rows(hook, 0, ours.num_rows), words)


@pytest.mark.parametrize("layout", ["zarr", "arrow"])
def test_another_layout_and_codec_hold_the_same_rows(source: Make, tmp_path: Path, layout: str) -> None:
    before = source(layout=layout)
    for target, codec in (("arrow", "same"), ("zarr", "zstd"), ("zarr", "none")):
        store = export(before, tmp_path / f"{target}-{codec}", layout=target, codec=codec)
        require_same(store, before)
        assert store.tokens() == before.tokens()
        assert store.verify(deep=True) == []
        assert store.record.layout == target
        assert store.table_fingerprint == before.table_fingerprint
        assert store.fingerprint != before.fingerprint
        assert store.statistics == before.statistics
        assert [*store.passes.values()] == [*before.passes.values()]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_any_bits_survive_float32_and_back(source: Make, tmp_path: Path, dtype: str) -> None:
    every = np.arange(0, 2**16, 109, dtype=np.uint16)[: 100 * 6].reshape(100, 6)
    words = every.view(np.uint16 if dtype == "bfloat16" else np.float16)
    wide = export(source(num_rows=100, dtype=dtype, words=words), tmp_path / "wide", dtype="float32")
    back = export(wide, tmp_path / "back", dtype=dtype)
    assert wide.record.exported is not None
    assert wide.record.exported.value_dtype == dtype
    np.testing.assert_array_equal(back.read_rows("resid", 0, 100).copy().view(np.uint16), every)
    assert back.statistics["resid"].rounding is None


def test_precision_is_lost_with_consent_only(source: Make, tmp_path: Path) -> None:
    before = source(dtype="float32")
    with pytest.raises(SpecError, match="--lossy"):
        export(before, tmp_path / "refused", dtype="bfloat16")
    assert not (tmp_path / "refused").exists()
    store = export(before, tmp_path / "rounded", dtype="bfloat16", lossy=True)
    for hook in before.hook_points:
        exact, rounded = before.read_values(hook, 0, 150), store.read_values(hook, 0, 150)
        rounding = store.statistics[hook].rounding
        assert rounding is not None
        error = np.linalg.norm((rounded - exact).astype(np.float64)) / np.linalg.norm(exact.astype(np.float64))
        assert relative_error(rounding) == pytest.approx(error, rel=1e-9)
        assert 0 < error < 2**-8
    # Rounded once, it can be kept as it is and no longer be had back.
    assert export(store, tmp_path / "wide", dtype="float32").record.exported.value_dtype == "bfloat16"  # type: ignore[union-attr]


def test_eight_bits_are_measured_and_cannot_be_rounded_again(source: Make, tmp_path: Path) -> None:
    before = source()
    with pytest.raises(SpecError, match="--lossy"):
        export(before, tmp_path / "refused", dtype="int8")
    eight = export(before, tmp_path / "eight", dtype="int8", lossy=True, layout="arrow")
    for hook in before.hook_points:
        rounding = eight.statistics[hook].rounding
        assert rounding is not None
        assert 0 < relative_error(rounding) < 0.02
    # Words and scales move as they are, and so does what is known of their error.
    for target, rows in (("zarr", None), ("arrow", {"kind": "split", "split": "held_out"})):
        moved = export(eight, tmp_path / target, layout=target, **({"rows": rows} if rows else {}))
        chosen = np.flatnonzero(before.tokens().held_out) if rows else np.arange(150)
        np.testing.assert_array_equal(moved.read_rows("mlp", 0, len(chosen)), eight.read_rows("mlp", 0, 150)[chosen])
        np.testing.assert_array_equal(
            moved.read_scales("mlp", 0, len(chosen)), eight.read_scales("mlp", 0, 150)[chosen]
        )
        assert moved.statistics["mlp"].rounding == (None if rows else eight.statistics["mlp"].rounding)
        assert moved.verify(deep=True) == []
    wide = export(eight, tmp_path / "wide", dtype="float32")
    assert wide.statistics["resid"].rounding == eight.statistics["resid"].rounding
    np.testing.assert_array_equal(wide.read_rows("resid", 0, 150), eight.read_values("resid", 0, 150))
    with pytest.raises(SpecError, match="lossy already"):
        export(eight, tmp_path / "again", dtype="float8_e4m3", lossy=True)


def test_a_number_beyond_the_range_is_no_infinity(source: Make, tmp_path: Path) -> None:
    words = np.full((150, 6), 0x4980, dtype=np.uint16)  # 1048576 in bfloat16
    with pytest.raises(SpecError, match="float16 has no number near 1\\.04858e\\+06"):
        export(source(words=words), tmp_path / "half", dtype="float16", lossy=True)


def test_first_rows_keep_their_place_and_can_be_continued(source: Make, tmp_path: Path) -> None:
    before = source()
    part = export(before, tmp_path / "part", rows={"kind": "range", "start": 0, "stop": 2 * SHARD_ROWS})
    assert (part.num_rows, part.table_fingerprint) == (64, before.table_fingerprint)
    assert part.tokens() == before.tokens(0, 64)
    grown = export(before, tmp_path / "part")
    assert grown.num_rows == 150
    require_same(grown, before)


@pytest.mark.parametrize(
    "rows",
    [
        {"kind": "range", "start": 45, "stop": 121},
        {"kind": "split", "split": "held_out"},
        {"kind": "split", "split": "train"},
        {"kind": "documents", "documents": [20, 3, 11]},
    ],
    ids=lambda rows: "-".join(map(str, rows.values())),
)
def test_a_part_is_not_taken_for_the_whole(source: Make, tmp_path: Path, rows: dict[str, Any]) -> None:
    before = source(statistics={"covariance": True, "outlier_tokens": 4})
    tokens = before.tokens()
    wanted = {
        "range": np.arange(45, 121),
        "split": np.flatnonzero(tokens.held_out == (rows.get("split") == "held_out")),
        "documents": np.flatnonzero(np.isin(tokens.document_id, [3, 11, 20])),
    }[rows["kind"]]
    store = export(before, tmp_path / "part", rows=rows)
    assert store.table_fingerprint != before.table_fingerprint
    assert store.num_rows == len(wanted)
    for hook, words in everything(before).items():
        np.testing.assert_array_equal(store.read_rows(hook, 0, store.num_rows), words[wanted])
    found = store.tokens()
    np.testing.assert_array_equal(found.row, np.arange(len(wanted)))
    np.testing.assert_array_equal(found.source_row, wanted)
    for name in ("token_id", "document_id", "position", "held_out"):
        np.testing.assert_array_equal(getattr(found, name), getattr(tokens, name)[wanted])
    values = store.read_values("resid", 0, store.num_rows).astype(np.float64)
    np.testing.assert_allclose(store.covariance("resid"), np.cov(values.T, ddof=0), rtol=1e-9)
    # A part of the part still names rows of the table; and equal parts of stores of one table have one identity.
    smaller = export(store, tmp_path / "smaller", rows={"kind": "range", "start": 2, "stop": 9})
    np.testing.assert_array_equal(smaller.tokens().source_row, wanted[2:9])
    other = export(export(before, tmp_path / "zstd", codec="zstd"), tmp_path / "other", rows=rows)
    assert other.table_fingerprint == store.table_fingerprint


def test_hook_points_are_chosen_by_name(source: Make, tmp_path: Path) -> None:
    before = source()
    store = export(before, tmp_path / "some", hook_points=["attn", "mlp"])
    assert store.hook_points == {"mlp": 3, "attn": 4}
    np.testing.assert_array_equal(store.read_rows("mlp", 0, 150), before.read_rows("mlp", 0, 150))
    with pytest.raises(HookPointError, match="did you mean"):
        export(before, tmp_path / "other", hook_points=["atn"])


def test_a_killed_export_goes_on_where_it_was(source: Make, tmp_path: Path) -> None:
    before = source()
    job = prepare(ExportSpec(store=before.url, output=str(tmp_path / "out"), codec="zstd"))
    seen: list[int] = []

    def die(rows: int, size_bytes: int) -> None:
        seen.append(rows)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rewrite(job, begin=lambda total, done: None, advance=die)
    assert not (tmp_path / "out/manifest.json").exists()
    begun: list[tuple[int, int]] = []
    rewrite(job, begin=lambda *rows: begun.append(rows), advance=lambda rows, size: seen.append(rows))
    assert begun == [(300, 96)]
    assert sum(seen) == 300
    require_same(Store.open(str(tmp_path / "out")), before)
    assert not [*(tmp_path / "out").rglob("leases/*")]


def test_another_export_is_not_mixed_in(source: Make, tmp_path: Path) -> None:
    before = source()
    export(before, tmp_path / "out", rows={"kind": "split", "split": "train"})
    with pytest.raises(MismatchError, match=r"exported\.rows"):
        export(before, tmp_path / "out")


def test_damage_is_not_copied(source: Make, tmp_path: Path) -> None:
    before = source()
    path = Path(before.url, "activations/mlp/c/2/0")
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptionError, match="activations/mlp/c/2/0"):
        export(Store.open(before.url), tmp_path / "out")
    assert not (tmp_path / "out/manifest.json").exists()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"kind": "range", "start": 100, "stop": 151}, "has 150 rows"),
        ({"kind": "documents", "documents": [999]}, "no row of the documents 999"),
    ],
)
def test_rows_that_are_not_there(source: Make, tmp_path: Path, rows: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        export(source(), tmp_path / "out", rows=rows)
