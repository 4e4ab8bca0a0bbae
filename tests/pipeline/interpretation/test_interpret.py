"""The whole job on latents whose meaning is known, with each explainer."""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.evaluation.evaluate import evaluate
from pipeline.interpretation.interpret import interpret
from schemas.errors import MismatchError, MissingError, SpecError
from schemas.evaluate import EvaluateSpec
from schemas.interpret import CHAT_KEY, InterpretSpec

LETTERS = "abcdefgh "
KEY = "sk-never-to-be-seen-0123456789"


def spec_of(planted: Any, output: Path, **changes: Any) -> InterpretSpec:
    facts = {
        "store": planted.store,
        "dictionaries": planted.dictionaries,
        "latents": list(range(11)),
        "rows": 100_000,
        "context_tokens": 6,
        "explained_examples": 8,
        "scored_examples": 20,
        "quantiles": 4,
        "output": str(output),
    }
    return InterpretSpec.model_validate(facts | changes)


def test_tokens_explain_latents_of_one_letter(planted: Any, tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    spec = spec_of(planted, tmp_path)
    result = interpret(spec, progress=told.append)
    found = result["dictionaries"]["letters"]
    # The latents that are on everywhere and nowhere cannot be scored.
    assert (found["num_explained"], found["num_left_out"]) == (9, 2)
    for one, letter in zip(found["latents"], LETTERS, strict=True):
        assert one["explanation"].startswith(f"on for {letter!r} (")
        assert one["explanation"].endswith("100% of its activation")
        assert one["scores"]["detection"]["accuracy"] == one["scores"]["fuzzing"]["accuracy"] == 1.0
        assert one["scores"]["detection"]["recall_by_quantile"] == [1.0] * 4
        # The shrunk means of tokens that were seen a few times only are not quite zero.
        assert one["scores"]["simulation"]["random"] > 0.98
    controls = found["controls"]
    assert abs(controls["dealt_out"]["detection"]["accuracy"] - 0.5) < 0.15
    assert abs(controls["another_latent"]["fuzzing"]["accuracy"] - 0.5) < 0.15
    assert abs(controls["another_latent"]["simulation"]["random"]) < 0.25
    table = pq.read_table(io.BytesIO((tmp_path / "letters.explanations.parquet").read_bytes()))
    assert table["latent"].to_pylist() == list(range(9))
    assert table["detection_f1"].to_pylist() == [1.0] * 9
    assert [one["stage"] for one in told][-1] == "scoring letters"
    assert (told[-1]["done"], told[-1]["total"]) == (9, 9)


def test_the_same_job_does_nothing_and_gives_the_same_bytes_elsewhere(planted: Any, tmp_path: Path) -> None:
    first, told = interpret(spec_of(planted, tmp_path / "a")), list[Any]()
    assert interpret(spec_of(planted, tmp_path / "a"), progress=told.append) == first
    assert not told
    interpret(spec_of(planted, tmp_path / "b"))
    for name in ("interpretation.json", "letters.explanations.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    # Fewer latents: the same choices for each of them.
    fewer = interpret(spec_of(planted, tmp_path / "c", latents=[3, 5]))["dictionaries"]["letters"]["latents"]
    assert [one["scores"] for one in fewer] == [
        first["dictionaries"]["letters"]["latents"][i]["scores"] for i in (3, 5)
    ]


def test_an_evaluation_shows_the_explanations(planted: Any, tmp_path: Path) -> None:
    interpret(spec_of(planted, tmp_path / "i", latents=[2, 6]))
    facts = {
        "store": planted.store, "dictionaries": planted.dictionaries, "interpretation": f"{tmp_path}/i", "rows": "all",
        "cross_entropy_tokens": 0, "report": {"rows": 2000}, "output": f"{tmp_path}/e",
    }  # fmt: skip
    evaluation = evaluate(EvaluateSpec.model_validate(facts))
    # The page names these scores, so it says what they are.
    assert {"FVU", "Detection", "Fuzzing", "Simulation"} <= evaluation["definitions"].keys()
    figures = evaluation["dictionaries"]["letters"]["interpretation"]
    assert (figures["explainer"], figures["num_explained"]) == ("tokens", 2)
    assert figures["mean"]["detection"]["accuracy"] == 1.0
    page = (tmp_path / "e" / "report.html").read_text()
    shown = json.loads(page.split('id="data">')[1].split("</script>")[0])["dictionaries"][0]["features"]
    assert {one["latent"]: one["explanation"][:10] for one in shown} == {2: "on for 'c'", 6: "on for 'g'"}
    assert shown[0]["scores"][0] == ["detection", "1.00"]
    # An interpretation of other weights is refused, one that is not there, too.
    result = json.loads((tmp_path / "i" / "interpretation.json").read_text())
    result["identity"]["dictionaries"]["letters"] = "0" * 64
    (tmp_path / "i" / "interpretation.json").write_text(json.dumps(result))
    with pytest.raises(MismatchError, match="other weights of dictionary 'letters'"):
        evaluate(EvaluateSpec.model_validate(facts | {"output": f"{tmp_path}/f"}))
    with pytest.raises(MissingError, match=r"no interpretation\.json"):
        evaluate(EvaluateSpec.model_validate(facts | {"interpretation": f"{tmp_path}/none"}))


def test_latents_are_chosen_over_the_range_of_densities(planted: Any, tmp_path: Path) -> None:
    found = interpret(spec_of(planted, tmp_path, latents=[], num_latents=4))["dictionaries"]["letters"]
    fired = [one["fired"] for one in found["latents"]]
    assert fired == sorted(fired)
    assert found["num_explained"] + found["num_left_out"] == 4


def test_logits_name_the_tokens_that_a_decoder_row_promotes(planted: Any, tmp_path: Path) -> None:
    """Input and output embeddings of the random model have nothing in common, so the scores are chance."""
    spec = spec_of(planted, tmp_path, explainer={"kind": "logits", "num_tokens": 3})
    found = interpret(spec)["dictionaries"]["letters"]
    assert set(found["controls"]) == {"another_latent"}
    for one in found["latents"]:
        assert len(one["tokens"]) == 3
        assert one["tokens"][0]["logit"] > 1.5
    assert abs(found["mean"]["detection"]["accuracy"] - 0.5) < 0.2


def test_a_latent_that_is_not_there_is_refused(planted: Any, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"latents names \[11\].*has latents 0 to 10"):
        interpret(spec_of(planted, tmp_path, latents=[11]))


def test_too_little_text_is_refused(planted: Any, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"20 rows give 3 windows .* 0 others .* raise rows"):
        interpret(spec_of(planted, tmp_path, rows=20))


def test_another_model_is_refused(planted: Any, tmp_path: Path) -> None:
    folder = tmp_path / "dictionaries" / "letters"
    folder.mkdir(parents=True)
    for path in Path(planted.dictionaries, "letters").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    record = json.loads((folder / "dictionary.json").read_text())
    record["model"]["weights"] = "0" * 64
    (folder / "dictionary.json").write_text(json.dumps(record))
    with pytest.raises(MismatchError, match="'letters'"):
        interpret(spec_of(planted, tmp_path, dictionaries=str(tmp_path / "dictionaries")))


class Letters(BaseHTTPRequestHandler):
    """Answers as a model would that knows letters: it explains by the marked one and judges by the explained one."""

    requests: list[tuple[str, dict[str, Any]]]

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append((self.headers.get("Authorization", ""), question))
        instruction, text = (message["content"] for message in question["messages"])
        busy = len(self.requests) == 1
        answer = {"choices": [{"message": {"role": "assistant", "content": self.answer(instruction, text)}}]}
        body = b"one moment" if busy else json.dumps(answer).encode()
        self.send_response(503 if busy else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer(self, instruction: str, text: str) -> str:
        if "study" in instruction:
            marked = re.findall(r"<<(.).*?>>", text)
            return f"They share it.\n[EXPLANATION]: the letter {max(sorted(set(marked)), key=marked.count)!r}"
        letter = re.search(r"the letter '(.)'", text)
        assert letter
        pieces = re.findall(r"^\d+\. (.*)$", text, re.MULTILINE)
        wanted = f"<<{letter[1]}" if "<<" in instruction else letter[1]
        return f"Here: {[int(wanted in piece) for piece in pieces]}"

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, list[tuple[str, dict[str, Any]]]]]:
    handler = type("Handler", (Letters,), {"requests": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/v1", handler.requests
        running.shutdown()
        thread.join()


def test_a_model_behind_an_address_explains_and_judges(
    planted: Any, tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, requests = server
    monkeypatch.setenv(CHAT_KEY, KEY)
    asked = {"kind": "chat", "url": url, "model": "letters-1", "examples_per_question": 6}
    spec = spec_of(planted, tmp_path, explainer=asked, latents=[0, 4], fuzzing="activating")
    result = interpret(spec)
    found = result["dictionaries"]["letters"]
    for one, letter in zip(found["latents"], "ae", strict=True):
        assert one["explanation"] == f"the letter {letter!r}"
        assert one["scores"]["detection"]["accuracy"] == one["scores"]["fuzzing"]["accuracy"] == 1.0
        assert one["scores"]["simulation"] is None
        assert one["controls"]["another_latent"]["detection"]["accuracy"] < 0.8
    assert found["mean"]["simulation"] == {"top_and_random": None, "random": None}
    assert {key for key, _ in requests} == {f"Bearer {KEY}"}
    assert {question["model"] for _, question in requests} == {"letters-1"}
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY.encode() not in written
