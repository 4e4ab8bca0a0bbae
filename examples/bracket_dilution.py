"""Does a dense or a weight-sparse model of one text lose count of brackets in long lists (Gao et al. 2025, arXiv
2511.13653), as a model does that counts by an average over its context?

    make study-weight-sparse                                 trains the pair
    python examples/bracket_dilution.py DENSE SPARSE         folders of the two models

The result is kept in examples/results/bracket_dilution.json.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from typing import Any

import torch
from save_result import save

from pipeline.circuits.dilution import dilution
from pipeline.circuits.network import MaskedNetwork, load_decoder
from pipeline.circuits.nodes import Nodes
from pipeline.tokens.tokenizer import load_tokenizer
from schemas.errors import ModelError
from schemas.model import ModelSpec

FORMS = ("flat", "nested", "early", "paired")
NUMBERS = (4, 5, 6, 8, 10, 12, 16, 20, 24)
"""The text has lists of four."""


def diluted(folder: str, *, pairs: int = 32) -> list[dict[str, Any]]:
    """Errors at each number of numbers whose prompts the model has positions for."""
    network = load_decoder(ModelSpec(path=folder, kind="causal_lm"))
    intact = MaskedNetwork(network, torch.zeros(Nodes(network.config.spec).number), freeze_norm_scale=False)
    tokenizer, found = load_tokenizer(folder), []
    for numbers in NUMBERS:
        try:
            found += dilution(intact, tokenizer, [numbers], pairs=pairs)
        except ModelError:
            break
    return [asdict(one) for one in found]


def main(folders: dict[str, str]) -> None:
    """Ask both models, print the answers and keep them."""
    started = time.perf_counter()
    errors = {name: diluted(folder) for name, folder in folders.items()}
    for name, rows in errors.items():
        for one in rows:
            forms = (f"{form} {one[form]['error']:.2f} ({one[form]['margin']:+.1f})" for form in FORMS)
            print(f"{name:7} {one['numbers']:3} numbers, errors (margins): {', '.join(forms)}")
    print(save("bracket_dilution", {"errors": errors, "seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    main({"dense": sys.argv[1], "sparse": sys.argv[2]})
