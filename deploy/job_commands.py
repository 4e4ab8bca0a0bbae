"""``headworks submit`` and ``headworks jobs``: on a service, or on a cluster through Ray's own Jobs API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

from deploy import show
from deploy.exits import Stopped
from deploy.options import json_option, set_option

_DEFAULT = "http://127.0.0.1:8265"


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--service`` and ``--address``; the first that is given on the command line wins, then the variables."""
    command = click.option(
        "--address",
        envvar="RAY_API_SERVER_ADDRESS",
        default=_DEFAULT,
        show_default=True,
        help="URL of a cluster's dashboard, or of a service.",
    )(command)
    return click.option(
        "--service", envvar="HEADWORKS_SERVICE", default=None, help="URL of a Headworks service; needs a token."
    )(command)


def _target(address: str, service: str | None) -> tuple[Any, str, str]:
    """``(deploy.client or deploy.submission, address, how to name it on a command line)``."""
    from deploy import client, submission

    context = click.get_current_context()
    is_named = context.get_parameter_source("address") is ParameterSource.COMMANDLINE
    if is_named and context.get_parameter_source("service") is ParameterSource.COMMANDLINE:
        raise click.UsageError("give --service or --address, not both", context)
    if service and not is_named:
        return client, service, f"--service {service}"
    if is_named and address.startswith(("http://", "https://")) and client.is_service(address):
        return client, address, f"--service {address}"
    return submission, address, f"--address {address}"


@click.command()
@click.argument("spec", type=click.Path())
@set_option
@target_options
@click.option("--cluster", default=None, help="Name of one of the service's clusters; none: its first.")
@click.option(
    "--attempt", type=click.IntRange(0), default=None, help="Number of this attempt; none: the next free one."
)
@click.option(
    "--follow/--no-wait", default=False, help="Show the job's log until it ends, or return at once (default)."
)
@json_option
def submit(
    spec: str, overrides: tuple[str, ...], address: str, service: str | None, cluster: str | None,
    attempt: int | None, follow: bool, as_json: bool,
) -> None:  # fmt: skip
    """Hand the job of a YAML file to a service, or to a cluster that has Headworks installed."""
    from deploy import client
    from pipeline.spec_file import load_job

    loaded = load_job(spec, overrides)
    api, url, _ = target = _target(address, service)
    if api is client:
        job = client.submit(loaded, url, attempt=attempt, cluster=cluster)
    elif cluster is None:
        job = api.submit(loaded, url, attempt=attempt)
    else:
        raise click.UsageError("--cluster names a cluster of a service; give --service", click.get_current_context())
    if not follow:
        show.emit(job.facts(), [f"submitted as {job.id}"], as_json=as_json)
        return
    click.echo(f"submitted as {job.id}", err=True)
    _follow(job.id, target, as_json=as_json)


def _follow(identifier: str, target: tuple[Any, str, str], *, as_json: bool) -> None:
    """Log on stdout, or on stderr where stdout is for JSON."""
    api, url, option = target
    try:
        job = api.follow(identifier, url, lambda text: click.echo(text, nl=False, err=as_json))
    except KeyboardInterrupt:
        raise Stopped(
            f"no longer watching; {identifier} goes on. `headworks jobs stop {identifier} {option}` ends it"
        ) from None
    show.emit(job.facts(), [f"{job.id}: {job.status}"], as_json=as_json)


@click.group()
def jobs() -> None:
    """Jobs of a service, or on a cluster."""


@jobs.command("list")
@target_options
@json_option
def list_jobs(address: str, service: str | None, as_json: bool) -> None:
    """All jobs of Headworks, newest first."""
    api, url, _ = _target(address, service)
    rows = [job.facts() for job in api.jobs(url)]
    columns = ("id", "kind", "status", "started", "ended")
    show.emit(rows, show.table(rows, columns) if rows else ["no jobs"], as_json=as_json)


@jobs.command()
@click.argument("job")
@target_options
@json_option
def status(job: str, address: str, service: str | None, as_json: bool) -> None:
    """One job."""
    api, url, _ = _target(address, service)
    facts = api.status(job, url).facts()
    shown = {name: value for name, value in facts.items() if name != "tasks"}
    progress = [show.task_line(task) for task in facts.get("tasks", ())]
    show.emit(facts, [*show.pairs(shown), *progress], as_json=as_json)


@jobs.command()
@click.argument("job")
@target_options
@click.option("--follow", is_flag=True, help="Go on until the job ends; exit code 1 if it fails.")
@json_option
def logs(job: str, address: str, service: str | None, follow: bool, as_json: bool) -> None:
    """What a job has written."""
    target = _target(address, service)
    if follow:
        _follow(job, target, as_json=as_json)
        return
    api, url, _ = target
    text = api.logs(job, url)
    show.emit({"id": job, "logs": text}, text.splitlines(), as_json=as_json)


@jobs.command()
@click.argument("job")
@target_options
@json_option
def stop(job: str, address: str, service: str | None, as_json: bool) -> None:
    """Stop a job; what it has committed is kept."""
    api, url, _ = _target(address, service)
    stopped = api.stop(job, url)
    words = f"{job} is stopping" if stopped else f"{job} had ended already"
    show.emit({"id": job, "stopped": stopped}, [words], as_json=as_json)


@jobs.command()
@click.argument("job")
@target_options
@json_option
def retry(job: str, address: str, service: str | None, as_json: bool) -> None:
    """A further attempt of a job of a service that has ended; it goes on from what was committed."""
    from deploy import client

    api, url, _ = _target(address, service)
    if api is not client:
        raise click.UsageError(
            "a cluster keeps no specs: submit the spec again, or give --service", click.get_current_context()
        )
    again = client.retry(job, url)
    show.emit(again.facts(), [f"submitted as {again.id}"], as_json=as_json)
