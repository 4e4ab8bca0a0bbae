"""Covariance of a hook point's channels, mergeable: each unit's co-moments are an object, their sum another.

Co-moments of rows are C = sum of (x - mean) (x - mean)^T over them, [D, D] in float64; they merge as the squared
deviations of ``statistics`` do, which are their diagonal:
    C = C_a + C_b + delta delta^T * n_a * n_b / n,   delta = mean_b - mean_a.
Count and mean of each unit are in its ledger entry. A unit's object is the lower triangle, row by row, as a .npy file
of float64 [D (D + 1) / 2]; the covariance of all rows, C / n, is a .npy file of float64 [D, D].
"""

from __future__ import annotations

import io
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from pipeline.store.checksums import crc32c_hex
from pipeline.store.objects import Objects
from pipeline.store.statistics import finite_rows
from pipeline.store.words import Words
from schemas.errors import CorruptionError, MissingError
from schemas.fields import Dtype
from schemas.store import HookStatistics, LedgerEntry, ObjectReceipt

Matrix = npt.NDArray[np.float64]

_BLOCK_ROWS = 1024
_SAME = 1e-9
"""Relative difference up to which two computations of one matrix count as equal: other machines add in other orders."""


def comoments_name(hook: str) -> str:
    """The name that a ledger entry gives to the object of the unit's co-moments."""
    return f"comoments/{hook}"


def comoments_key(hook: str, unit: int) -> str:
    return f"comoments/{hook}/{unit:08d}.npy"


def covariance_key(hook: str, num_rows: int) -> str:
    """Of the covariance of the first ``num_rows`` rows: more rows make another object."""
    return f"covariances/{hook}/{num_rows}.npy"


def comoments(words: Words, dtype: Dtype, statistics: HookStatistics) -> Matrix:
    """[D, D] of the finite rows of words [T, D], around the mean that ``statistics`` has of the same rows."""
    width = words.shape[1]
    total, mean = np.zeros((width, width)), np.array(statistics.mean)
    size = max(_BLOCK_ROWS, width)  # as many rows as channels, or adding up would cost more than multiplying
    for start in range(0, len(words), size):
        values, _ = finite_rows(words[start : start + size], dtype)
        values -= mean
        total += values.T @ values
    return total


def merged(parts: Iterable[tuple[HookStatistics, Matrix]], *, width: int) -> tuple[int, Matrix]:
    """Count and co-moments of the rows of all parts, from left to right. Matrices may be changed."""
    count, mean, total = 0, np.zeros(width), np.zeros((width, width))
    for statistics, matrix in parts:
        if not statistics.count:
            continue
        delta = np.array(statistics.mean) - mean
        share = statistics.count / (count + statistics.count)
        total += matrix
        total += np.outer(delta * (count * share), delta)
        mean += delta * share
        count += statistics.count
    return count, total


def put_comoments(objects: Objects, unit: int, hook: str, triangle: Matrix) -> ObjectReceipt:
    """Create the unit's object, or take over what an earlier attempt left, if it is the same but for rounding.

    ``triangle``: ``packed(comoments(...))`` of the rows that are stored.
    """
    return _put(objects, comoments_key(hook, unit), triangle)


def put_covariance(
    objects: Objects, hook: str, num_rows: int, width: int, entries: Iterable[LedgerEntry]
) -> ObjectReceipt:
    """Create the object of the covariance over all ``entries``, in their order, or take over an equal one.

    Raises:
        CorruptionError: the object of a unit is not there or not what its entry says.
    """
    return _put(objects, covariance_key(hook, num_rows), covariance_of(objects, hook, width, entries))


def covariance_of(objects: Objects, hook: str, width: int, entries: Iterable[LedgerEntry]) -> Matrix:
    """[D, D] population covariance of the rows of some units; zeros of no rows. Raises CorruptionError."""
    count, total = merged((_part(objects, hook, width, entry) for entry in entries), width=width)
    return total / max(count, 1)


def read_matrix(objects: Objects, receipt: ObjectReceipt) -> Matrix:
    """The float64 array that the receipt names, checked.

    Raises:
        CorruptionError: it is not there, or altered.
    """
    where = f"{objects.url}/{receipt.key}"
    try:
        data = objects.read(receipt.key)
    except MissingError as exc:
        raise CorruptionError(f"{where}: expected {receipt.size_bytes} bytes, got no object") from exc
    if (got := crc32c_hex(data)) != receipt.crc32c:
        raise CorruptionError(f"{where}: CRC-32C: expected {receipt.crc32c}, got {got}")
    return _parsed(data, where)


def packed(matrix: Matrix) -> Matrix:
    """The lower triangle of a symmetric [D, D] row by row, [D (D + 1) / 2]."""
    return matrix[np.tril_indices(len(matrix))]


def unpacked(triangle: Matrix, width: int) -> Matrix:
    """The symmetric [width, width] whose lower triangle this is."""
    matrix = np.zeros((width, width))
    matrix[np.tril_indices(width)] = triangle
    return np.asarray(matrix + np.tril(matrix, -1).T)


def _part(objects: Objects, hook: str, width: int, entry: LedgerEntry) -> tuple[HookStatistics, Matrix]:
    receipt = entry.objects.get(comoments_name(hook))
    if receipt is None:
        raise CorruptionError(f"{objects.url}: expected co-moments of {hook} in the ledger's unit {entry.unit}")
    triangle = read_matrix(objects, receipt)
    if triangle.shape != (width * (width + 1) // 2,):
        raise CorruptionError(
            f"{objects.url}/{receipt.key}: expected the triangle of {width} channels, got {triangle.shape}"
        )
    return entry.statistics[hook], unpacked(triangle, width)


def _put(objects: Objects, key: str, ours: Matrix) -> ObjectReceipt:
    data = _npy(ours)
    if not objects.create(key, data):
        theirs = objects.read(key)
        if _is_same(theirs, ours, f"{objects.url}/{key}"):
            data = theirs
        else:
            # It is a function of words that are fixed by now, so whatever is there is damaged, and no ledger names it.
            objects.write(key, data)
    return ObjectReceipt(key=key, size_bytes=len(data), crc32c=crc32c_hex(data))


def _is_same(data: bytes, ours: Matrix, where: str) -> bool:
    try:
        theirs = _parsed(data, where)
    except CorruptionError:
        return False
    return theirs.shape == ours.shape and bool(
        np.abs(theirs - ours).max(initial=0) <= _SAME * np.abs(ours).max(initial=0)
    )


def _npy(array: Matrix) -> bytes:
    sink = io.BytesIO()
    np.lib.format.write_array(sink, np.ascontiguousarray(array, dtype="<f8"), version=(1, 0), allow_pickle=False)
    return sink.getvalue()


def _parsed(data: bytes, where: str) -> Matrix:
    try:
        array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except ValueError as exc:
        raise CorruptionError(f"{where}: expected a .npy file of float64, got {len(data)} other bytes: {exc}") from exc
    if array.dtype != np.dtype("<f8"):
        raise CorruptionError(f"{where}: expected float64, got {array.dtype}")
    return np.asarray(array)
