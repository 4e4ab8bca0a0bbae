"""A network with a known circuit, built by hand: what circuits.yaml searches.

Two neurons and one head tell which quote closes a string; the rest of the network leads nowhere. After

    python examples/planted_circuit.py runs/circuits/planted
    headworks run examples/circuits.yaml

runs/circuits/report.html shows the circuit: the eleven planted nodes, and no other.
"""

from __future__ import annotations

import sys
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from pipeline.circuits.planted import CIRCUIT, save_planted


def main(folder: str) -> None:
    """Write the model, say what is planted."""
    disable_progress_bar()
    save_planted(Path(folder))
    for layer, location, channel in sorted(CIRCUIT):
        print(f"layer {layer}  {location:10} channel {channel}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/circuits/planted")
