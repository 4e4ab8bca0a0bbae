"""``headworks store``: what can be asked of a store, and done to it, without a job spec."""

from __future__ import annotations

from functools import partial

import click

from deploy import show
from deploy.export_command import export
from deploy.options import json_option, places_options
from schemas.errors import SpecError


@click.group()
def store() -> None:
    """Activation stores."""


store.add_command(export)


@store.command("ls")
@click.argument("urls", nargs=-1, required=True, metavar="URL...")
@click.option("--model", default="", help="Part of the model's name, or the beginning of its weights' digest.")
@click.option("--corpus", default="", help="Part of the corpus's name, or the beginning of its token table's digest.")
@click.option("--hook-point", default="", help="A hook point, or a pattern such as 'blocks.*.hook_resid_post'.")
@click.option("--fingerprint", default="", metavar="PREFIX", help="The beginning of the store's fingerprint.")
@json_option
def list_stores(
    urls: tuple[str, ...], model: str, corpus: str, hook_point: str, fingerprint: str, as_json: bool
) -> None:
    """Every store at or below the URLs."""
    from deploy import keeping

    entries = keeping.found(urls, model=model, corpus=corpus, hook_point=hook_point, fingerprint=fingerprint)
    show.emit([keeping.entry_facts(entry) for entry in entries], keeping.entry_lines(entries), as_json=as_json)


@store.command()
@click.argument("url")
@json_option
def pin(url: str, as_json: bool) -> None:
    """Keep a store from being deleted by prune."""
    from deploy import keeping

    keeping.say(url, keeping.pinned(url, is_pinned=True), as_json=as_json)


@store.command()
@click.argument("url")
@json_option
def unpin(url: str, as_json: bool) -> None:
    """Let prune delete a store again."""
    from deploy import keeping

    keeping.say(url, keeping.pinned(url, is_pinned=False), as_json=as_json)


@store.command()
@click.argument("url")
@click.option("--after", required=True, metavar="TIME", help="From now on: 30d, 12h; never: it does not expire.")
@json_option
def expire(url: str, after: str, as_json: bool) -> None:
    """Let prune delete a store once a time is over."""
    from deploy import keeping

    keeping.say(url, keeping.expiring(url, after), as_json=as_json)


@store.command()
@click.argument("urls", nargs=-1, required=True, metavar="URL...")
@click.option("--quota", default="", metavar="SIZE", help="What the stores may take together, for example 2TiB.")
@click.option("--dry-run", is_flag=True, help="Say what would be deleted; delete nothing.")
@click.option(
    "--grace-hours", type=click.FloatRange(0), default=24.0, show_default=True,
    help="Keep what a job has read within this time: it may still be reading.",
)  # fmt: skip
@json_option
def prune(urls: tuple[str, ...], quota: str, dry_run: bool, grace_hours: float, as_json: bool) -> None:
    """Delete expired stores, and those used longest ago until a quota holds; exit code 1 if it cannot."""
    from deploy import keeping

    done = keeping.pruned(urls, quota=quota, is_rehearsal=dry_run, grace_s=grace_hours * 3600)
    show.emit(keeping.pruning_facts(done), keeping.pruning_lines(done, is_rehearsal=dry_run), as_json=as_json)
    if not done.is_within_quota:
        raise click.exceptions.Exit(1)


@store.command("info")
@click.argument("url")
@json_option
def store_info(url: str, as_json: bool) -> None:
    """What a store, or a group of stores, holds and what it was made from."""
    from deploy import grouped, inspection

    if (group := grouped.find_group(url)) is not None:
        facts = grouped.group_facts(url, group)
        show.emit(facts, grouped.group_lines(facts), as_json=as_json)
        return
    facts = inspection.store_facts(url)
    show.emit(facts, inspection.store_lines(facts), as_json=as_json)


@store.command()
@click.argument("url")
@click.option(
    "--deep/--quick", "is_deep", default=True, help="Read and check every byte (default), or compare lengths only."
)
@click.option(
    "--recompute", type=click.IntRange(0), default=0, metavar="N",
    help="Also run the model again on N units and compare the rows.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, help="Which units --recompute draws.")
@places_options
@json_option
def verify(
    url: str, is_deep: bool, recompute: int, seed: int, tokens: str, model: str, device: str, as_json: bool
) -> None:
    """Compare a store, or each store of a group, with its ledger; exit code 1 if anything differs."""
    from deploy import grouped, integrity

    check = partial(
        integrity.checked,
        is_deep=is_deep, recompute=recompute, seed=seed, tokens=tokens, model=model, device=device,
    )  # fmt: skip
    group = grouped.find_group(url)
    if group is not None and model:
        raise SpecError(f"--model names one model, and {url} is a group of stores of several: verify one of them")
    found = check(url) if group is None else grouped.checked(url, group, check)
    show.emit(found.facts, found.lines, as_json=as_json)
    if not found.is_sound:
        raise click.exceptions.Exit(1)


@store.command()
@click.argument("url")
@click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
@places_options
@json_option
def repair(url: str, dry_run: bool, tokens: str, model: str, device: str, as_json: bool) -> None:
    """Write what is damaged anew, collecting single units again; exit code 1 if anything is left."""
    from deploy import integrity

    done = integrity.repaired(url, is_rehearsal=dry_run, tokens=tokens, model=model, device=device)
    facts = integrity.repair_facts(url, done, is_rehearsal=dry_run)
    show.emit(facts, integrity.repair_lines(facts), as_json=as_json)
    if done.remaining:
        raise click.exceptions.Exit(1)


@store.command()
@click.argument("url")
@click.option("--dry-run", is_flag=True, help="Say what would be deleted; delete nothing.")
@click.option(
    "--grace-minutes", type=click.FloatRange(0), default=60.0, show_default=True,
    help="Keep what is younger: a writer may still be at work on it.",
)  # fmt: skip
@json_option
def gc(url: str, dry_run: bool, grace_minutes: float, as_json: bool) -> None:
    """Delete what killed writers have left and no ledger entry names; refuses while a job writes."""
    from deploy import integrity

    done = integrity.swept(url, is_rehearsal=dry_run, grace_s=grace_minutes * 60)
    facts = integrity.sweep_facts(url, done, is_rehearsal=dry_run)
    show.emit(facts, integrity.sweep_lines(facts), as_json=as_json)
