"""``headworks store export`` as users type it: what it makes, what it says, what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline/exporting"))

from export_source import write_source

from deploy.cli import main
from pipeline.store.reader import Store


@pytest.fixture
def url(tmp_path: Path) -> str:
    return write_source(str(tmp_path / "source")).url


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["store", "export", *words])
    return int(ended.value.code or 0)


def test_a_store_in_another_form(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = str(tmp_path / "out")
    words = ["--layout", "arrow", "--dtype", "int8", "--lossy", "--hook-points", "attn,mlp", "--json"]
    assert run(url, target, *words) == 0
    facts = json.loads(capsys.readouterr().out)
    store = Store.open(target)
    assert (store.record.layout, store.dtype, {*store.hook_points}) == ("arrow", "int8", {"attn", "mlp"})
    assert facts["fingerprint"] == store.fingerprint
    assert facts["is_row_aligned"]
    assert 0 < facts["relative_error"]["mlp"] < 0.02


def test_parts(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(url, str(tmp_path / "held-out"), "--held-out") == 0
    assert Store.open(str(tmp_path / "held-out")).num_rows == 50
    assert run(url, str(tmp_path / "documents"), "--documents", "0,4:6") == 0
    assert {*Store.open(str(tmp_path / "documents")).tokens().document_id.tolist()} == {0, 4, 5}
    assert run(url, str(tmp_path / "rows"), "--rows", "5:25") == 0
    assert "a part, with a token table of its own" in capsys.readouterr().out


def test_a_dataset_for_saelens(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(url, str(tmp_path / "cached"), "--format", "sae-lens") == 0
    assert "15 of 10 tokens, float32" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dtype", "float16"], "Add --lossy"),
        (["--rows", "0:3", "--held-out"], "give one of them"),
        (["--rows", "3"], "START:STOP"),
        (["--rows", "9:3"], "rows 9:3 are none"),
        (["--documents", "1,x"], "'x' is not a number"),
        (["--layout", "arrow", "--codec", "zstd"], "layout arrow is memory-mapped and has codec none only"),
        (["--format", "sae-lens", "--codec", "zstd"], "no codec"),
        (["--drop-short-contexts"], "a store holds contexts of any length"),
        (["--hook-points", "resif"], "did you mean"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_mistakes_are_one_message(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert run(url, str(tmp_path / "out"), *words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()
