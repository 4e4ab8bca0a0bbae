"""Starting weights: a pure function of the spec's seed and the mean of the targets.

TopK      decoder rows random directions of norm 1, W_enc = W_dec^T where widths agree (Gao et al. 2024, appendix A.1)
ReLU-L1   decoder rows random directions of norm 0.1, W_enc = W_dec^T (Anthropic, April 2024 update)

A transcoder reads another space than it writes, so its encoder rows are random directions of their own. Biases are 0,
but for b_dec of TopK, which starts at the mean of the targets; W_skip is 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pipeline.dictionaries.dictionary import Dictionary
from schemas.dictionary import TopK

RELU_L1_NORM = 0.1


@torch.no_grad()
def fill(dictionary: Dictionary, target_means: Mapping[str, torch.Tensor]) -> None:
    """Overwrite all weights; ``target_means`` are raw means, hook point -> [D], from the store's statistics.

    Drawn on the CPU whatever the device of the dictionary, so that the start is the same everywhere.
    """
    spec = dictionary.spec
    generator = torch.Generator().manual_seed(spec.seed)
    norm = 1.0 if isinstance(spec.activation, TopK) else RELU_L1_NORM
    decoder_FT = _directions(dictionary.decoder.shape, generator) * norm
    encoder_FS = decoder_FT
    if spec.is_transcoder:
        encoder_FS = _directions(dictionary.encoder.shape, generator) * norm
    dictionary.decoder.copy_(decoder_FT)
    dictionary.encoder.copy_(encoder_FS)
    for bias in (dictionary.b_enc, dictionary.b_dec, dictionary.skip):
        if bias is not None:
            bias.zero_()
    if isinstance(spec.activation, TopK):
        means = [target_means[point].double() * dictionary.scales[point] for point in dictionary.d_target]
        dictionary.b_dec.copy_(torch.cat(means))


def _directions(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Rows uniform on the unit sphere."""
    return torch.nn.functional.normalize(torch.randn(shape, generator=generator), dim=1)
