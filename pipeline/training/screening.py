"""The largest pre-activations of rows on the CPU, without all pre-activations: screened in fixed point, then exact.

    approximate = unit_b * unit_f * <words_b, words_f> + b_enc[f]        |approximate - exact| <= margin_b

1. Products in 16-bit fixed point (``fixed_point.py``), a tile at a time, leave behind what can be among the k largest
   of a row: approximate values of at least (k-th largest of them so far) - 2 margin_b, and of at least -margin_b. They
   never leave the cache.
2. Of these few (on the average two or three more than k) the float32 products are computed, and the k largest kept.

So the result is that of the whole float32 product, but for the order of its additions, at the price of the fixed-point
one. Values that tie at the k-th place: those of the lowest latents are kept. A row depends on itself alone: results do
not depend on the number of threads.

Letters: B rows, F latents, K active latents of a row, S channels, C candidates of a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pipeline.dictionaries.codes import SparseCodes
from pipeline.training.fixed_point import PANEL, TILE, multiply_tile, write_panels, write_words
from pipeline.training.loops import compile_loop

# The loops below copy number by number: numba takes a second and more to compile an assignment of one slice to another.

CHUNK_ROWS = 16 * TILE
"""Rows that a panel of the encoder meets while it is in the fastest cache; a unit of work of a thread."""

_MAX_CANDIDATES = 2**22  # of a chunk's rows together: 32 MiB
_ROUNDING = 1e-6  # relative, of the float32 arithmetic around the products; 16 steps of the last bit

Run = Callable[[Callable[[int], Any], int], list[Any]]
"""``run(work, n)``: the results of work(0) .. work(n - 1), in order, on several threads."""


class Screen:
    """Words of an encoder and of rows, in memory that is kept from one call to the next."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._buffers: dict[str, torch.Tensor] = {}

    def largest(self, z_BS: torch.Tensor, encoder_FS: torch.Tensor, b_enc_F: torch.Tensor, k: int) -> SparseCodes:
        """The k largest pre-activations of each row, negative ones cut to 0. All float32, contiguous."""
        num_rows = len(z_BS)
        values = torch.zeros(num_rows, k)
        indices = torch.zeros(num_rows, k, dtype=torch.int64)
        screened = self._screened(z_BS, encoder_FS, b_enc_F)
        arrays = (*screened, values.numpy(), indices.numpy())
        self._run(lambda chunk: _largest_of_chunk(*arrays, chunk * CHUNK_ROWS), _chunks(num_rows, CHUNK_ROWS))
        return SparseCodes(values, indices)

    def above(
        self, z_BS: torch.Tensor, encoder_FS: torch.Tensor, b_enc_F: torch.Tensor, least: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``(values, flat places)`` of the pre-activations of at least ``least`` > 0, ascending by place."""
        num_rows, num_latents = len(z_BS), len(encoder_FS)
        tiles = max(1, min(CHUNK_ROWS, _MAX_CANDIDATES // num_latents) // TILE)
        screened = self._screened(z_BS, encoder_FS, b_enc_F)
        step = tiles * TILE
        found = self._run(
            lambda chunk: _above_of_chunk(*screened, np.float32(least), chunk * step, step), _chunks(num_rows, step)
        )
        if not found:
            return z_BS.new_zeros(0), torch.zeros(0, dtype=torch.int64)
        values, places = zip(*found, strict=True)
        return torch.from_numpy(np.concatenate(values)), torch.from_numpy(np.concatenate(places))

    def _screened(self, z_BS: torch.Tensor, encoder_FS: torch.Tensor, b_enc_F: torch.Tensor) -> tuple[Any, ...]:
        """Arguments that both kinds of chunk begin with."""
        (num_rows, width), num_latents = z_BS.shape, len(encoder_FS)
        padded, panels, pairs = _chunks(num_rows, TILE) * TILE, _chunks(num_latents, PANEL), _chunks(width, 2)
        z, encoder, b_enc = (tensor.detach().numpy() for tensor in (z_BS, encoder_FS, b_enc_F))
        words = self._buffer("rows", torch.int16, padded, 2 * pairs)
        packed = self._buffer("panels", torch.int16, panels, pairs, PANEL, 2)
        rows_of, latents_of = np.zeros((3, padded), np.float32), np.zeros((3, panels * PANEL), np.float32)
        self._run(
            lambda part: write_words(z, words, *rows_of, part * CHUNK_ROWS, min(num_rows, (part + 1) * CHUNK_ROWS)),
            _chunks(num_rows, CHUNK_ROWS),
        )
        self._run(
            lambda part: write_panels(encoder, packed, *latents_of, part * 16, min(panels, (part + 1) * 16)),
            _chunks(panels, 16),
        )
        shifts = np.full(panels * PANEL, -np.inf, np.float32)
        shifts[:num_latents] = b_enc
        margins = _margins(rows_of, latents_of, b_enc)
        return z, encoder, b_enc, words, packed, rows_of[0], latents_of[0], shifts, margins

    def _buffer(self, name: str, dtype: torch.dtype, *shape: int) -> Any:
        size = math.prod(shape)
        if name not in self._buffers or self._buffers[name].numel() < size:
            self._buffers[name] = torch.empty(size, dtype=dtype)  # torch aligns to cache lines, numpy does not
        return self._buffers[name][:size].view(*shape).numpy()


def _margins(rows_of: Any, latents_of: Any, b_enc: Any) -> Any:
    """Bound of the error of a row's approximate values, [B]; NaN where row or encoder are not finite."""
    _, norms_B, losses_B = rows_of.astype(np.float64)
    _, norms_F, losses_F = latents_of.astype(np.float64)
    norm, loss = norms_F.max(initial=0), losses_F.max(initial=0)
    products = losses_B * norm + (norms_B + losses_B) * loss
    around = norms_B * norm + np.abs(b_enc).max(initial=0)
    return (products + _ROUNDING * (products + around)).astype(np.float32)


@compile_loop
def _largest_of_chunk(
    z: Any, encoder: Any, b_enc: Any, words: Any, panels: Any, row_units: Any, units: Any, shifts: Any, margins: Any,
    values: Any, indices: Any, first: int,
) -> None:  # fmt: skip
    k, num_rows = values.shape[1], min(CHUNK_ROWS, len(z) - first)
    room = max(256, 4 * k) + PANEL
    counts = np.zeros(num_rows, np.int64)
    candidates, latents = np.empty((num_rows, room), np.float32), np.empty((num_rows, room), np.int64)
    least = np.full(num_rows + TILE, np.inf, np.float32)
    for i in range(num_rows):
        least[i] = -margins[first + i]
    scratch = np.empty(room, np.float32)
    _scan(words, panels, row_units, units, shifts, margins, least, counts, candidates, latents, scratch, k, first)
    everything = np.empty(0, np.float32)
    every_latent = np.empty(0, np.int64)
    for i in range(num_rows):
        b = first + i
        if not math.isfinite(margins[b]):
            values[b, :] = np.nan
        elif counts[i] < 0:
            # More candidates than there is room for: latents that tie. All of the row's products.
            if len(everything) == 0:
                everything, every_latent = np.empty(len(encoder), np.float32), np.arange(len(encoder))
            _products(z[b], encoder, b_enc, every_latent, everything, len(encoder))
            _keep_largest(everything, every_latent, len(encoder), everything.copy(), values[b], indices[b])
        else:
            _drop_small(candidates[i], latents[i], counts, i, least, margins[b], scratch, k)
            _products(z[b], encoder, b_enc, latents[i], candidates[i], counts[i])
            _keep_largest(candidates[i], latents[i], counts[i], scratch, values[b], indices[b])


@compile_loop
def _above_of_chunk(
    z: Any, encoder: Any, b_enc: Any, words: Any, panels: Any, row_units: Any, units: Any, shifts: Any, margins: Any,
    bound: Any, first: int, step: int,
) -> Any:  # fmt: skip
    num_rows, num_latents = min(step, len(z) - first), len(encoder)
    counts = np.zeros(num_rows, np.int64)
    room = num_latents + PANEL
    candidates, latents = np.empty((num_rows, room), np.float32), np.empty((num_rows, room), np.int64)
    least = np.full(num_rows + TILE, np.inf, np.float32)
    for i in range(num_rows):
        least[i] = bound - margins[first + i]
    scratch = np.empty(0, np.float32)
    _scan(words, panels, row_units, units, shifts, margins, least, counts, candidates, latents, scratch, 0, first)
    values, places = np.empty(counts.sum(), np.float32), np.empty(counts.sum(), np.int64)
    total = 0
    for i in range(num_rows):
        _products(z[first + i], encoder, b_enc, latents[i], candidates[i], counts[i])
        for c in range(counts[i]):
            if candidates[i, c] >= bound:
                values[total] = candidates[i, c]
                places[total] = (first + i) * num_latents + latents[i, c]
                total += 1
    return values[:total], places[:total]


@compile_loop
def _scan(
    words: Any, panels: Any, row_units: Any, units: Any, shifts: Any, margins: Any, least: Any, counts: Any,
    candidates: Any, latents: Any, scratch: Any, k: int, first: int,
) -> None:  # fmt: skip
    """Append to the candidates [rows, room] of each row; k > 0: raise ``least`` whenever there are too many of them."""
    num_rows, room, num_pairs = counts.shape[0], candidates.shape[1], panels.shape[1]
    tile, masks = np.empty((TILE, PANEL), np.float32), np.empty(TILE, np.int32)
    for panel in range(panels.shape[0]):
        for i in range(0, num_rows, TILE):
            multiply_tile(
                words.ctypes.data + (first + i) * words.strides[0], words.strides[0],
                panels.ctypes.data + panel * panels.strides[0], num_pairs,
                row_units.ctypes.data + 4 * (first + i), units.ctypes.data + 4 * panel * PANEL,
                shifts.ctypes.data + 4 * panel * PANEL, least.ctypes.data + 4 * i, tile.ctypes.data, masks.ctypes.data,
            )  # fmt: skip
            for t in range(min(TILE, num_rows - i)):
                if masks[t] == 0:
                    continue
                row, mask = i + t, masks[t]
                count = counts[row]
                for column in range(PANEL):
                    if (mask >> column) & 1:
                        candidates[row, count] = tile[t, column]
                        latents[row, count] = panel * PANEL + column
                        count += 1
                counts[row] = count
                if k > 0 and count > room - PANEL:
                    _drop_small(
                        candidates[row], latents[row], counts, row, least, margins[first + row], scratch, k
                    )  # fmt: skip
                    if counts[row] > room - PANEL:
                        counts[row] = -1
                        least[row] = np.inf


@compile_loop
def _drop_small(
    candidates: Any, latents: Any, counts: Any, row: int, least: Any, margin: Any, scratch: Any, k: int
) -> None:
    """Raise ``least`` to what the k-th largest says, and leave out the candidates below it."""
    count = counts[row]
    if count <= k:
        return
    for c in range(count):
        scratch[c] = candidates[c]
    least[row] = max(least[row], _kth_largest(scratch, count, k) - 2 * margin)
    kept = 0
    for c in range(count):
        if candidates[c] >= least[row]:
            candidates[kept] = candidates[c]
            latents[kept] = latents[c]
            kept += 1
    counts[row] = kept


@compile_loop
def _products(row: Any, encoder: Any, b_enc: Any, latents: Any, out: Any, count: int) -> None:
    """float32 pre-activations of ``count`` latents."""
    for c in range(count):
        latent = latents[c]
        total = np.float32(0)
        for d in range(len(row)):
            total += row[d] * encoder[latent, d]
        out[c] = total + b_enc[latent]


@compile_loop
def _keep_largest(found: Any, latents: Any, count: int, scratch: Any, values: Any, indices: Any) -> None:
    """The largest positive ones into ``values``, which is 0; of equal ones the first, whose latents are the lowest."""
    k = len(values)
    bound = np.float32(0)
    places = k
    if count > k:
        for c in range(count):
            scratch[c] = found[c]
        bound = max(bound, _kth_largest(scratch, count, k))
        for c in range(count):
            places -= found[c] > bound
    slot = 0
    for c in range(count):
        if found[c] > bound or (found[c] == bound and bound > 0 and places > 0):
            places -= found[c] == bound
            values[slot] = found[c]
            indices[slot] = latents[c]
            slot += 1


@compile_loop
def _kth_largest(values: Any, count: int, k: int) -> Any:
    """Of the first ``count`` values, which it moves about (Hoare's selection)."""
    low, high = 0, count - 1
    wanted = k - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] > pivot:
                i += 1
            while values[j] < pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if wanted <= j:
            high = j
        elif wanted >= i:
            low = i
        else:
            break
    return values[wanted]


def _chunks(size: int, each: int) -> int:
    return -(-size // each)
