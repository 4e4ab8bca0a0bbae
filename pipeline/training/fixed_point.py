"""Products of rows in 16-bit fixed point: twice the multiplications of float32 in one instruction of AVX2.

A row x is written as ``unit * words``, words int16 with a norm of at most ``NORM_LIMIT``: by Cauchy and Schwarz no sum
of their products, whole or in part, leaves int32, so products of words are exact and do not depend on the order of
additions. What the rounding to words loses of a row is known (``losses``), which bounds the error of every product.

Rows of the right-hand side lie in panels of ``PANEL``, two channels of each beside one another:
int16 [panels, ceil(S / 2), PANEL, 2], the order in which ``multiply_tile`` reads them.

Letters: S channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

TILE, PANEL = 6, 16
"""Rows and columns of what is multiplied at a time: twelve accumulators of the sixteen registers."""

NORM_LIMIT = 45_000.0  # below the root of 2**31, with room for what rounding adds to a norm
_WORD_LIMIT = 32_767.0

_compile: Callable[..., Any] = numba.njit(nogil=True)

_LANES, _ACCUMULATORS = 8, PANEL // 8
_MULTIPLY_ADD = "llvm.x86.avx2.pmadd.wd"
_FUSED = "llvm.fma.v8f32"

_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_WORDS = ir.VectorType(ir.IntType(16), 2 * _LANES)
_SUMS = ir.VectorType(_I32, _LANES)
_FLOATS = ir.VectorType(_F32, _LANES)


def is_supported() -> bool:
    """This processor has the instructions."""
    try:
        features = llvmlite.binding.get_host_cpu_features()
    except RuntimeError:  # the platform does not tell
        return False
    return bool(features.get("avx2") and features.get("fma"))


@_compile
def write_words(rows: Any, words: Any, units: Any, norms: Any, losses: Any, first: int, last: int) -> None:
    """Rows first..last of float32 [N, S] as words [N, S rounded up to even], with their units, norms and losses [N].

    A row that is not finite gets the norm NaN and words 0.
    """
    for n in range(first, last):
        unit = _unit(rows[n], norms, n)
        units[n] = unit
        losses[n] = 0.0
        if words.shape[1] > rows.shape[1]:
            words[n, rows.shape[1]] = 0
        if unit == 0:
            words[n, :] = 0
            continue
        lost, inverse = np.float32(0), np.float32(1) / unit
        for d in range(rows.shape[1]):
            word = np.rint(rows[n, d] * inverse)
            words[n, d] = np.int16(word)
            rest = rows[n, d] - word * unit
            lost += rest * rest
        losses[n] = math.sqrt(lost)


@_compile
def write_panels(rows: Any, panels: Any, units: Any, norms: Any, losses: Any, first: int, last: int) -> None:
    """The same into panels first..last; what they have beyond the last row are zeros."""
    words = np.empty((1, 2 * panels.shape[1]), np.int16)
    for panel in range(first, last):
        for column in range(PANEL):
            n = panel * PANEL + column
            if n < rows.shape[0]:
                write_words(rows[n : n + 1], words, units[n:], norms[n:], losses[n:], 0, 1)
            else:
                words[:] = 0
                units[n] = norms[n] = losses[n] = 0
            for pair in range(panels.shape[1]):
                panels[panel, pair, column, 0] = words[0, 2 * pair]
                panels[panel, pair, column, 1] = words[0, 2 * pair + 1]


@_compile
def _unit(row: Any, norms: Any, n: int) -> Any:
    """What a word counts; 0 of a row that is 0 or not finite."""
    square: Any = 0.0
    peak: Any = np.float32(0)
    for d in range(len(row)):
        square += np.float64(row[d]) * np.float64(row[d])
        peak = max(peak, abs(row[d]))
    norms[n] = math.sqrt(square)
    if not math.isfinite(square):
        norms[n] = np.nan
        return np.float32(0)
    unit = np.float32(max(math.sqrt(square) / NORM_LIMIT, peak / _WORD_LIMIT))
    return unit if unit > np.finfo(np.float32).tiny else np.float32(0)


def _multiply_tile(
    typing_context: Any, words: Any, row_bytes: Any, panel: Any, num_pairs: Any, row_units: Any, units: Any,
    shifts: Any, least: Any, out: Any, masks: Any,
) -> Any:  # fmt: skip
    """TILE rows times one panel; every argument but ``row_bytes`` and ``num_pairs`` is an address.

    out float32 [TILE, PANEL] = row_units [TILE] * units [PANEL] * <words, panel> + shifts [PANEL]; bit c of masks
    int32 [TILE] is set where out[:, c] >= least [TILE].
    """
    return types.void(*[types.uintp] * 10), _tile_code


multiply_tile: Callable[..., Any] = intrinsic(_multiply_tile)


def _tile_code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    words, row_bytes, panel, num_pairs, row_units, units, shifts, least, out, masks = args
    sums = _products(builder, words, row_bytes, panel, num_pairs)
    fused = _function(builder, _FUSED, _FLOATS, [_FLOATS] * 3)
    columns = range(_ACCUMULATORS)
    column_units = [_load(builder, units, 32 * j, _FLOATS, 4) for j in columns]
    column_shifts = [_load(builder, shifts, 32 * j, _FLOATS, 4) for j in columns]
    for i in range(TILE):
        unit = _splat(builder, _load(builder, row_units, 4 * i, _F32, 4), _FLOATS)
        bound = _splat(builder, _load(builder, least, 4 * i, _F32, 4), _FLOATS)
        mask = ir.Constant(_I32, 0)
        for j in columns:
            total = builder.sitofp(sums[i * _ACCUMULATORS + j], _FLOATS)
            value = builder.call(fused, [total, builder.fmul(unit, column_units[j]), column_shifts[j]])
            builder.store(value, _pointer(builder, out, 4 * (i * PANEL + j * _LANES), _FLOATS), align=4)
            found = builder.bitcast(builder.fcmp_ordered(">=", value, bound), ir.IntType(_LANES))
            shifted = builder.shl(builder.zext(found, _I32), ir.Constant(_I32, j * _LANES))
            mask = builder.or_(mask, shifted)
        builder.store(mask, _pointer(builder, masks, 4 * i, _I32), align=4)
    return context.get_dummy_value()


def _products(builder: Any, words: Any, row_bytes: Any, panel: Any, num_pairs: Any) -> list[Any]:
    """int32 sums of TILE rows and PANEL columns, a loop over pairs of channels."""
    multiply_add = _function(builder, _MULTIPLY_ADD, _SUMS, [_WORDS] * 2)
    before = builder.block
    body, after = builder.append_basic_block("pair"), builder.append_basic_block("pairs_done")
    builder.branch(body)
    builder.position_at_end(body)
    pair = builder.phi(_I64)
    pair.add_incoming(ir.Constant(_I64, 0), before)
    totals = [builder.phi(_SUMS) for _ in range(TILE * _ACCUMULATORS)]
    at_panel = builder.add(panel, builder.mul(pair, ir.Constant(_I64, 4 * PANEL)))
    columns = [_load(builder, at_panel, 32 * j, _WORDS, 32) for j in range(_ACCUMULATORS)]
    at_words = builder.add(words, builder.shl(pair, ir.Constant(_I64, 2)))
    sums: list[Any] = []
    for i in range(TILE):
        at_row = builder.add(at_words, builder.mul(row_bytes, ir.Constant(_I64, i)))
        both = builder.bitcast(_splat(builder, _load(builder, at_row, 0, _I32, 4), _SUMS), _WORDS)
        for j in range(_ACCUMULATORS):
            sums.append(builder.add(totals[len(sums)], builder.call(multiply_add, [both, columns[j]])))
    following = builder.add(pair, ir.Constant(_I64, 1))
    pair.add_incoming(following, body)
    for total, new in zip(totals, sums, strict=True):
        total.add_incoming(ir.Constant(_SUMS, [0] * _LANES), before)
        total.add_incoming(new, body)
    builder.cbranch(builder.icmp_unsigned("<", following, num_pairs), body, after)
    builder.position_at_end(after)
    return sums


def _pointer(builder: Any, address: Any, offset: int, kind: Any) -> Any:
    return builder.inttoptr(builder.add(address, ir.Constant(_I64, offset)), kind.as_pointer())


def _load(builder: Any, address: Any, offset: int, kind: Any, align: int) -> Any:
    return builder.load(_pointer(builder, address, offset, kind), align=align)


def _splat(builder: Any, value: Any, kind: Any) -> Any:
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_I32, kind.count), [0] * kind.count))


def _function(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    found = builder.module.globals.get(name)
    return found or ir.Function(builder.module, ir.FunctionType(result, arguments), name)
