"""The specs as Markdown tables, from their JSON Schema: ``headworks schema --markdown`` and ``docs/job-specs.md``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from schemas.pipeline import JOB_ADAPTER

_REFERENCE = "#/$defs/"
_ORDER = ("train_model", "collect", "shuffle", "train", "evaluate", "interpret", "circuit", "pipeline")


def job_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of all job specs."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Headworks job"} | (
        JOB_ADAPTER.json_schema()
    )


def kind_schema(kind: str) -> dict[str, Any]:
    """JSON Schema of one kind of job, with the definitions that it uses."""
    schema = job_schema()
    name = schema["discriminator"]["mapping"][kind].removeprefix(_REFERENCE)
    used = dict.fromkeys(_used(name, schema["$defs"]))
    return {
        "$schema": schema["$schema"],
        **schema["$defs"][name],
        "$defs": {other: schema["$defs"][other] for other in used if other != name},
    }


def markdown() -> str:
    """One table for each spec, in the order in which jobs use them."""
    schema = job_schema()
    definitions, kinds = schema["$defs"], schema["discriminator"]["mapping"]
    roots = [kinds[kind].removeprefix(_REFERENCE) for kind in dict.fromkeys([*_ORDER, *kinds])]
    order = dict.fromkeys(name for root in roots for name in _used(root, definitions))
    return "\n".join(line for name in order for line in _table(name, definitions))


def spec_markdown(spec: type[BaseModel]) -> str:
    """The same of any spec and those below it."""
    schema = spec.model_json_schema()
    definitions = {spec.__name__: schema, **schema.pop("$defs", {})}
    return "\n".join(
        line for name in dict.fromkeys(_used(spec.__name__, definitions)) for line in _table(name, definitions)
    )


def _used(name: str, definitions: dict[str, Any]) -> Iterator[str]:
    """The definition and those below it, depth first."""
    yield name
    for field in definitions[name].get("properties", {}).values():
        for other in _references(field):
            yield from _used(other, definitions)


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, list):
        for item in schema:
            yield from _references(item)
    elif isinstance(schema, dict):
        if "$ref" in schema:
            yield schema["$ref"].removeprefix(_REFERENCE)
        for key in ("items", "oneOf", "anyOf", "additionalProperties"):
            yield from _references(schema.get(key))


def _table(name: str, definitions: dict[str, Any]) -> Iterator[str]:
    definition = definitions[name]
    required = definition.get("required", [])
    yield from (f"### {name}", "", _flat(definition["description"]), "")
    yield from ("| field | type | default | meaning |", "|---|---|---|---|")
    for field, schema in definition["properties"].items():
        default = "required" if field in required else f"`{_default(schema)}`"
        yield f"| `{field}` | {_type(schema)} | {default} | {_meaning(schema, definitions)} |"
    yield ""


def _meaning(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    # A description that says the same as the definition's own is left out of the schema.
    found = schema.get("description") or definitions[schema["$ref"].removeprefix(_REFERENCE)]["description"]
    return _flat(found)


def _flat(text: str) -> str:
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")


def _default(schema: dict[str, Any]) -> str:
    if "const" in schema:
        return str(schema["const"])
    value = schema["default"]
    if isinstance(value, dict):
        # A nested spec: its own table has its defaults.
        return str(value.get("kind", "{}"))
    return json.dumps(value)


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return _link(schema["$ref"])
    if "const" in schema or "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum") or [schema["const"]])
    if "oneOf" in schema or "anyOf" in schema:
        return " or ".join(_type(each) for each in schema.get("oneOf") or schema["anyOf"])
    if schema["type"] == "array":
        return f"list of {_type(schema['items'])}"
    return "mapping" if schema["type"] == "object" else f"{schema['type']}{_bounds(schema)}"


def _link(reference: str) -> str:
    name = reference.removeprefix(_REFERENCE)
    return f"[{name}](#{name.lower()})"


def _bounds(schema: dict[str, Any]) -> str:
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
    return f" {', '.join(bounds)}" if bounds else ""
