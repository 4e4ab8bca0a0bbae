"""``headworks plan``."""

from __future__ import annotations

import click

from deploy import show
from deploy.options import json_option, set_option


@click.command()
@click.argument("spec", type=click.Path())
@set_option
@click.option("--prices", type=click.Path(), default=None, help="YAML file with prices, rates and limits.")
@click.option("--tokens-per-s", type=click.FloatRange(0, min_open=True), default=None, help="Rate of collecting.")
@click.option(
    "--flop-per-s", type=click.FloatRange(0, min_open=True), default=None, help="What one device really reaches."
)
@click.option("--measure", is_flag=True, help="Where no rate is given, run the model on this machine for some seconds.")
@json_option
def plan(
    spec: str, overrides: tuple[str, ...], prices: str | None, tokens_per_s: float | None, flop_per_s: float | None,
    measure: bool, as_json: bool,
) -> None:  # fmt: skip
    """Say what the job of a YAML file will make, take and cost; nothing is written.

    Exit code 2 if it does not fit the target's free space, its quota, or the memory.
    """
    from deploy import planning
    from pipeline.spec_file import load_job

    job = load_job(spec, overrides)
    found = planning.plan(job, prices, tokens_per_s=tokens_per_s, flop_per_s=flop_per_s, measured=measure)
    show.emit(found.model_dump(mode="json"), planning.lines(found), as_json=as_json)
