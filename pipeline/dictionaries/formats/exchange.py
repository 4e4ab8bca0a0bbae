"""Writing trained dictionaries for other libraries, and reading theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol, get_args

from pipeline.dictionaries.dictionary import Dictionary
from pipeline.dictionaries.folder import RECORD, load_dictionary, save_dictionary
from pipeline.dictionaries.formats import circuit_tracer, dictionary_learning, saelens, sparsify
from pipeline.dictionaries.formats.building import build, record_of
from pipeline.dictionaries.formats.facts import Facts
from pipeline.dictionaries.formats.raw import RawDictionary, raw_of
from pipeline.store.objects import Objects
from schemas.dictionary import DictionaryRecord
from schemas.errors import MissingError, SpecError
from schemas.export import DictionaryFormat

FORMATS: tuple[str, ...] = get_args(DictionaryFormat)


class _Format(Protocol):
    """One dictionary, one folder."""

    def files(self, raw: RawDictionary, facts: Facts) -> dict[str, bytes]: ...

    def read(self, folder: Objects) -> tuple[RawDictionary, Facts]: ...


_ONE_EACH: Mapping[str, _Format] = {
    "saelens": saelens,
    "sparsify": sparsify,
    "dictionary_learning": dictionary_learning,
}


def places(url: str) -> list[str]:
    """URLs of the dictionary at ``url``, or of all in the folder of a train job, by name.

    Raises:
        MissingError: there is none.
    """
    folder = Objects(url)
    if folder.exists(RECORD):
        return [folder.url]
    _, names = folder.children()
    found = [f"{folder.url}/{name}" for name in names if folder.exists(f"{name}/{RECORD}")]
    if not found:
        raise MissingError(
            f"no dictionary at {url}: expected {RECORD} there, or NAME/{RECORD} of a train job that has finished"
        )
    return found


def export(url: str, output: str, format_name: DictionaryFormat) -> list[str]:
    """Write the dictionary at ``url``, or each of a train job's, below ``output``; the URLs of the folders written.

    ``circuit_tracer`` has all layers in one folder; in the others each dictionary of a train job has a folder of its
    name. Nothing is written unless all can be.

    Raises:
        MissingError: no dictionary at ``url``. SpecError: the format cannot hold it, or the output is not empty.
    """
    found = places(url)
    dictionaries = [load_dictionary(place) for place in found]
    if format_name == "circuit_tracer":
        whole = replace(_facts(dictionaries[0]), name=Objects(url).url.rpartition("/")[2])
        contents = {"": circuit_tracer.files(dictionaries, whole)}
    else:
        is_one = found == [Objects(url).url]
        contents = {
            "" if is_one else f"{each.spec.name}/": _ONE_EACH[format_name].files(raw_of(each), _facts(each))
            for each in dictionaries
        }
    target = Objects(output)
    _require_empty(target)
    for folder, files in contents.items():
        for name, data in files.items():
            target.write(f"{folder}{name}", data)
    return [f"{target.url}/{folder}".rstrip("/") for folder in contents]


def import_from(
    path: str,
    output: str,
    format_name: DictionaryFormat,
    *,
    name: str,
    source: str = "",
    target: str = "",
    model: str = "",
) -> DictionaryRecord:
    """Read the folder at ``path`` and write a dictionary of ours to ``output``; ``source``, ``target`` (hook points)
    and ``model`` stand in for what the folder does not say.

    Raises:
        MissingError, CorruptionError: the folder is not what the format says.
        SpecError: Headworks has no such dictionary, a hook point is not known, or the output is not empty.
    """
    folder = Objects(path)
    groups = "one"
    if format_name == "circuit_tracer":
        raws, facts, is_cross = circuit_tracer.read(folder)
        groups = "cross_layer" if is_cross else "per_layer"
        if source or target:
            raise SpecError("--source and --target are in the config.yaml of circuit-tracer; leave them out")
    else:
        raw, found = _ONE_EACH[format_name].read(folder)
        point = source or found.source
        other = found.target if found.target != found.source else point
        raws, facts = [raw], [replace(found, source=point, target=target or other)]
    dictionary = build(raws, facts, name=name, groups=groups)
    _require_empty(Objects(output))
    known = replace(facts[0], model=model or facts[0].model)
    record = record_of(dictionary, known, {"format": format_name, "path": folder.url})
    return save_dictionary(output, dictionary, record)


def _facts(dictionary: Dictionary) -> Facts:
    record = dictionary.record
    assert record is not None
    spec = record.spec
    return Facts(
        name=spec.name,
        model=str(record.model.get("path", "")),
        source=_bare(spec.sources),
        target=_bare(spec.target_points),
        learning_rate=spec.learning_rate,
        steps=record.steps,
        seed=spec.seed,
        store_fingerprint=record.store_fingerprint,
    )


def _bare(points: Sequence[str]) -> str:
    """The hook point itself, without the name of a store."""
    return points[0].rpartition("/")[2]


def _require_empty(folder: Objects) -> None:
    files, folders = folder.children()
    if files or folders:
        raise SpecError(f"{folder.url} is not empty ({(files + folders)[0]} is there): choose another output")
