"""What the operator of a service decides: the file of ``headworks serve --config``."""

from __future__ import annotations

import ipaddress
import os
from typing import Annotated

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt

from pipeline.spec_file import read_yaml
from schemas.fields import Name, Spec, require_no_credentials


def _http(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ValueError("expected the URL of the cluster's dashboard, as http://HOST:8265")
    return require_no_credentials(url).rstrip("/")


class ClusterSettings(Spec):
    """A cluster that jobs are handed to."""

    address: Annotated[str, AfterValidator(_http)]
    """URL of its dashboard, ``http://HOST:8265``; ``https`` behind a proxy with TLS."""
    token_file: str = ""
    """File with the cluster's own token (``ray get-auth-token``); empty: what Ray finds in this process's environment
    (``RAY_AUTH_TOKEN``, ``RAY_AUTH_TOKEN_PATH``, ``~/.ray/auth_token``)."""
    ca_file: str = ""
    """Certificates to trust, in PEM; empty: those of the system."""


def _local() -> dict[str, ClusterSettings]:
    return {"local": ClusterSettings(address="http://127.0.0.1:8265")}


class LimitSettings(Spec):
    """How much one client may ask; each process counts by itself."""

    body_bytes: PositiveInt = 4 * 2**20
    """Of one request."""
    per_minute: PositiveInt = 600
    """Requests of one token."""
    address_per_minute: PositiveInt = 3000
    """Requests of one address, whatever tokens they carry."""
    streams: PositiveInt = 200
    """Logs that are followed at a time."""
    streams_of_one: PositiveInt = 60
    """Of these, by one token."""


class TlsSettings(Spec):
    """The service's own certificate; without it, it speaks plain HTTP, for a proxy on the same machine."""

    certificate_file: str
    """Certificate and those that vouch for it, in PEM."""
    key_file: str
    """Its private key, in PEM, without a password."""


def _address(text: str) -> str:
    return str(ipaddress.ip_network(text))


class Settings(Spec):
    """The settings of ``headworks serve``."""

    clusters: Annotated[dict[Name, ClusterSettings], Field(min_length=1, default_factory=_local)]
    """Name -> cluster; ``local``, the Ray of this machine, if none is given. The first takes jobs that name none."""
    database: str = "sqlite:///headworks.db"
    """``sqlite:///FILE`` or ``postgresql://USER@HOST/NAME``; the password of PostgreSQL comes from ``PGPASSWORD`` or
    ``~/.pgpass``."""
    poll_s: PositiveFloat = 2.0
    """How often each cluster with unfinished jobs is asked how they fare."""
    limits: LimitSettings = LimitSettings()
    """How much one client may ask."""
    tls: TlsSettings | None = None
    """The service's own certificate; None: plain HTTP."""
    proxies: list[Annotated[str, AfterValidator(_address)]] = Field(default_factory=list)
    """Addresses or networks of proxies whose ``X-Forwarded-For`` is believed: limits and the audit log then see the
    client behind them. None: nobody's."""
    policy: str = ""
    """File that says what each team may reach; needed as soon as there are tokens."""

    @property
    def default_cluster(self) -> str:
        """Of jobs that name none."""
        return next(iter(self.clusters))


def read_settings(path: str | os.PathLike[str]) -> Settings:
    """The YAML file of ``--config``.

    Raises:
        MissingError: there is none. SpecError: naming every wrong field.
    """
    return read_yaml(path, Settings, "settings")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
