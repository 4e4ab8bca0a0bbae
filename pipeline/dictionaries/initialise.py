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
from collections.abc import Callable, Mapping

import torch

from pipeline.dictionaries.dictionary import Dictionary
from schemas.activation import ReluL1UnitNorm
from schemas.dictionary import DictionarySpec

FREE_NORM = 0.1
_PART_ROWS = 4096  # a multiple of 16, see ``_draw_into``


@torch.no_grad()
def fill(dictionary: Dictionary, target_centres: Mapping[str, torch.Tensor]) -> None:
    """Overwrite all weights but those of the activation function, which starts as it is made.

    ``target_centres``: raw means (or medians, see ``wants_median``), hook point -> [D]. Drawn on the CPU whatever the
    device of the dictionary, so that the start is the same everywhere. Of a dictionary that lies on several ranks each
    gets what one rank would have at the same latents.
    """
    spec = dictionary.spec
    generator = torch.Generator().manual_seed(spec.seed)
    _draw_into(dictionary.decoder, dictionary, torch.Tensor.normal_, generator)
    if not spec.tied:
        _fill_encoder(dictionary, generator)
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


def _fill_encoder(dictionary: Dictionary, generator: torch.Generator) -> None:
    encoder = dictionary.encoder
    if wants_median(dictionary.spec):
        _draw_into(encoder, dictionary, lambda part, **kw: part.uniform_(-1, 1, **kw), generator)
        encoder.div_(math.sqrt(encoder.shape[1]))
    elif dictionary.spec.is_transcoder:
        _draw_into(encoder, dictionary, torch.Tensor.normal_, generator)
    else:
        encoder.copy_(dictionary.decoder)


def _draw_into(
    weights_FD: torch.Tensor, dictionary: Dictionary, draw: Callable[..., object], generator: torch.Generator
) -> None:
    """Overwrite with the rows, at the dictionary's latents, of a matrix drawn for all latents.

    It is drawn a part at a time, so that no rank holds all of it. The numbers are those of one draw of the whole: torch
    draws in groups of 16, and parts end where groups do.
    """
    latents, num_all = dictionary.latents, dictionary.spec.num_latents
    for first in range(0, num_all, _PART_ROWS):
        last = num_all if first + 2 * _PART_ROWS > num_all else first + _PART_ROWS
        part = torch.empty(last - first, weights_FD.shape[1])
        draw(part, generator=generator)
        start, stop = max(first, latents.start), min(last, latents.stop)
        if start < stop:
            weights_FD[start - latents.start : stop - latents.start] = part[start - first : stop - first]
        if last == num_all:
            return
