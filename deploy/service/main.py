"""The process of ``headworks serve``."""

from __future__ import annotations

import json
import logging
import socket

import click
import uvicorn

from deploy.service.app import build_service, create_app, require_guarded
from deploy.service.settings import Settings, read_settings
from pipeline import logs
from schemas.errors import UserError


def serve(host: str, port: int, config: str | None, database: str | None, *, as_json: bool) -> None:
    """Listen until SIGINT or SIGTERM; a line on stdout says where.

    Raises:
        UserError: the settings are wrong, the database does not open, the port is taken, or strangers could come in.
    """
    settings = read_settings(config) if config else Settings.model_validate({})
    if database:
        settings = settings.model_copy(update={"database": database})
    service = build_service(settings)
    require_guarded(service, host)
    listening = _listen(host, port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    click.echo(json.dumps({"address": address}) if as_json else f"listening on {address}")
    if service.policy is None:
        logging.getLogger(__name__).warning(
            "no tokens and no policy: whoever is on this machine may do everything, nobody else anything"
        )
    configured = uvicorn.Config(
        create_app(service), log_config=None, access_log=logs.wants_json(), server_header=False, proxy_headers=False,
        timeout_graceful_shutdown=5,
    )  # fmt: skip
    uvicorn.Server(configured).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """Bound here, and not by uvicorn, so that port 0 can be told and a taken one is a message."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise UserError(f"cannot listen on {host} port {port}: {error.strerror}; give another --port") from error
    return listening
