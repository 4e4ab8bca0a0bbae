"""Starting weights: a pure function of the spec's seed and the centre of the targets.

unit decoders          decoder rows random directions of norm 1 (TopK: Gao et al. 2024, appendix A.1)
free decoder norms     of norm 0.1 (Anthropic, April 2024 update)
W_enc                  W_dec^T of an autoencoder, a transcoder's rows random directions of their own: it reads another
                       space than it writes; of ``relu_l1_unit_norm`` uniform in +-1/sqrt(S), torch's default for linear
                       layers (Bricken et al. 2023)
b_dec                  of the kinds that take it off the input the mean of the targets, of ``relu_l1_unit_norm`` their
                       geometric median; 0 of the others

Other biases and W_skip are 0; so are weights where no group of latents has a connection.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from pipeline.dictionaries.dictionary import Dictionary
from schemas.activation import ReluL1UnitNorm
from schemas.dictionary import DictionarySpec

FREE_NORM = 0.1


@torch.no_grad()
def fill(dictionary: Dictionary, target_centres: Mapping[str, torch.Tensor]) -> None:
    """Overwrite all weights but those of the activation function, which starts as it is made.

    ``target_centres``: raw means (or medians, see ``wants_median``), hook point -> [D]. Drawn on the CPU whatever the
    device of the dictionary, so that the start is the same everywhere.
    """
    spec = dictionary.spec
    generator = torch.Generator().manual_seed(spec.seed)
    dictionary.decoder.copy_(torch.randn(dictionary.decoder.shape, generator=generator))
    if not spec.tied:
        dictionary.encoder.copy_(_encoder(dictionary, generator))
    dictionary.zero_outside_blocks()
    norm = 1.0 if spec.activation.has_unit_decoder else FREE_NORM
    dictionary.decoder.copy_(torch.nn.functional.normalize(dictionary.decoder, dim=1) * norm)
    if not (spec.tied or wants_median(spec)):
        dictionary.encoder.copy_(torch.nn.functional.normalize(dictionary.encoder, dim=1) * norm)
    for bias in (dictionary.b_enc, dictionary.b_dec, dictionary.skip):
        if bias is not None:
            bias.zero_()
    if spec.activation.centres_input:
        centres = [target_centres[point].double() * dictionary.scales[point] for point in dictionary.d_target]
        dictionary.b_dec.copy_(torch.cat(centres))


def wants_median(spec: DictionarySpec) -> bool:
    """``fill`` takes geometric medians of this dictionary's targets, not means."""
    return isinstance(spec.activation, ReluL1UnitNorm)


def _encoder(dictionary: Dictionary, generator: torch.Generator) -> torch.Tensor:
    shape = dictionary.encoder.shape
    if wants_median(dictionary.spec):
        return torch.empty(shape).uniform_(-1, 1, generator=generator) / math.sqrt(shape[1])
    return torch.randn(shape, generator=generator) if dictionary.spec.is_transcoder else dictionary.decoder.clone()
