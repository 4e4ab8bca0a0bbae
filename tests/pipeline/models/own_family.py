"""A made-up architecture, ready to be collected from: `model: {path: python:own_family.build, kind: module}`."""

import torch
from torch import Tensor, nn

from headworks import Family


class Mixer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).mT / x.shape[2] ** 0.5
        visible = torch.ones_like(scores[0]).tril().bool()
        weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        return self.proj(weights @ self.value(x))


class Block(nn.Module):
    hook_family = Family(
        "made-up",
        points={
            "hook_resid_pre": ("", "in"),
            "hook_attn_out": ("mixer", "out"),
            "hook_mlp_out": ("gate", "out"),
            "hook_resid_post": ("", "out"),
        },
        sums=(("hook_resid_post", "hook_resid_pre", "hook_attn_out", "hook_mlp_out"),),
        attention="mixer",
        mlp="feed",
    )

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mixer, self.gate = Mixer(width), nn.Tanh()
        self.feed = nn.Sequential()
        self.feed.fc1, self.feed.act, self.feed.fc2 = nn.Linear(width, 9), nn.ReLU(), nn.Linear(9, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mixer(x) + self.gate(self.feed(x))


def build(width: int = 8, layers: int = 2, vocab: int = 40) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(vocab, width), nn.Sequential(*map(Block, [width] * layers)))
