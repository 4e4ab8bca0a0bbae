"""Tiny random networks of every family, as an import path and as folders; no file is read and no network asked."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from pipeline.models.load import LoadedModel
from schemas.model import ModelSpec

D_MODEL, LAYERS, VOCAB = 16, 3, 40

_LLAMA = {
    "hidden_size": D_MODEL, "num_hidden_layers": LAYERS, "vocab_size": VOCAB, "intermediate_size": 24,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 4,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None, "tie_word_embeddings": False,
}  # fmt: skip
_NEOX = {
    "hidden_size": D_MODEL, "num_hidden_layers": LAYERS, "vocab_size": VOCAB, "intermediate_size": 24,
    "num_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", {"n_embd": D_MODEL, "n_layer": LAYERS, "n_head": 4, "vocab_size": VOCAB, "n_positions": 64,
                      "bos_token_id": 1, "eos_token_id": 2}),
    "neox_parallel": ("GPTNeoX", {**_NEOX, "use_parallel_residual": True}),
    "neox_sequential": ("GPTNeoX", {**_NEOX, "use_parallel_residual": False}),
    "llama": ("Llama", _LLAMA),
    "qwen2": ("Qwen2", {name: value for name, value in _LLAMA.items() if name != "head_dim"}),
    "qwen3": ("Qwen3", _LLAMA),
    "gemma": ("Gemma", _LLAMA),
    "gemma2": ("Gemma2", {**_LLAMA, "sliding_window": 4, "query_pre_attn_scalar": 4}),
    "mistral": ("Mistral", {**_LLAMA, "sliding_window": 4}),
    "bert": ("Bert", {"hidden_size": D_MODEL, "num_hidden_layers": LAYERS, "vocab_size": VOCAB, "intermediate_size": 24,
                      "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0}),
    "roberta": ("Roberta", {"hidden_size": D_MODEL, "num_hidden_layers": LAYERS, "vocab_size": VOCAB, "pad_token_id": 0,
                            "intermediate_size": 24, "num_attention_heads": 4, "max_position_embeddings": 64}),
    "modernbert": ("ModernBert", {"hidden_size": D_MODEL, "num_hidden_layers": LAYERS, "vocab_size": VOCAB,
                                  "intermediate_size": 24, "num_attention_heads": 4, "max_position_embeddings": 64,
                                  "local_attention": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
                                  "cls_token_id": 1, "sep_token_id": 2}),
    "t5": ("T5", {"d_model": D_MODEL, "num_layers": LAYERS, "vocab_size": VOCAB, "d_kv": 4, "d_ff": 24, "num_heads": 4,
                  "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}),
    "granite": ("Granite", {**_LLAMA, "residual_multiplier": 0.3}),
}  # fmt: skip
ENCODERS = ["bert", "roberta", "modernbert", "t5"]
CAUSAL = [name for name in FAMILIES if name not in (*ENCODERS, "granite")]


def build(family: str, *, attention: str = "", **changes: Any) -> Any:
    """The whole network with its head, with weights large enough that every branch matters."""
    name, settings = FAMILIES[family]
    how = {"attn_implementation": attention} if attention else {}
    config = getattr(transformers, f"{name}Config")(**{**settings, **changes})
    heads = {"gpt2": "LMHeadModel", "t5": "EncoderModel"} | dict.fromkeys(ENCODERS[:3], "ForMaskedLM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        kind = getattr(transformers, name + heads.get(family, "ForCausalLM"))
        model = kind._from_config(config, dtype=torch.float32, **how)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval().requires_grad_(False)


def save(family: str, folder: Path, **changes: Any) -> Any:
    """The same as a folder of config and weights."""
    model = build(family, **changes)
    model.save_pretrained(folder)
    return model


def loaded(module: nn.Module, *, with_head: bool = False, kind: str = "causal_lm") -> LoadedModel:
    """As ``load_model`` returns it."""
    from pipeline.models.load import backbone_of

    module = module.eval().requires_grad_(False)
    spec = ModelSpec.model_validate({"path": "tiny", "kind": kind, "dtype": "float32", "device": "cpu"})
    return LoadedModel(
        module=module if with_head else backbone_of(module), spec=spec, dtype=torch.float32,
        device=torch.device("cpu"), identity={}, d_model=D_MODEL, num_layers=LAYERS,
    )  # fmt: skip


def kind_of(family: str) -> str:
    return "causal_lm" if family not in ENCODERS else "encoder" if family == "t5" else "masked_lm"


def token_ids(batch: int = 3, context: int = 9, seed: int = 0) -> Tensor:
    return torch.randint(3, VOCAB, (batch, context), generator=torch.Generator().manual_seed(seed))


def count_starts(model: nn.Module) -> Counter[str]:
    """How often each module of a model begins its forward from now on."""
    starts: Counter[str] = Counter()
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda _, __, name=name: starts.update([name]))
    return starts


class Doubler(nn.Module):
    """A module that is no language model: embeds, averages over the whole context, and overwrites in place."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.embed = nn.Embedding(VOCAB, width)
            self.linear = nn.Linear(width, width)
        self.act = nn.ReLU(inplace=True)
        self.flat = nn.Flatten()

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.embed(ids)
        hidden = self.linear(rows + rows.mean(dim=1, keepdim=True))
        return self.flat(self.act(hidden))


def refuses() -> nn.Module:
    raise RuntimeError("no weights today")


def text() -> str:
    return "no module"


INSTANCE = Doubler()
