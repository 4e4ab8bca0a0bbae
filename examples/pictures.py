"""How examples write their pictures: the same figures give the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save(figure: Figure, path: Path) -> None:
    """Without the date, and with ids that do not come from chance."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "headworks"}):
        figure.savefig(path, metadata={"Date": None})
