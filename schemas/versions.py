"""Versions of what computes, for summaries and bug reports."""

from __future__ import annotations

import platform
from importlib import metadata

_PACKAGES = ("headworks", "torch", "ray", "transformers", "zarr", "numpy", "pyarrow")


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide results; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
