"""The command line: exit codes, one message instead of a traceback, JSON for machines, and what the commands show."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from deploy import exits, reference
from deploy.cli import cli
from pipeline.store.rows import TokenRows
from pipeline.store.words import to_words
from pipeline.store.writer import StoreWriter
from schemas.dictionary import DictionaryRecord, DictionarySpec
from schemas.errors import CorruptionError, JobError, SpecError
from schemas.fingerprint import fingerprint
from schemas.store import PassRecord, StoreRecord

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    """128 rows of one hook point."""
    url = str(tmp_path / "store")
    identity: dict[str, Any] = {"model": {"path": "planted", "dtype": "float32"}}
    record = StoreRecord(
        fingerprint=fingerprint(identity), identity=identity, table_fingerprint="table", dtype="bfloat16",
        chunk_rows=32, shard_rows=64, codec="none", table_url="", specials={}, spec={}, versions={},
    )  # fmt: skip
    writer = StoreWriter.open(url, record, PassRecord(hook_points={"resid": 8}, batch_tokens=64), num_rows=128)
    words = to_words(np.random.default_rng(0).normal(size=(128, 8)).astype(np.float32), "bfloat16")
    rows = np.arange(128)
    tokens = TokenRows(row=rows, token_id=rows, document_id=rows, position=rows % 16, held_out=rows < 0)
    for unit in range(writer.num_units):
        start, stop = writer.unit_rows(unit)
        part = {"resid": words[start:stop]}
        writer.write_unit(unit, part, tokens.slice(start, stop), worker="test", attempt=0, seconds={})
    writer.finish()
    return url


def test_help_answers_at_once_and_names_the_commands() -> None:
    script = Path(sys.executable).with_name("headworks")
    answer = subprocess.run([script, "--help"], capture_output=True, text=True, check=True, timeout=60)
    for command in ("run", "submit", "jobs", "store", "dictionary", "schema", "version"):
        assert f"  {command} " in answer.stdout
    # What takes seconds to import is imported by the commands that need it.
    code = "import sys, deploy.cli; print(sorted({'torch', 'ray', 'zarr', 'transformers'} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert loaded.stdout.strip() == "[]"


def commands(group: click.Group, *path: str) -> list[tuple[str, click.Command]]:
    found: list[tuple[str, click.Command]] = []
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found += commands(command, *path, name)
        else:
            found.append((" ".join([*path, name]), command))
    return found


@pytest.mark.parametrize(("name", "command"), commands(cli), ids=lambda value: value if isinstance(value, str) else "")
def test_every_command_has_json_and_help(name: str, command: click.Command) -> None:
    assert "--json" in [option for parameter in command.params for option in parameter.opts]
    assert command.help


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run"], "Missing argument 'SPEC'"),
        (["frob"], "No such command 'frob'"),
        (["run", "nothing.yaml"], "no job spec at nothing.yaml"),
        (["jobs", "list", "--address", "http://127.0.0.1:9"], "no Ray Jobs API answers at http://127.0.0.1:9"),
        (["jobs", "list", "--address", "127.0.0.1:6379"], "expected the URL of the cluster's dashboard"),
        (["store", "info", "nothing"], "nothing"),
        (["dictionary", "info", "nothing"], "no dictionary at nothing"),
        (["schema", "--kind", "colect"], "'colect' is not one of"),
    ],
)
def test_mistakes_end_with_2_and_one_message(
    headworks: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = headworks(*words)
    assert code == 2
    assert out == ""
    assert err.startswith("headworks: ")
    assert message in err
    assert "Traceback" not in err


def test_a_wrong_field_is_named_in_words_and_in_json(headworks: Run, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("kind: train\nstore: s\noutput: o\ndictionaries: [{name: d, sources: [h], num_latent: 5}]\n")
    code, out, err = headworks("run", str(path), "--json")
    assert code == 2
    assert "dictionaries[0].num_latent: unknown field; did you mean 'num_latents'" in err
    error = json.loads(out)["error"]
    assert error["type"] == "SpecError"
    assert error["message"] in err


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (SpecError("wrong"), 2, "headworks: wrong\n"),
        (JobError("failed"), 1, "headworks: failed\n"),
        (CorruptionError("damaged"), 1, "headworks: damaged\n"),
        (exits.Stopped("stopped. Kept: all."), 130, "headworks: stopped. Kept: all.\n"),
        (KeyboardInterrupt(), 130, "headworks: stopped\n"),
        (ZeroDivisionError("x"), 1, "This is a defect of Headworks"),
        (click.UsageError("bad option"), 2, "headworks: bad option\n"),
    ],
)
def test_exit_codes(capsys: pytest.CaptureFixture[str], raised: BaseException, code: int, message: str) -> None:
    def action() -> None:
        raise raised

    assert exits.guarded(action, debug=False, as_json=False) == code
    said = capsys.readouterr()
    assert message in said.err
    assert "Traceback" not in said.err
    assert exits.guarded(action, debug=True, as_json=False) == code
    assert "Traceback" in capsys.readouterr().err
    assert exits.guarded(action, debug=True, as_json=False, mistakes=False) == code
    assert ("Traceback" in capsys.readouterr().err) == (code == 1)


def test_a_signal_stops_with_a_word_on_what_is_kept() -> None:
    before = signal.getsignal(signal.SIGTERM)
    for number in (signal.SIGINT, signal.SIGTERM):
        timer = threading.Timer(0.3, os.kill, (os.getpid(), number))
        timer.start()
        with pytest.raises(exits.Stopped, match="all is kept"), exits.stoppable(lambda: "all is kept"):
            time.sleep(10)
        timer.join()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_store_is_shown_and_verified(headworks: Run, store_url: str) -> None:
    code, out, _ = headworks("store", "info", store_url)
    assert code == 0
    assert "128 in 2 units of 64" in out
    assert "resid" in out
    facts = json.loads(headworks("store", "info", store_url, "--json")[1])
    assert facts["is_complete"]
    assert facts["hook_points"]["resid"]["rows"] == 128

    assert headworks("store", "verify", store_url)[0] == 0
    shard = Path(store_url, "activations/resid/c/1/0")
    content = bytearray(shard.read_bytes())
    content[40] ^= 1
    shard.write_bytes(content)
    code, out, _ = headworks("store", "verify", store_url, "--json")
    assert code == 1
    assert "activations/resid/c/1/0" in str(json.loads(out)["problems"])
    assert headworks("store", "verify", "--quick", store_url)[0] == 0
    shard.unlink()
    assert headworks("store", "verify", "--quick", store_url)[0] == 1


def test_dictionaries_are_shown_one_or_all(headworks: Run, tmp_path: Path) -> None:
    for name in ("sae", "other"):
        record = DictionaryRecord(
            spec=DictionarySpec(name=name, sources=["resid"], num_latents=64), d_source={"resid": 8},
            d_target={"resid": 8}, scales={"resid": 1.0}, store_fingerprint="s", table_fingerprint="t", model={},
            train_spec={}, steps=7, tokens=700, metrics={"fvu": 0.25}, versions={},
        )  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "dictionary.json").write_text(record.model_dump_json())
    code, out, _ = headworks("dictionary", "info", str(tmp_path / "sae"))
    assert code == 0
    assert "resid [8]" in out
    assert "fvu 0.25" in out
    both = json.loads(headworks("dictionary", "info", str(tmp_path), "--json")[1])
    assert {record["spec"]["name"] for record in both} == {"sae", "other"}


def test_the_schema_is_printed_whole_or_by_kind(headworks: Run) -> None:
    assert json.loads(headworks("schema")[1]) == reference.job_schema()
    train = json.loads(headworks("schema", "--kind", "train")[1])
    assert train["properties"]["kind"]["const"] == "train"
    assert "TopK" in train["$defs"]
    assert "CollectSpec" not in train["$defs"]


def test_the_version_is_that_of_the_package(headworks: Run) -> None:
    import headworks as face

    assert json.loads(headworks("version", "--json")[1])["headworks"] == face.__version__


def test_the_reference_in_the_docs_is_true() -> None:
    """Write it anew with ``headworks schema --markdown``."""
    text = (Path(__file__).parents[2] / "docs" / "job-specs.md").read_text("utf-8")
    assert reference.markdown().strip() in text


def test_errors_are_lines_of_json_without_secrets_where_the_log_is_json() -> None:
    script = "import sys; from deploy.cli import main; main(sys.argv[1:])"
    words = ["store", "info", "s3://KEY:SECRET@bucket/store"]
    environment = os.environ | {"HEADWORKS_LOG": "json"}
    done = subprocess.run(
        [sys.executable, "-c", script, *words], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == exits.USER_ERROR
    (line,) = [json.loads(each) for each in done.stderr.splitlines()]
    assert (line["level"], line["error"]) == ("error", "SpecError")
    assert "SECRET" not in done.stderr + done.stdout
