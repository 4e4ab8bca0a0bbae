"""``headworks serve``."""

from __future__ import annotations

import click

from deploy.options import json_option
from schemas.errors import MissingError


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8470, show_default=True, help="Port; 0: any free one.")
@click.option("--config", type=click.Path(), default=None, help="YAML file with the settings.")
@click.option(
    "--database", envvar="HEADWORKS_DATABASE", default=None, help="sqlite:///FILE or postgresql://USER@HOST/NAME."
)
@json_option
def serve(host: str, port: int, config: str | None, database: str | None, as_json: bool) -> None:
    """Answer over HTTP: submit, watch and stop jobs on the clusters of the settings, find stores and dictionaries.

    Goes on until it is stopped. Jobs that were accepted are never forgotten, however it ends.
    """
    try:
        from deploy.service import main
    except ModuleNotFoundError as error:
        raise MissingError(f"{error}; install the extra: pip install 'headworks[service]'") from error

    main.serve(host, port, config, database, as_json=as_json)
