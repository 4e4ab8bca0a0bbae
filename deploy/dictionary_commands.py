"""``headworks dictionary``: what there is, and the way to other libraries and back."""

from __future__ import annotations

import click

from deploy import show
from deploy.options import json_option

_FORMATS = ("saelens", "sparsify", "dictionary_learning", "circuit_tracer")

_format_option = click.option(
    "--format", "format_name", type=click.Choice(_FORMATS), required=True, help="The library whose format it is."
)


@click.group()
def dictionary() -> None:
    """Trained dictionaries."""


@dictionary.command()
@click.argument("path")
@json_option
def info(path: str, as_json: bool) -> None:
    """What a dictionary is and what it was trained on; of each, if the folder holds several."""
    from deploy import inspection

    records = inspection.dictionary_records(path)
    show.emit(records, inspection.dictionary_lines(records), as_json=as_json)


@dictionary.command("ls")
@click.argument("paths", nargs=-1, required=True)
@json_option
def list_dictionaries(paths: tuple[str, ...], as_json: bool) -> None:
    """Every dictionary at or below folders or buckets, a line each."""
    from deploy import inspection

    rows = inspection.dictionary_rows(paths)
    columns = ("dictionary", "source", "target", "latents", "activation", "rows", "fvu")
    show.emit(rows, show.table(rows, columns) if rows else ["no dictionaries"], as_json=as_json)


@dictionary.command()
@click.argument("path")
@click.argument("output")
@_format_option
@json_option
def export(path: str, output: str, format_name: str, as_json: bool) -> None:
    """Write a dictionary for another library, which then gives the same latents and reconstructions.

    PATH is a dictionary, or the output of a train job with several: each goes to OUTPUT/NAME, those of circuit_tracer,
    one for each layer, together to OUTPUT.
    """
    from pipeline.dictionaries.formats import exchange

    written = exchange.export(path, output, format_name)  # type: ignore[arg-type]
    show.emit({"format": format_name, "written": written}, [f"written: {url}" for url in written], as_json=as_json)


@dictionary.command("import")
@click.argument("path")
@click.argument("output")
@_format_option
@click.option("--name", default="", help="Name of the dictionary; none: that of OUTPUT.")
@click.option("--source", default="", help="Hook point that it reads, where the files do not say.")
@click.option("--target", default="", help="Hook point that a transcoder reconstructs, where the files do not say.")
@click.option("--model", default="", help="The model whose activations these are, where the files do not say.")
@json_option
def import_dictionary(
    path: str, output: str, format_name: str, name: str, source: str, target: str, model: str, as_json: bool
) -> None:
    """Read a dictionary that another library has written into one of ours."""
    from deploy import inspection
    from pipeline.dictionaries.formats import exchange

    exchange.import_from(
        path,
        output,
        format_name,  # type: ignore[arg-type]
        name=name or output.rstrip("/").rpartition("/")[2],
        source=source,
        target=target,
        model=model,
    )
    records = inspection.dictionary_records(output)
    show.emit(records, inspection.dictionary_lines(records), as_json=as_json)


@dictionary.command()
@click.argument("first")
@click.argument("second")
@click.option("--store", "store_url", required=True, help="A store with the sources of both, or of the first.")
@click.option("--second-store", "second_url", default="", help="Where the second's sources are, over the same tokens.")
@click.option("--rows", "max_rows", type=click.IntRange(min=2), default=100_000, show_default=True)
@click.option("--above", type=float, default=0.1, show_default=True, help="Least correlation of a pair that counts.")
@click.option("--shuffles", type=click.IntRange(min=1), default=200, show_default=True, help="Shuffled pairings.")
@click.option("--concepts", is_flag=True, help="Also of the pairs alone whose strongest tokens are words, one shared.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the rows and of the shuffles.")
@json_option
def compare(
    first: str,
    second: str,
    store_url: str,
    second_url: str,
    max_rows: int,
    above: float,
    shuffles: int,
    concepts: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Pair the latents of two dictionaries by their activations, and compare the spaces that the pairs span."""
    from deploy import inspection
    from pipeline.analysis.compare import Side, compare_dictionaries
    from pipeline.dictionaries.folder import load_dictionary
    from pipeline.evaluation.belonging import tokenizer_of
    from pipeline.store.joined import open_any

    store = open_any(store_url)
    found = compare_dictionaries(
        Side(load_dictionary(first), store),
        Side(load_dictionary(second), open_any(second_url) if second_url else store),
        max_rows=max_rows,
        above=above,
        num_shuffles=shuffles,
        seed=seed,
        pieces=tokenizer_of(store).pieces if concepts else None,
    )
    show.emit(found, inspection.comparison_lines(found), as_json=as_json)
