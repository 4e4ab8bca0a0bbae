"""The service with a certificate of its own, behind a proxy that says whom it speaks for: a real process."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.service.access import Role, Tokens
from deploy.service.audit import Audit
from deploy.service.database import open_database
from deploy.service.main import _tls
from deploy.service.settings import Settings, TlsSettings, read_settings
from schemas.errors import SpecError

OPENSSL = shutil.which("openssl")
pytestmark = pytest.mark.skipif(OPENSSL is None, reason="makes its certificate with openssl")


@pytest.fixture
def certificate(tmp_path: Path) -> TlsSettings:
    tls = TlsSettings(certificate_file=f"{tmp_path}/cert.pem", key_file=f"{tmp_path}/key.pem")
    subprocess.run(
        [str(OPENSSL), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "2", "-subj", "/CN=service", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", tls.key_file,
         "-out", tls.certificate_file],
        check=True, capture_output=True,
    )  # fmt: skip
    return tls


@pytest.fixture
def address(tmp_path: Path, certificate: TlsSettings) -> Iterator[str]:
    """Of a service that trusts a proxy on this machine."""
    (tmp_path / "policy.yaml").write_text("teams: {lab: {}}")
    facts: dict[str, Any] = {
        "clusters": {"a": {"address": "http://127.0.0.1:9"}}, "database": f"sqlite:///{tmp_path}/db",
        "policy": f"{tmp_path}/policy.yaml", "tls": certificate.model_dump(), "proxies": ["127.0.0.1"],
    }  # fmt: skip
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(facts))
    command = [str(Path(sys.executable).with_name("headworks")), "serve", "--config", str(tmp_path / "serve.yaml")]
    with subprocess.Popen([*command, "--port", "0", "--json"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = json.loads(process.stdout.readline())["address"]
            _wait_for(int(found.rpartition(":")[2]))
            yield found
        finally:
            process.terminate()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return


@pytest.mark.slow
def test_requests_are_encrypted_and_the_audit_log_names_the_client_behind_the_proxy(
    address: str, certificate: TlsSettings, tmp_path: Path
) -> None:
    assert address.startswith("https://127.0.0.1:")
    trusting = ssl.create_default_context(cafile=certificate.certificate_file)
    with urllib.request.urlopen(f"{address}/healthz", context=trusting, timeout=20) as answer:
        assert answer.status == 200
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.urlopen(f"{address}/healthz", timeout=20)
    with pytest.raises(OSError, match=r"\w"):
        urllib.request.urlopen(address.replace("https", "http") + "/healthz", timeout=20)

    engine = open_database(f"sqlite:///{tmp_path}/db")
    secret = Tokens(engine).create("ann", Role.SUBMITTER, "lab")
    spec = {"kind": "evaluate", "store": "/etc", "dictionaries": "/etc", "output": "/etc/x"}
    refused = urllib.request.Request(
        f"{address}/api/v1/jobs", json.dumps({"spec": spec}).encode(),
        {"Authorization": f"Bearer {secret}", "Content-Type": "application/json", "X-Forwarded-For": "192.0.2.7"},
    )  # fmt: skip
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(refused, context=trusting, timeout=20)
    assert caught.value.code == 403
    caught.value.close()
    record = Audit(engine).read()[0]
    assert (record.principal, record.outcome, record.address) == ("ann", "denied", "192.0.2.7")
    engine.dispose()


def test_a_certificate_that_does_not_fit_is_refused_before_anything_listens(
    certificate: TlsSettings, tmp_path: Path
) -> None:
    def options(**changed: str) -> dict[str, Any]:
        tls = certificate.model_copy(update=changed)
        return _tls(Settings.model_validate({"tls": tls.model_dump()}))

    assert options() == {"ssl_certfile": certificate.certificate_file, "ssl_keyfile": certificate.key_file}
    assert _tls(Settings.model_validate({})) == {}
    for changed in ({"key_file": f"{tmp_path}/none"}, {"certificate_file": certificate.key_file}):
        with pytest.raises(SpecError, match="tls: "):
            options(**changed)


def test_proxies_are_addresses(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("proxies: [10.0.0.0/8, '::1']")
    assert read_settings(tmp_path / "x.yaml").proxies == ["10.0.0.0/8", "::1/128"]
    for wrong in ("'*'", "proxy.example.org"):
        (tmp_path / "x.yaml").write_text(f"proxies: [{wrong}]")
        with pytest.raises(SpecError, match="proxies"):
            read_settings(tmp_path / "x.yaml")
