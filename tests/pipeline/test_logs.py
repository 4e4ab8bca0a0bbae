"""Logs: machines can read every line, and secrets are in none."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest

from pipeline import logs


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("s3://KEY:SECRET@bucket/store is refused", "s3://***@bucket/store is refused"),
        ("redis://:hunter2hunter2@host:6379", "redis://***@host:6379"),
        (
            "GET https://b.s3.amazonaws.com/k?X-Amz-Credential=AK%2F1&X-Amz-Signature=deadbeef&partNumber=3 failed",
            "GET https://b.s3.amazonaws.com/k?X-Amz-Credential=***&X-Amz-Signature=***&partNumber=3 failed",
        ),
        ("https://host/a?token=abc#x", "https://host/a?token=***#x"),
        ("Authorization: Bearer abcdefgh.ijkl", "Authorization: Bearer ***"),
        (f"got hw_{'a1' * 6}_{'Z9' * 21}x.", "got hw_***."),
        (f"hf_{'aB3' * 11} was refused", "hf_*** was refused"),
        ("key AKIAIOSFODNN7EXAMPLE of ASIAIOSFODNN7EXAMPLE", "key AKIA*** of ASIA***"),
        ("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY x", "AWS_SECRET_ACCESS_KEY=*** x"),
        ('{"aws_session_token": "FwoGZXIvYXdz/abc+", "n": 1}', '{"aws_session_token": "***", "n": 1}'),
        ("password: hunter2hunter2, api_key='abcdefgh'", "password: ***, api_key='***'"),
        (f"ghp_{'x' * 36} and sk-{'y' * 40}", "ghp_*** and sk-***"),
        ("jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY.SflKxwRJSMeKKF2 end", "jwt eyJ*** end"),
        ("Authorization: Basic dXNlcjpwYXNz end", "Authorization: Basic *** end"),
        (
            "https://b.s3.amazonaws.com/k?AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Signature=a%2Bb&Expires=1",
            "https://b.s3.amazonaws.com/k?AWSAccessKeyId=***&Signature=***&Expires=1",
        ),
        ("postgresql://headworks:secret@db/headworks", "postgresql://***@db/headworks"),
        (
            "batch_tokens: 4096000, max_tokens=1000000, tokens: 123456789",
            "batch_tokens: 4096000, max_tokens=1000000, tokens: 123456789",
        ),
        (
            "the tokenizer: HuggingFaceTB/SmolLM2 and hf_model_name",
            "the tokenizer: HuggingFaceTB/SmolLM2 and hf_model_name",
        ),
        ("bos_token: '<|im_start|>', token: 1234567", "bos_token: '<|im_start|>', token: 1234567"),
        ("HF_TOKEN=abcdefgh x, my_db_password: 'hunter2hunter2'", "HF_TOKEN=*** x, my_db_password: '***'"),
        ("token_id: 123456789 of hw_a and sk-learn", "token_id: 123456789 of hw_a and sk-learn"),
        ("s3://bucket/a/blocks.9.hook_resid_post", "s3://bucket/a/blocks.9.hook_resid_post"),
        ("mail a@b.c about 3 keys", "mail a@b.c about 3 keys"),
    ],
)
def test_secrets_are_taken_out_of_text_and_nothing_else_is(text: str, wanted: str) -> None:
    assert logs.redacted(text) == wanted


def test_values_of_secret_variables_are_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh1234")
    monkeypatch.setenv("WANDB_API_KEY", "short")
    facts = {"a": ["x hf_abcdefgh1234", 3], "b": {"c": "hf_abcdefgh1234"}, "d": "short", "e": None}
    assert logs.redacted_facts(facts) == {"a": ["x ***", 3], "b": {"c": "***"}, "d": "short", "e": None}


def test_facts_named_like_secrets_are_hidden() -> None:
    facts = {
        "token": "abc",
        "x": {"Authorization": "abc", "api-key": "a", "tokens": "kept", "password": 3, "secret": ""},
    }
    hidden = {
        "token": "***",
        "x": {"Authorization": "***", "api-key": "***", "tokens": "kept", "password": 3, "secret": ""},
    }
    assert logs.redacted_facts(facts) == hidden


def test_a_record_is_one_line_of_json_with_its_facts() -> None:
    try:
        raise ValueError("at s3://KEY:SECRET@bucket")
    except ValueError:
        record = logging.getLogger("workers.x").makeRecord(
            "workers.x", logging.WARNING, __file__, 1, "two\nlines of %s", ("s3://K:S@b",), sys.exc_info(),
            extra={"facts": {"unit": 3, "place": "s3://K:S@b/c"}},
        )  # fmt: skip
    line = logs.JsonFormatter().format(record)
    assert "\n" not in line
    assert "SECRET" not in line
    found = json.loads(line)
    assert found["message"] == "two\nlines of s3://***@b"
    assert (found["level"], found["logger"], found["unit"], found["place"]) == (
        "warning",
        "workers.x",
        3,
        "s3://***@b/c",
    )
    assert found["traceback"].startswith("Traceback")


_PROCESS = """
import logging
from pipeline import logs
logs.configure()
logging.getLogger("workers.some").info("hidden")
logging.getLogger("workers.some").warning("s3://KEY:SECRET@bucket")
logging.getLogger("elsewhere").info("of others")
stream = logs.progress_stream()
print("one line", file=stream)
assert not stream.isatty()
"""


def _stderr(**environment: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", _PROCESS], env=environment, capture_output=True, text=True, check=True)
    return done.stderr.splitlines()


def test_a_process_logs_for_people_or_for_machines_as_its_environment_says() -> None:
    assert _stderr() == ["workers.some: s3://***@bucket", "one line"]
    lines = [json.loads(line) for line in _stderr(HEADWORKS_LOG="json")]
    assert [line["message"] for line in lines] == ["hidden", "s3://***@bucket", "one line"]
    assert [line["logger"] for line in lines] == ["workers.some", "workers.some", "workers.progress"]
