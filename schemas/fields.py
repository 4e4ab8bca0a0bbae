"""The base of all specs and the field types they share."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, StringConstraints

from schemas.errors import SpecError
from schemas.reach import Reach

Dtype = Literal["bfloat16", "float16", "float32", "int8", "float8_e4m3"]
"""Stored precision; int8 and float8_e4m3 have a float32 scale for each row and lose precision."""

Layout = Literal["zarr", "arrow"]
"""How the objects of a store are encoded."""

Codec = Literal["none", "zstd", "bf16", "sparse"]
"""How chunks are compressed."""

LOSSY: frozenset[Dtype] = frozenset({"int8", "float8_e4m3"})
"""Stored precisions that need ``lossy: true``."""

_UNITS = {
    "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip


class Spec(BaseModel):
    """Frozen, closed to unknown fields, described field by field."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


def parse_bytes(value: Any) -> Any:
    """``'512MiB'`` -> 536870912; whole numbers pass as they are."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B|B)\s*", value)
    if match is None:
        raise ValueError(f"a size is a number and a unit ({', '.join(_UNITS)}), for example '512MiB'; got {value!r}")
    return int(float(match[1]) * _UNITS[match[2]])


def format_bytes(size_bytes: int) -> str:
    """The shortest exact binary unit: 536870912 -> ``'512MiB'``."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size_bytes and size_bytes % _UNITS[unit] == 0:
            return f"{size_bytes // _UNITS[unit]}{unit}"
    return f"{size_bytes}B"


def about_bytes(size_bytes: float) -> str:
    """For people, three figures: 708085647 -> ``'675 MiB'``."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size_bytes >= _UNITS[unit]:
            amount = size_bytes / _UNITS[unit]
            return f"{amount:.3g} {unit}" if amount < 1000 else f"{amount:.0f} {unit}"
    return f"{size_bytes:.0f} B"


ByteSize = Annotated[
    int,
    BeforeValidator(parse_bytes, json_schema_input_type=int | str),
    PlainSerializer(format_bytes, return_type=str),
    Field(gt=0),
]
"""A number of bytes, written with its unit: ``512MiB``."""

NonNegativeByteSize = Annotated[
    int,
    BeforeValidator(parse_bytes, json_schema_input_type=int | str),
    PlainSerializer(format_bytes, return_type=str),
    Field(ge=0),
]
"""The same, where 0 has a meaning of its own."""

_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def parse_duration(value: Any) -> Any:
    """``'30d'`` -> 2592000 seconds; whole numbers pass as they are."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|min|h|d|w)\s*", value)
    if match is None:
        raise ValueError(f"a duration is a number and a unit ({', '.join(_SECONDS)}), for example '30d'; got {value!r}")
    return int(float(match[1]) * _SECONDS[match[2]])


def format_duration(seconds: int) -> str:
    """The longest exact unit: 2592000 -> ``'30d'``."""
    for unit in ("d", "h", "min"):
        if seconds and seconds % _SECONDS[unit] == 0:
            return f"{seconds // _SECONDS[unit]}{unit}"
    return f"{seconds}s"


Duration = Annotated[
    int,
    BeforeValidator(parse_duration, json_schema_input_type=int | str),
    PlainSerializer(format_duration, return_type=str),
    Field(ge=0),
]
"""Seconds, written with their unit: ``30d``, ``12h``."""

_IN_URL = re.compile(
    r"://[^/]*@|(?:^|['\"])(s3a?|gc?s)://(?!arn:)[^/]*:|[?&](X-Amz-|X-Goog-|AWSAccessKeyId=|Signature=|sig=)", re.I
)


def holds_credentials(text: str) -> bool:
    """Whether a URL, alone or quoted in a longer text, has credentials in it."""
    return _IN_URL.search(text) is not None


def require_no_credentials(url: str) -> str:
    """The URL as it is.

    Raises:
        SpecError: credentials are part of it (``s3://key:secret@bucket``). The message leaves them out.
    """
    if holds_credentials(url):
        scheme = url.partition("://")[0]
        raise SpecError(
            f"a URL with credentials in it ({scheme}://***) is refused: specs are kept in stores, logs and reports. "
            "Put them into the environment (AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS) or the storage's own "
            "files (~/.aws/credentials), and replace those that were written down"
        )
    return url


Url = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True), AfterValidator(require_no_credentials)]
"""A local path or any URL that fsspec opens, without credentials: ``runs/a``, ``s3://bucket/key``, ``memory://x``."""

InputUrl = Annotated[Url, Reach("read")]
"""A folder or file that a job reads."""

CorpusUrl = Annotated[Url, Reach("corpus")]
"""Files that a job reads, wildcards and ``{stdlib}`` included."""

OutputUrl = Annotated[Url, Reach("write")]
"""A folder that a job writes, and reads again when it goes on."""

OptionalOutputUrl = Annotated[str, AfterValidator(require_no_credentials), Reach("write")]
"""The same; empty: where the field says."""

Words = Annotated[str, Reach("nothing")]
"""Text that is compared, looked up or shown, and never opened."""

DEEPEST = 32
"""Levels of lists and mappings in values that a spec hands on as they are."""


def require_plain_json(value: Any) -> Any:
    """The value as it is.

    Raises:
        ValueError: it is nested deeper than ``DEEPEST``, or has a number in it that JSON has not.
    """
    waiting = [(value, 0)]
    while waiting:
        here, depth = waiting.pop()
        if depth > DEEPEST:
            raise ValueError(f"lists and mappings are nested deeper than {DEEPEST} levels")
        if isinstance(here, dict):
            waiting += [(item, depth + 1) for item in here.values()]
        elif isinstance(here, list | tuple):
            waiting += [(item, depth + 1) for item in here]
        elif isinstance(here, float) and not math.isfinite(here):
            raise ValueError(f"{here} is no number of JSON")
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(require_plain_json)]
"""Values that a spec hands on as they are."""

HookPoint = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:\-]+$")]
"""A TransformerLens hook name (``blocks.3.hook_resid_post``, ``blocks.3.attn.hook_z``, ``blocks.3.mlp.hook_post``) or
``module:<path>:in|out``; with ``.grad`` behind it the gradient of the loss at that point. See docs/models.md."""

_NAME = r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}"

Name = Annotated[str, StringConstraints(pattern=rf"^{_NAME}$")]
"""A name that is also a folder: letters, digits, ``_``, ``.``, ``-``."""

SourcePoint = Annotated[str, StringConstraints(pattern=rf"^({_NAME}/)?[A-Za-z0-9_.:\-]+$")]
"""A hook point of a store, or of one of several that are read together: ``NAME/blocks.3.hook_resid_post``."""


def is_name(text: str) -> bool:
    """Whether it could be a ``Name``."""
    return re.fullmatch(_NAME, text) is not None
