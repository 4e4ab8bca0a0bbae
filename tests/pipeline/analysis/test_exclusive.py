"""Latent scaling on two models whose features are orthogonal and known, with a dictionary made by hand."""

from __future__ import annotations

import pytest
import torch

from pipeline.analysis.exclusive import latent_scaling
from pipeline.dictionaries.dictionary import Dictionary
from schemas.activation import JumpRelu, ReluL1
from schemas.dictionary import DictionarySpec
from schemas.errors import HookPointError, SpecError

WIDTH = 5
BASE, CHAT = "base", "chat"


def crosscoder(decoder_base: torch.Tensor, decoder_chat: torch.Tensor) -> Dictionary:
    """Codes are the first channels of ``chat``; decoder rows are given."""
    spec = DictionarySpec(name="d", sources=[BASE, CHAT], num_latents=len(decoder_base), activation=ReluL1())
    widths = {BASE: decoder_base.shape[1], CHAT: WIDTH}
    dictionary = Dictionary(spec, widths, widths, dict.fromkeys(widths, 1.0)).requires_grad_(False)
    dictionary.decoder.copy_(torch.cat([decoder_base, decoder_chat], dim=1))
    for latent, channel in enumerate([0, 1, 2, 2]):
        dictionary.encoder[latent, widths[BASE] + channel] = 1
    return dictionary


@pytest.fixture
def rows() -> dict[str, torch.Tensor]:
    """Feature i is channel i of ``chat``; ``base`` lacks 0, has 1 at 0.7, has 2 as it is."""
    codes = torch.rand(400, WIDTH, generator=torch.Generator().manual_seed(0)).mul(2).sub(1).relu()
    codes[:, 3:] = 0
    return {CHAT: codes, BASE: codes * torch.tensor([0.0, 0.7, 1.0, 0.0, 0.0])}


def dictionary_with_all_three_faults() -> Dictionary:
    """Latent 0 is exclusive in truth; 1 was shrunk to nothing in base; 2 and 3 are one feature, cut in two."""
    unit = torch.eye(WIDTH)
    return crosscoder(
        torch.stack([0 * unit[0], 0 * unit[1], 0 * unit[2], unit[2]]),
        torch.stack([unit[0], unit[1], unit[2], 0 * unit[2]]),
    )


def test_the_three_cases(rows: dict[str, torch.Tensor]) -> None:
    parts = zip(*(torch.split(one, 100) for one in rows.values()), strict=True)
    batches = [dict(zip(rows, part, strict=True)) for part in parts]
    found = latent_scaling(dictionary_with_all_three_faults(), batches, torch.tensor([0, 1, 2]), own=CHAT, other=BASE)
    torch.testing.assert_close(found.nu_error, torch.tensor([0.0, 0.7, 0.0], dtype=torch.float64), atol=1e-6, rtol=0)
    expected = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(found.nu_reconstruction, expected, atol=1e-6, rtol=0)
    assert found.is_exclusive().tolist() == [True, False, False]
    assert found.num_rows == 400


def test_a_small_part_at_the_other_target_counts_as_its_own(rows: dict[str, torch.Tensor]) -> None:
    dictionary = dictionary_with_all_three_faults()
    dictionary.decoder[1, 1] = 0.2  # of the 0.7 that base has of feature 1
    found = latent_scaling(dictionary, [rows], torch.tensor([1]), own=CHAT, other=BASE)
    assert float(found.nu_error[0]) == pytest.approx(0.7, abs=1e-6)
    assert float(found.nu_reconstruction[0]) == pytest.approx(0.0, abs=1e-6)


def test_a_latent_that_never_fires_has_no_ratio(rows: dict[str, torch.Tensor]) -> None:
    dictionary = dictionary_with_all_three_faults()
    dictionary.b_enc[0] = -10
    found = latent_scaling(dictionary, [rows], torch.tensor([0]), own=CHAT, other=BASE)
    assert found.nu_error.isnan().all()
    assert not found.is_exclusive().any()


def test_wrong_targets_are_named() -> None:
    dictionary = dictionary_with_all_three_faults()
    with pytest.raises(HookPointError, match=r"'chatt' is no target.*did you mean 'chat'"):
        latent_scaling(dictionary, [], torch.tensor([0]), own="chatt", other=BASE)
    other = crosscoder(torch.zeros(4, 3), torch.zeros(4, WIDTH))
    gated = DictionarySpec(name="d", sources=[BASE, CHAT], num_latents=4, activation=JumpRelu(gate="per_target"))
    widths = {BASE: WIDTH, CHAT: WIDTH}
    with pytest.raises(SpecError, match=r"a gate for each, and so two codes: train it with activation.gate: shared"):
        latent_scaling(Dictionary(gated, widths, widths, dict.fromkeys(widths, 1.0)), [], torch.tensor([0]),
                       own=CHAT, other=BASE)  # fmt: skip
    with pytest.raises(SpecError, match="one width; chat has 5, base 3"):
        latent_scaling(other, [], torch.tensor([0]), own=CHAT, other=BASE)
