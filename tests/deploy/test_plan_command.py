"""``headworks plan`` as users type it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline/collection"))

from small_job import HOOKS, save_corpus, save_model, small_spec

from deploy.cli import main
from schemas.plan import PlanAssumptions

PRICES = {
    "prices": {"currency": "EUR", "storage_gb_month": 0.02, "put_thousand": 0.005, "get_thousand": 0.0004}
    | {"egress_gb": 0.0, "device_hour": 3.0},
    "rates": {"num_devices": 2},
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("parts")
    return save_model(folder / "model"), save_corpus(folder / "corpus")


@pytest.fixture
def job(parts: tuple[Path, Path], tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(small_spec(*parts, tmp_path / "out/store").model_dump(mode="json")))
    return path


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["plan", *map(str, words)])
    return int(ended.value.code or 0)


def written(folder: Path, facts: dict[str, Any]) -> Path:
    path = folder / "prices.yaml"
    path.write_text(yaml.safe_dump(facts))
    return path


def test_in_words_and_as_json(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prices = written(tmp_path, PRICES)
    assert run(job, "--prices", prices, "--tokens-per-s", 5) == 0
    said = capsys.readouterr().out
    for words in ("rows:", "estimated", HOOKS[0], "PUT", "5 tokens/s (given)", "EUR", "passes over the rows"):
        assert words in said
    assert run(job, "--prices", prices, "--tokens-per-s", 5, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["jobs"][0]["time"]["basis"] == "given"
    assert found["money"] > 0
    assert not (tmp_path / "out").exists()


def test_without_prices_or_rates_there_is_no_money(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(job, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["money"], found["hours"], found["jobs"][0]["reuse"]) == (None, None, None)


def test_what_exceeds_the_quota_is_refused(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(job, "--set", "retention.quota=1KiB") == 2
    said = capsys.readouterr().err
    assert "retention.quota is 1 KiB" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"prices": {"storage_gb_mont": 1}}, "prices.storage_gb_mont"),
        ({"prices": {"device_hour": -3}}, "prices.device_hour"),
        ({"limits": {"memory": "much"}}, "limits.memory"),
    ],
)
def test_prices_are_checked(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], facts: dict[str, Any], message: str
) -> None:
    assert run(job, "--prices", written(tmp_path, facts)) == 2
    assert message in capsys.readouterr().err


def test_the_prices_of_the_docs_are_prices() -> None:
    text = (Path(__file__).parents[2] / "docs/operations.md").read_text("utf-8")
    block = text.split("# prices.yaml;", 1)[1].split("```", 1)[0].split("\n", 1)[1]
    found = PlanAssumptions.model_validate(yaml.safe_load(block))
    assert found.prices.currency == "EUR"
    assert found.limits.ranks_per_node == 1
