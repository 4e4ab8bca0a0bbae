"""Associative memory: attention and MLP of a decoder as reads of one memory.

    mem(q, K, V, temperature) = softmax(q K^T / temperature) V

A block updates every position, each seeing only the rows X before it, as they entered the block:

    q += mem(q, K, V)          the fixed memory: given a key, its value
    q += mem(q, X, X)          the context, which is its own keys and values: attention with W = 1
    q += mem(q, V, K)          the fixed memory with keys and values swapped: given a value, its key

Shapes: B batch rows, L context length, D width, M pairs in the memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.family import Family
from schemas.errors import ModelError


def mem(query: Tensor, keys: Tensor, values: Tensor, temperature: float = 1.0, *, cosine: bool = False) -> Tensor:
    """``query`` [..., D], ``keys`` [M, D], ``values`` [M, E] -> [..., E]. Near temperature 0 the value of the key that
    is most like the query, at a high one the mean of all values; the order of the pairs does not matter.

    ``cosine``: alike in direction, whatever the lengths of query and keys."""
    return _scores(query, keys, temperature, cosine).softmax(-1) @ values


def _scores(query: Tensor, keys: Tensor, temperature: float, cosine: bool) -> Tensor:
    if cosine:
        query, keys = functional.normalize(query, dim=-1), functional.normalize(keys, dim=-1)
    return query @ keys.mT / temperature


class MemoryRead(nn.Module):
    """``mem`` of fixed pairs."""

    def __init__(self, keys: Tensor, values: Tensor, temperature: float, *, cosine: bool = False) -> None:
        super().__init__()
        self.register_buffer("keys", keys)
        self.register_buffer("values", values)
        self.temperature, self.cosine = temperature, cosine

    def forward(self, query: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        keys, values = self.get_buffer("keys"), self.get_buffer("values")
        return mem(query, keys, values, self.temperature, cosine=self.cosine)


class ContextRead(nn.Module):
    """``mem`` of the rows before each position."""

    def __init__(self, temperature: float, *, cosine: bool = False) -> None:
        super().__init__()
        self.temperature, self.cosine = temperature, cosine

    def forward(self, query: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """``query`` and ``rows`` [B, L, D]; what was read [B, L, D], 0 at the first position, and the weights
        [B, 1, L, L]."""
        length = rows.shape[1]
        earlier = torch.ones((length, length), dtype=torch.bool, device=rows.device).tril(-1)
        scores = _scores(query, rows, self.temperature, self.cosine)
        pattern = scores.masked_fill(~earlier, torch.finfo(query.dtype).min).softmax(-1).masked_fill(~earlier, 0.0)
        return pattern @ rows, pattern[:, None]


class AssociativeBlock(nn.Module):
    """The three reads of a layer; ``temperatures`` in their order."""

    hook_family = Family(
        "associative memory",
        points={
            "hook_resid_pre": ("", "in"),
            "hook_memory_out": ("memory", "out"),
            "attn.hook_pattern": ("context", "pattern"),
            "hook_attn_out": ("context", "out"),
            "hook_mlp_out": ("swapped", "out"),
            "hook_resid_post": ("", "out"),
        },
        sums=(("hook_resid_post", "hook_resid_pre", "hook_memory_out", "hook_attn_out", "hook_mlp_out"),),
    )

    def __init__(self, keys: Tensor, values: Tensor, temperatures: Sequence[float], *, cosine: bool = False) -> None:
        super().__init__()
        memory, context, swapped = temperatures
        self.memory = MemoryRead(keys, values, memory, cosine=cosine)
        self.context = ContextRead(context, cosine=cosine)
        self.swapped = MemoryRead(values, keys, swapped, cosine=cosine)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        query = x + self.memory(x)
        query = query + self.context(query, x)[0]
        found: Tensor = query + self.swapped(query)
        return found


class AssociativeNetwork(nn.Module):
    """Token embeddings and a stack of blocks that share one memory."""

    def __init__(
        self,
        embeddings: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        layers: int,
        temperatures: Sequence[float],
        cosine: bool = False,
    ) -> None:
        """``embeddings`` [V, D], ``keys`` and ``values`` [M, D]."""
        super().__init__()
        num_words, width = embeddings.shape
        self.embed = nn.Embedding(num_words, width, _weight=embeddings.clone(), _freeze=True)
        self.blocks = nn.ModuleList(AssociativeBlock(keys, values, temperatures, cosine=cosine) for _ in range(layers))

    def forward(self, token_ids: Tensor) -> Tensor:
        """int64 [B, L] -> [B, L, D]."""
        x: Tensor = self.embed(token_ids)
        for block in self.blocks:
            x = block(x)
        return x


def relation_network(
    words: Sequence[str],
    relations: Mapping[str, Sequence[str]],
    *,
    width: int = 0,
    layers: int = 2,
    temperatures: Sequence[float] = (1.0, 1.0, 1.0),
    cosine: bool = False,
    seed: int = 0,
) -> AssociativeNetwork:
    """A network whose token ids are the places in ``words`` and whose memory has a pair for each word of ``relations``:
    its embedding, and the sum of those of the words that it leads to. A ``python:`` path can name it, with
    ``kind: module``.

    ``width`` 0: a channel for each word; else random directions of length 1, by ``seed``.

    Raises:
        ModelError: a relation of words that are not in ``words``.
    """
    strangers = {*relations, *(word for values in relations.values() for word in values)} - {*words}
    if strangers:
        raise ModelError(f"relations name words that are not in the vocabulary {[*words]}: {sorted(strangers)}")
    if width:
        source = torch.Generator().manual_seed(seed)
        embeddings = functional.normalize(torch.randn((len(words), width), generator=source), dim=1)
    else:
        embeddings = torch.eye(len(words))
    place = {word: index for index, word in enumerate(words)}
    keys = torch.stack([embeddings[place[word]] for word in relations])
    values = torch.stack([embeddings[[place[one] for one in found]].sum(0) for found in relations.values()])
    return AssociativeNetwork(embeddings, keys, values, layers=layers, temperatures=temperatures, cosine=cosine)
