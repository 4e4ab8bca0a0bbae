"""Settings of rendered files: a YAML file, laid over by single fields."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from pipeline.spec_errors import explained
from pipeline.spec_file import override_field, yaml_data
from schemas.errors import SpecError
from schemas.rendering import RenderSettings


def read_settings(
    path: str | os.PathLike[str] | None, overrides: Iterable[str] = (), fields: Mapping[str, Any] | None = None
) -> RenderSettings:
    """The file, then ``overrides`` (``path=value``), then ``fields`` that are not None.

    Raises:
        MissingError: there is no such file. SpecError: naming every wrong field.
    """
    data = _read(path) if path is not None else {}
    for override in overrides:
        try:
            override_field(data, override)
        except SpecError as error:
            raise SpecError(str(error).replace("--set ", "--setting ")) from error
    data |= {name: value for name, value in (fields or {}).items() if value is not None}
    try:
        return RenderSettings.model_validate(data)
    except ValidationError as error:
        where = str(path) if path is not None else "settings"
        raise SpecError(f"{where}: " + "; ".join(explained(error, RenderSettings))) from None


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    data = yaml_data(path, "settings")
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise SpecError(f"{path}: settings are a mapping of fields, see docs/operations.md")
    return data


def cluster_name(job_name: str) -> str:
    """A name that Kubernetes takes, from one that specs take."""
    name = re.sub(r"[^a-z0-9]+", "-", job_name.lower()).strip("-")[:47].rstrip("-")
    return name if name and name[0].isalpha() else f"job-{name}".rstrip("-")[:47].rstrip("-")
