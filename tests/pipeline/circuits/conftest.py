"""The planted network, saved once, and the means of its nodes over text of all templates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import torch

from pipeline.circuits.network import MaskedNetwork, load_decoder
from pipeline.circuits.nodes import Nodes
from pipeline.circuits.planted import save_planted
from pipeline.grammar.templates import TEMPLATES
from pipeline.models.hooks import resolve, tap
from pipeline.tokens.tokenizer import Tokenizer, load_tokenizer
from schemas.model import ModelSpec


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Networks this small are slower on several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted") / "model"
    save_planted(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(planted: Path) -> Tokenizer:
    return load_tokenizer(str(planted))


@pytest.fixture(scope="session")
def network(planted: Path, tokenizer: Tokenizer) -> MaskedNetwork:
    decoder = load_decoder(ModelSpec(path=str(planted), device="cpu"))
    nodes = Nodes(decoder.config.spec)
    return MaskedNetwork(decoder, means_of(decoder, nodes, tokenizer), freeze_norm_scale=False)


def means_of(decoder: torch.nn.Module, nodes: Nodes, tokenizer: Tokenizer) -> torch.Tensor:
    """By running the network: what a store's statistics have to come to."""
    draw = Random(5)
    texts = [form(draw, second).text for form in TEMPLATES.values() for second in (False, True) for _ in range(5)]
    sums, count = torch.zeros(nodes.number), 0

    def add(place: slice, acts: torch.Tensor) -> None:
        sums[place] += acts.flatten(0, 1).sum(0)

    sites = resolve(decoder.model, [place.hook for place in nodes.places])  # type: ignore[arg-type]
    handles = [
        tap(site, lambda acts, place=place.nodes: add(place, acts))  # type: ignore[misc]
        for site, place in zip(sites, nodes.places, strict=True)
    ]
    with torch.no_grad():
        for ids in tokenizer.encode(texts):
            decoder.model(torch.tensor([[tokenizer.bos_id, *ids.tolist()]]))  # type: ignore[operator]
            count += len(ids) + 1
    for handle in handles:
        handle.remove()
    return sums / count
