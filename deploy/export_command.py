"""``headworks store export``."""

from __future__ import annotations

import click

from deploy import show
from deploy.exits import stoppable
from deploy.options import json_option
from pipeline import logs


@click.command()
@click.argument("source")
@click.argument("target")
@click.option("--format", "form", type=click.Choice(["headworks", "sae-lens"]), default="headworks", show_default=True)
@click.option("--layout", type=click.Choice(["zarr", "arrow"]), default=None, help="None: that of the source.")
@click.option(
    "--dtype", type=click.Choice(["bfloat16", "float16", "float32", "int8", "float8_e4m3"]), default=None,
    help="None: that of the source; float32 for sae-lens.",
)  # fmt: skip
@click.option(
    "--codec", type=click.Choice(["none", "zstd", "bf16", "sparse"]), default=None, help="None: that of the source."
)
@click.option("--lossy", is_flag=True, help="Accept a dtype that cannot hold every value of the source.")
@click.option("--hook-points", default="", metavar="A,B", help="None: all of the source's.")
@click.option("--rows", default="", metavar="START:STOP", help="Only these rows.")
@click.option("--held-out", "split", flag_value="held_out", default="", help="Only rows of held-out documents.")
@click.option("--training", "split", flag_value="train", help="Only rows of the other documents.")
@click.option("--documents", default="", metavar="IDS", help="Only rows of these documents, for example 3,7,10:20.")
@click.option("--drop-short-contexts", is_flag=True, help="For sae-lens, which holds contexts of one length only.")
@json_option
def export(
    source: str, target: str, form: str, layout: str | None, dtype: str | None, codec: str | None, lossy: bool,
    hook_points: str, rows: str, split: str, documents: str, drop_short_contexts: bool, as_json: bool,
) -> None:  # fmt: skip
    """Rewrite the store SOURCE, or a part of it, at TARGET in another form.

    Run again after an interruption, it goes on where it was.
    """
    from deploy import exporting
    from workers.progress import Progress

    facts = {
        "store": source, "output": target, "format": form, "layout": layout or "same", "dtype": dtype or "same",
        "codec": codec or "same", "lossy": lossy, "hook_points": [hook for hook in hook_points.split(",") if hook],
        "rows": exporting.row_choice(rows, split or "", documents),
        "short_contexts": "drop" if drop_short_contexts else "refuse",
    }  # fmt: skip
    with stoppable(lambda: f"stopped; what was written stays in {target}. The same command goes on from there."):
        made = exporting.export(facts, Progress(logs.progress_stream()))
    show.emit(made, exporting.lines(made), as_json=as_json)
