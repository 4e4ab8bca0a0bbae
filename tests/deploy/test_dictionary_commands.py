"""``headworks dictionary``: list, export, import, and what refusals look like."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline" / "dictionaries" / "formats"))
from foreign_cases import RESID, make

Run = Callable[..., tuple[int, str, str]]


def test_every_dictionary_of_a_job_goes_to_a_folder_and_comes_back(headworks: Run, tmp_path: Path) -> None:
    make(tmp_path / "runs/job", "topk", name="a")
    make(tmp_path / "runs/job", "topk", name="b")
    code, out, _ = headworks("dictionary", "ls", str(tmp_path / "runs"), "--json")
    assert code == 0
    assert [(row["dictionary"].rpartition("/")[2], row["activation"]) for row in json.loads(out)] == [
        ("a", "topk"), ("b", "topk"),
    ]  # fmt: skip
    words = ["dictionary", "export", str(tmp_path / "runs/job"), str(tmp_path / "out"), "--format", "sparsify"]
    code, out, _ = headworks(*words, "--json")
    assert code == 0
    assert json.loads(out)["written"] == [str(tmp_path / "out/a"), str(tmp_path / "out/b")]
    back = ["dictionary", "import", str(tmp_path / "out/b"), str(tmp_path / "back"), "--format", "sparsify"]
    code, out, _ = headworks(*back, "--source", RESID, "--model", "planted")
    assert code == 0
    assert "topk" in out
    code, out, _ = headworks("dictionary", "info", str(tmp_path / "back"), "--json")
    (record,) = json.loads(out)
    assert (record["spec"]["name"], record["d_source"], record["model"]) == ("back", {RESID: 6}, {"path": "planted"})


def test_a_refusal_is_one_message_and_exit_code_2(headworks: Run, tmp_path: Path) -> None:
    url = make(tmp_path, "gated")
    code, _, err = headworks("dictionary", "export", url, str(tmp_path / "out"), "--format", "sparsify")
    assert code == 2
    assert err.count("\n") == 1
    assert "no counterpart in the format sparsify" in err
    code, _, err = headworks("dictionary", "export", url, str(tmp_path / "out"), "--format", "other")
    assert code == 2


def test_nothing_to_list_is_said(headworks: Run, tmp_path: Path) -> None:
    assert headworks("dictionary", "ls", str(tmp_path)) == (0, "no dictionaries\n", "")
