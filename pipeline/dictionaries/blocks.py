"""Which part of the weights exists: groups of latents read some sources and write some targets.

The matrices are kept whole, with zeros where a group has no connection, so every dictionary has the same few tensors.
Products skip the zeros: an encoder of L groups that read one source each costs 1/L of the whole product.

Letters: B rows, F latents, S and T the summed widths of all sources and of all targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from schemas.dictionary import DictionarySpec


@dataclass(frozen=True)
class Block:
    """One group of latents."""

    latents: slice
    """Rows of ``encoder`` and ``decoder``."""
    sources: tuple[slice, ...]
    """Columns of ``encoder`` that exist, neighbours merged, ascending."""
    targets: tuple[slice, ...]
    """Columns of ``decoder`` that exist, neighbours merged, ascending."""


def blocks_of(spec: DictionarySpec, d_source: Mapping[str, int], d_target: Mapping[str, int]) -> list[Block]:
    """The blocks of a spec, in the order of their latents."""
    blocks, first = [], 0
    for group in spec.latent_groups:
        latents = slice(first, first + group.num_latents)
        blocks.append(Block(latents, _columns(group.sources, d_source), _columns(group.targets, d_target)))
        first = latents.stop
    return blocks


def within(blocks: Sequence[Block], latents: range) -> list[Block]:
    """What the blocks have of some latents, whose rows then count from 0."""
    found = []
    for block in blocks:
        first = max(block.latents.start, latents.start) - latents.start
        last = min(block.latents.stop, latents.stop) - latents.start
        if first < last:
            found.append(Block(slice(first, last), block.sources, block.targets))
    return found


def encode(
    z_BS: torch.Tensor, encoder_FS: torch.Tensor, b_enc_F: torch.Tensor, blocks: Sequence[Block]
) -> torch.Tensor:
    """Pre-activations [B, F]; differentiable."""
    if _is_whole([block.sources for block in blocks], z_BS.shape[1]):
        return torch.addmm(b_enc_F, z_BS, encoder_FS.T)
    return torch.cat([_encode_block(z_BS, encoder_FS, b_enc_F, block) for block in blocks], dim=1)


def encode_into(
    out_BF: torch.Tensor, z_BS: torch.Tensor, encoder_FS: torch.Tensor, b_enc_F: torch.Tensor, blocks: Sequence[Block]
) -> None:
    """The same, into ``out_BF``; not differentiable."""
    if _is_whole([block.sources for block in blocks], z_BS.shape[1]):
        torch.addmm(b_enc_F, z_BS, encoder_FS.T, out=out_BF)
        return
    for block in blocks:
        out_BF[:, block.latents] = _encode_block(z_BS, encoder_FS, b_enc_F, block)


def decode(codes_BF: torch.Tensor, decoder_FT: torch.Tensor, blocks: Sequence[Block]) -> torch.Tensor:
    """Dense codes -> sum over latents of code * decoder row, [B, T]; differentiable."""
    if _is_whole([block.targets for block in blocks], decoder_FT.shape[1]):
        return codes_BF @ decoder_FT
    out_BT = codes_BF.new_zeros(len(codes_BF), decoder_FT.shape[1])
    for block in blocks:
        for columns in block.targets:
            out_BT[:, columns] += codes_BF[:, block.latents] @ decoder_FT[block.latents, columns]
    return out_BT


def zero_outside(
    blocks: Sequence[Block], *, encoder_FS: torch.Tensor, decoder_FT: torch.Tensor, skip_TS: torch.Tensor | None
) -> None:
    """Clear, in place, what does not exist: of weights, or of their gradients."""
    for block in blocks:
        for columns in _gaps(block.sources, encoder_FS.shape[1]):
            encoder_FS[block.latents, columns] = 0
        for columns in _gaps(block.targets, decoder_FT.shape[1]):
            decoder_FT[block.latents, columns] = 0
    if skip_TS is not None:
        skip_TS.mul_(_joined(blocks, skip_TS))


def _joined(blocks: Sequence[Block], skip_TS: torch.Tensor) -> torch.Tensor:
    """Where a group reads the source and writes the target, bool [T, S]."""
    joined_TS = torch.zeros_like(skip_TS, dtype=torch.bool)
    for block in blocks:
        for rows in block.targets:
            for columns in block.sources:
                joined_TS[rows, columns] = True
    return joined_TS


def _encode_block(z_BS: torch.Tensor, encoder_FS: torch.Tensor, b_enc_F: torch.Tensor, block: Block) -> torch.Tensor:
    pre = b_enc_F[block.latents]
    for columns in block.sources:
        pre = torch.addmm(pre, z_BS[:, columns], encoder_FS[block.latents, columns].T)
    return pre


def _is_whole(columns: Sequence[tuple[slice, ...]], width: int) -> bool:
    return all(ranges == (slice(0, width),) for ranges in columns)


def _columns(points: Sequence[str], widths: Mapping[str, int]) -> tuple[slice, ...]:
    """Column ranges of the points, neighbours merged."""
    ranges: list[slice] = []
    first = 0
    for point, width in widths.items():
        if point in points:
            if ranges and ranges[-1].stop == first:
                ranges[-1] = slice(ranges[-1].start, first + width)
            else:
                ranges.append(slice(first, first + width))
        first += width
    return tuple(ranges)


def _gaps(columns: Sequence[slice], width: int) -> list[slice]:
    """What the ranges leave of 0..width."""
    edges = [0, *(edge for part in columns for edge in (part.start, part.stop)), width]
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return [slice(start, stop) for start, stop in pairs if start < stop]
