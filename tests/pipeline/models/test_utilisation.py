"""Model FLOP utilisation: operations as torch counts them, peaks from where they are said to be from."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.models.utilisation import VARIABLE, flop_per_token, peak_flop_per_s
from schemas.errors import SpecError

T = 32


def models() -> dict[str, nn.Module]:
    from transformers import GPT2Config, GPT2Model, LlamaConfig, LlamaModel, MixtralConfig, MixtralModel

    common = {"vocab_size": 97, "bos_token_id": 0, "eos_token_id": 0, "attn_implementation": "eager"}
    small = common | {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 96}
    return {
        "gpt2": GPT2Model(GPT2Config(n_embd=64, n_head=4, n_layer=2, **common)),
        "llama": LlamaModel(LlamaConfig(num_key_value_heads=2, **small)),
        "wide heads": LlamaModel(LlamaConfig(num_key_value_heads=4, head_dim=32, **small)),
        "mixtral": MixtralModel(
            MixtralConfig(
                num_key_value_heads=4,
                num_local_experts=4,
                num_experts_per_tok=2,
                experts_implementation="eager",
                **small,
            )
        ),
    }


@pytest.mark.parametrize("name", ["gpt2", "llama", "wide heads", "mixtral"])
def test_operations_are_those_that_torch_counts(name: str) -> None:
    network = models()[name].eval()
    token_ids = torch.arange(2 * T).reshape(2, T) % 97
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(token_ids, attention_mask=torch.ones_like(token_ids))
    assert flop_per_token(network, T) == pytest.approx(counter.get_total_flops() / token_ids.numel(), rel=0.01)


def test_embeddings_and_vectors_are_not_multiplied() -> None:
    network = nn.Sequential(nn.Embedding(1000, 8), nn.Linear(8, 4), nn.LayerNorm(4))
    assert flop_per_token(network, T) == 2 * 8 * 4
    assert flop_per_token(network, T, goes_back=True) == 2 * 2 * 8 * 4


@pytest.mark.parametrize(
    ("name", "dtype", "wanted"),
    [
        ("NVIDIA H200", torch.bfloat16, 989e12),
        ("NVIDIA H100 PCIe", torch.bfloat16, 756e12),
        ("NVIDIA H100 80GB HBM3", torch.float32, 67e12),
        ("NVIDIA L4", torch.float16, 121e12),
        ("NVIDIA L40S", torch.bfloat16, 362e12),
        ("NVIDIA A100-SXM4-80GB", torch.bfloat16, 312e12),
    ],
)
def test_known_devices_have_the_peak_of_their_data_sheet(name: str, dtype: torch.dtype, wanted: float) -> None:
    peak = peak_flop_per_s(torch.device("cuda"), dtype, name)
    assert (peak.flop_per_s, peak.source) == (wanted, "data sheet")


def test_the_operator_goes_first_and_a_processor_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = peak_flop_per_s(torch.device("cpu"), torch.float32)
    assert measured.source == "measured"
    assert 1e8 < measured.flop_per_s < 1e14
    monkeypatch.setenv(VARIABLE, "5e12")
    assert peak_flop_per_s(torch.device("cpu"), torch.float32).flop_per_s == 5e12
    monkeypatch.setenv(VARIABLE, "fast")
    with pytest.raises(SpecError, match=VARIABLE):
        peak_flop_per_s(torch.device("cpu"), torch.float32)
