"""The command line. Commands parse, call one function of the layer below, and show its result.

Nothing heavy is imported before a command needs it, so that ``headworks --help`` answers at once.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any

import click

from deploy import show
from deploy.dictionary_commands import dictionary
from deploy.exits import guarded, stoppable
from deploy.job_commands import jobs, submit
from deploy.options import json_option, set_option
from deploy.plan_command import plan
from deploy.render_command import render
from deploy.serve_command import serve
from deploy.store_commands import store
from deploy.token_commands import audit, tokens
from deploy.train_command import train
from pipeline.logs import configure, progress_stream

_KINDS = ("train_model", "collect", "shuffle", "train", "evaluate", "interpret", "circuit", "pipeline")


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script ``headworks``; ends the interpreter with one of the codes of ``deploy.exits``."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    configure()
    code = guarded(
        lambda: cli.main(words, prog_name="headworks", standalone_mode=False),
        debug="--debug" in words,
        as_json="--json" in words,
    )
    sys.exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--debug", is_flag=True, help="Show where an error happened.")
def cli(debug: bool) -> None:
    """Collect activations, train sparse dictionaries on them, evaluate them: on a laptop or on a Ray cluster."""
    if debug:
        logging.getLogger().setLevel(logging.INFO)


@cli.command()
@click.argument("spec", type=click.Path())
@set_option
@click.option(
    "--address", default=None, help="A running Ray (HOST:6379, ray://HOST:10001, auto); none: start one here."
)
@json_option
def run(spec: str, overrides: tuple[str, ...], address: str | None, as_json: bool) -> None:
    """Run the job of a YAML file and wait for it.

    What an earlier run of the same job has finished is not computed again.
    """
    from pipeline.spec_file import load_job

    job = load_job(spec, overrides)
    with stoppable(lambda: _kept(job)):
        from workers.progress import Progress
        from workers.run import run_job

        summary = run_job(job, address=address, progress=Progress(progress_stream()))
    show.emit(summary, show.summary_lines(summary), as_json=as_json)


def _kept(job: Any) -> str:
    outputs = ", ".join(each.output for each in getattr(job, "jobs", [job]))
    return (
        f"stopped. Kept: every committed unit, the last checkpoint and everything that was finished, in {outputs}. "
        "The same command goes on from there."
    )


@cli.command()
@click.option("--kind", type=click.Choice(_KINDS), default=None, help="One kind of job only.")
@click.option("--markdown", is_flag=True, help="Tables to read instead of JSON Schema.")
@json_option
def schema(kind: str | None, markdown: bool, as_json: bool) -> None:
    """JSON Schema of the job specs, for editors."""
    from deploy import reference

    if markdown and not as_json:
        click.echo(reference.markdown())
        return
    show.emit(reference.kind_schema(kind) if kind else reference.job_schema(), [], as_json=True)


cli.add_command(submit)
cli.add_command(jobs)
cli.add_command(serve)
cli.add_command(store)
cli.add_command(plan)
cli.add_command(render)
cli.add_command(train)
cli.add_command(dictionary)
cli.add_command(tokens)
cli.add_command(audit)


@cli.command()
@json_option
def version(as_json: bool) -> None:
    """Versions of Headworks and of what it stands on."""
    from schemas.versions import versions

    facts = versions()
    show.emit(facts, show.pairs(facts), as_json=as_json)
