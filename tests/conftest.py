"""For all tests."""

from __future__ import annotations

import os
import signal

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, whoever imports it first
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # as `workers` sets it, before any test imports ray

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As background jobs of scripts begin; the processes that tests interrupt would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start Ray come first: they wait much, and would be alone at the end of a run in several processes."""
    with_ray = {item.path for item in items if item.get_closest_marker("ray")}
    items.sort(key=lambda item: item.path not in with_ray)
