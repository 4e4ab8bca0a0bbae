"""Makes ``tiny_networks`` importable by its own name, as a ``python:`` path needs it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
