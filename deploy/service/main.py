"""The process of ``headworks serve``."""

from __future__ import annotations

import json
import logging
import socket
import ssl
from typing import Any

import click
import uvicorn

from deploy.service.app import build_service, create_app, require_guarded
from deploy.service.settings import Settings, read_settings
from pipeline import logs
from schemas.errors import SpecError, UserError


def serve(host: str, port: int, config: str | None, database: str | None, *, as_json: bool) -> None:
    """Listen until SIGINT or SIGTERM; a line on stdout says where.

    Raises:
        UserError: the settings are wrong, the database does not open, the port is taken, or strangers could come in.
    """
    settings = read_settings(config) if config else Settings.model_validate({})
    if database:
        settings = settings.model_copy(update={"database": database})
    tls = _tls(settings)
    service = build_service(settings)
    require_guarded(service, host)
    listening = _listen(host, port)
    scheme = "https" if settings.tls else "http"
    address = f"{scheme}://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    click.echo(json.dumps({"address": address}) if as_json else f"listening on {address}")
    if service.policy is None:
        logging.getLogger(__name__).warning(
            "no tokens and no policy: whoever is on this machine may do everything, nobody else anything"
        )
    configured = uvicorn.Config(
        create_app(service), log_config=None, access_log=logs.wants_json(), server_header=False,
        proxy_headers=bool(settings.proxies), forwarded_allow_ips=settings.proxies, timeout_graceful_shutdown=5,
        **tls,
    )  # fmt: skip
    uvicorn.Server(configured).run(sockets=[listening])


def _tls(settings: Settings) -> dict[str, Any]:
    """Options of uvicorn.

    Raises:
        SpecError: no certificate and key that belong together are there.
    """
    if settings.tls is None:
        return {}
    certificate, key = settings.tls.certificate_file, settings.tls.key_file
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:
        raise SpecError(
            f"tls: {certificate} and {key} are no certificate and its key in PEM, without a password: {error}"
        ) from error
    return {"ssl_certfile": certificate, "ssl_keyfile": key}


def _listen(host: str, port: int) -> socket.socket:
    """Bound here, and not by uvicorn, so that port 0 can be told and a taken one is a message."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named, or asyncio leaves Nagle's algorithm on: answers would wait 40 ms for an acknowledgement.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise UserError(f"cannot listen on {host} port {port}: {error.strerror}; give another --port") from error
    return listening
