"""Job specs from YAML files: read, override, interpolate, validate; every mistake is one message that names the field.

    1. YAML (safe subset, a key given twice is refused)
    2. ``--set path=value`` overrides
    3. ``${env:NAME}`` in strings, for the names that the operator lists in ``HEADWORKS_ALLOWED_ENV``
    4. validation by ``schemas``, with pydantic's errors put in the words of the file

``${NAME}``, the reference to another job of a pipeline, is left for ``PipelineSpec.resolved``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.spec_errors import explained
from schemas.errors import MissingError, SpecError, nearest
from schemas.pipeline import JOB_ADAPTER, AnyJob

ALLOWED_ENV = "HEADWORKS_ALLOWED_ENV"
"""Environment variable of the operator: names that specs may interpolate, separated by commas."""

Model = TypeVar("Model", bound=BaseModel)

_ENV = re.compile(r"\$\{env:([^}]*)\}")
_STEP = re.compile(r"\.?([^.\[\]=]+)|\[([^\[\]]+)\]")


def load_job(path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> AnyJob:
    """The job that a YAML (or JSON) file asks for; ``overrides`` are ``path=value``, applied in order.

    Relative paths in the spec mean the current directory of whoever runs the job, not the file's folder.

    Raises:
        MissingError: there is no such file.
        SpecError: the file, an override or a field is wrong; the message lists every wrong field.
    """
    data = parse_yaml(_read(path), where=str(path))
    if not isinstance(data, dict):
        raise SpecError(f"{path}: a job spec is a mapping that begins with `kind:`; got {_named(data)}")
    for override in overrides:
        override_field(data, override)
    return validated(interpolated(data, where=str(path)), where=str(path))


def read_yaml(path: str | os.PathLike[str], model: type[Model], what: str) -> Model:
    """The ``model`` that a YAML file holds which is no job; ``what`` it is called where there is none.

    Raises:
        MissingError: there is no such file. SpecError: naming every wrong field.
    """
    try:
        return model.model_validate(yaml_data(path, what) or {})
    except ValidationError as error:
        raise SpecError(f"{path}: " + "; ".join(explained(error, model))) from None


def yaml_data(path: str | os.PathLike[str], what: str) -> Any:
    """What a YAML file holds which is no job; None if it is empty.

    Raises:
        MissingError: there is no such file. SpecError: it is no YAML.
    """
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MissingError(f"no {what} at {path}: {error}") from error
    return parse_yaml(text, where=str(path))


def validated(data: Any, *, where: str) -> AnyJob:
    """A job from plain data; ``where`` begins the message.

    Raises:
        SpecError: listing every wrong field.
    """
    try:
        return JOB_ADAPTER.validate_python(data)
    except ValidationError as error:
        lines = explained(error)
        if len(lines) == 1:
            raise SpecError(f"{where}: {lines[0]}") from None  # pydantic's own repeats values, credentials among them
        raise SpecError(
            f"{where}: {len(lines)} fields are wrong:\n" + "\n".join(f"  {line}" for line in lines)
        ) from None


def parse_yaml(text: str, *, where: str) -> Any:
    """Plain data from YAML's safe subset.

    Raises:
        SpecError: with line and column.
    """
    try:
        # A subclass of SafeLoader: nothing but plain data can come out of it.
        return yaml.load(text, Loader=_Loader)  # noqa: S506
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise SpecError(f"{where}: {place}{error.problem or error}") from error
    except yaml.YAMLError as error:
        raise SpecError(f"{where}: not YAML: {error}") from error


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, where YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key_node.tag != "tag:yaml.org,2002:merge" and isinstance(key, str):
                if key in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key!r} is given twice", problem_mark=key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep)


def _read(path: str | os.PathLike[str]) -> str:
    try:
        return Path(path).read_text("utf-8")
    except FileNotFoundError:
        folder = Path(path).parent
        beside = [str(folder / other.name) for other in folder.glob("*.y*ml")] if folder.is_dir() else []
        raise MissingError(f"no job spec at {path}{nearest(str(path), beside)}") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: not UTF-8 at byte {error.start}; a job spec is YAML text") from error
    except OSError as error:
        raise SpecError(f"{path}: cannot be read as a job spec: {error.strerror}") from error


def override_field(data: dict[str, Any], override: str) -> None:
    """Apply one ``a.b[0].c=value`` to ``data`` in place; the value is read as YAML.

    List items are named by index or by their ``name`` (``jobs[train].batch_rows``). Mappings on the way that the file
    leaves to their defaults are made; whether the field exists is for the validation to say.

    Raises:
        SpecError: no ``=``, an empty or malformed path, or a step that the file does not have.
    """
    path, equals, text = override.partition("=")
    steps = list(_steps(path.strip(), override))
    if not equals:
        raise SpecError(f"--set {override}: expected PATH=VALUE, for example --set jobs[0].tokens.max_tokens=100000")
    value = parse_yaml(text, where=f"--set {override}")
    here: Any = data
    for depth, step in enumerate(steps[:-1]):
        here = _descend(here, step, _joined(steps[:depth]), override)
    _place(here, steps[-1], _joined(steps[:-1]), override, value)


def _steps(path: str, override: str) -> Iterator[tuple[str, bool]]:
    """``(text, whether it stood in brackets)`` for each step of a path."""
    position = 0
    while position < len(path):
        match = _STEP.match(path, position)
        if match is None or (position == 0 and path[0] in ".["):
            break
        yield (match[1], False) if match[1] else (match[2], True)
        position = match.end()
    if position < len(path) or not path:
        raise SpecError(
            f"--set {override}: {path!r} is not a field path; expected for example jobs[0].tokens.max_tokens"
        )


def _joined(steps: Iterable[tuple[str, bool]]) -> str:
    return "".join(f"[{step}]" if bracketed else f".{step}" for step, bracketed in steps).removeprefix(".")


def _descend(here: Any, step: tuple[str, bool], path: str, override: str) -> Any:
    name, bracketed = step
    if bracketed:
        return here[_index(here, name, path, override)]
    if not isinstance(here, dict):
        raise _not_a(here, "mapping", path, override)
    if here.get(name) is None:
        here[name] = {}
    return here[name]


def _place(here: Any, step: tuple[str, bool], path: str, override: str, value: Any) -> None:
    name, bracketed = step
    if bracketed:
        here[_index(here, name, path, override)] = value
    elif isinstance(here, dict):
        here[name] = value
    else:
        raise _not_a(here, "mapping", path, override)


def _index(here: Any, name: str, path: str, override: str) -> int:
    if not isinstance(here, list):
        raise _not_a(here, "list", path, override)
    if re.fullmatch(r"-?\d+", name):
        index = int(name)
        if not -len(here) <= index < len(here):
            raise SpecError(f"--set {override}: {path} has {len(here)} items, so [{index}] is not there")
        return index
    # A job without a name is named after its kind.
    names = [item.get("name", item.get("kind")) if isinstance(item, Mapping) else None for item in here]
    if name not in names:
        known = [str(other) for other in names if other]
        raise SpecError(f"--set {override}: no item of {path} is named {name!r} (known: {known}){nearest(name, known)}")
    return names.index(name)


def _not_a(here: Any, wanted: str, path: str, override: str) -> SpecError:
    return SpecError(f"--set {override}: {path or 'the spec'} is {_named(here)}, not a {wanted}")


def _named(value: Any) -> str:
    kinds = {dict: "a mapping", list: "a list", str: "text", type(None): "nothing", bool: "true or false"}
    return kinds.get(type(value), f"a {type(value).__name__}")


def interpolated(value: Any, *, where: str, path: str = "") -> Any:
    """A copy of plain data with ``${env:NAME}`` replaced in every string; keys stay as they are.

    What is put in is text and is not read as YAML. It becomes part of the spec, which stores and dictionaries keep:
    this is for paths and names, never for secrets.

    Raises:
        SpecError: the operator does not list the name, or the variable is not set.
    """
    if isinstance(value, dict):
        return {
            key: interpolated(item, where=where, path=f"{path}.{key}" if path else str(key))
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [interpolated(item, where=where, path=f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, str):
        return _ENV.sub(lambda match: _environment(match[1], f"{where}: {path}"), value)
    return value


def _environment(name: str, place: str) -> str:
    allowed = [item.strip() for item in os.environ.get(ALLOWED_ENV, "").split(",") if item.strip()]
    if name not in allowed:
        raise SpecError(
            f"{place}: ${{env:{name}}} is not allowed here; the operator lists the names that a spec may use in "
            f"{ALLOWED_ENV} (now: {', '.join(allowed) or 'none'})"
        )
    if name not in os.environ:
        raise SpecError(f"{place}: the environment variable {name} is not set")
    return os.environ[name]
