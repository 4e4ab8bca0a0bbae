"""``headworks render``."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from deploy import show
from deploy.options import json_option, set_option
from schemas.rendering import Target


@click.command()
@click.argument("spec", type=click.Path(), required=False)
@click.option("--target", type=click.Choice(get_args(Target)), required=True, help="What to write.")
@set_option
@click.option("--settings", type=click.Path(), default=None, help="YAML file: what a job does not know of its cluster.")
@click.option(
    "--setting", "changes", multiple=True, metavar="PATH=VALUE",
    help="Override a field of the settings, for example kubernetes.namespace=lab. May be given again.",
)  # fmt: skip
@click.option("--name", default=None, help="Name of the cluster; none: the job's.")
@click.option("--image", default=None, help="Container image that has Headworks.")
@click.option("--nodes", type=int, default=None, help="Machines with workers; none: as many as the job's fill.")
@click.option("-o", "--output", type=click.Path(), default=None, help="Folder for the file; none: write it to stdout.")
@json_option
def render(
    spec: str | None, target: Target, overrides: tuple[str, ...], settings: str | None, changes: tuple[str, ...],
    name: str | None, image: str | None, nodes: int | None, output: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Write a cluster file for the job of a YAML file: what its workers take, in the cluster's own words.

    Targets docker and compose need no job.
    """
    from deploy.rendering.settings import read_settings
    from deploy.rendering.targets import rendered
    from pipeline.spec_file import load_job

    known = read_settings(settings, changes, {"name": name, "image": image, "nodes": nodes})
    file_name, text = rendered(load_job(spec, overrides) if spec is not None else None, known, target)
    path = Path(output, file_name) if output is not None else None
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    lines = [f"wrote {path}"] if path is not None else text.splitlines()
    show.emit({"name": file_name, "path": path and str(path), "text": text}, lines, as_json=as_json)
