"""A keyed permutation of 0..size-1 that is evaluated index by index, without a table.

A balanced Feistel network on the smallest even number of bits that holds the size, with cycle walking (Black and
Rogaway 2002) for the indices that fall outside. The round function is the finaliser of splitmix64 (Steele et al.
2014), which lets every input bit reach every output bit. A round function such as ``(x * odd + key) mod 2**k``
does not: its bit i depends on the bits up to i alone, so that neighbours keep their parity structure for ever.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

ROUNDS = 8
_MIN_HALF_BITS = 3
_WORD = np.uint64


def _mix(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Finaliser of splitmix64: a bijection of 64-bit words with full avalanche."""
    words = (words ^ (words >> _WORD(30))) * _WORD(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> _WORD(27))) * _WORD(0x94D049BB133111EB)
    return words ^ (words >> _WORD(31))


class KeyedPermutation:
    """A bijection of 0..size-1, chosen by ``key``; memory is constant in ``size``."""

    def __init__(self, size: int, key: int) -> None:
        if not 1 <= size <= 2**62:
            raise ValueError(f"size of a permutation: expected 1 to 2**62, got {size}")
        self.size = size
        self.half_bits = max(_MIN_HALF_BITS, ((size - 1).bit_length() + 1) // 2)
        self._round_keys = [
            _WORD(int.from_bytes(hashlib.sha256(f"{key}/{turn}".encode()).digest()[:8], "little"))
            for turn in range(ROUNDS)
        ]

    def apply(self, indices: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """The images of ``indices`` (any shape, each in 0..size-1), a new int64 array of the same shape."""
        given = np.asarray(indices)
        if given.size and not (given.min() >= 0 and given.max() < self.size):
            raise IndexError(
                f"indices of a permutation: expected 0 to {self.size - 1}, got {given.min()}..{given.max()}"
            )
        images = self._encrypt(given.astype(np.uint64).reshape(-1))
        # Walking the cycle until it is back inside keeps the map a bijection; the domain is at most 4 times the
        # size (64 for the tiniest), so few steps are needed.
        outside = np.flatnonzero(images >= _WORD(self.size))
        while outside.size:
            images[outside] = self._encrypt(images[outside])
            outside = outside[images[outside] >= _WORD(self.size)]
        return images.astype(np.int64).reshape(given.shape)

    def _encrypt(self, words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """One pass of the network over the domain [0, 4**half_bits)."""
        bits = _WORD(self.half_bits)
        left, right = words >> bits, words & ((_WORD(1) << bits) - _WORD(1))
        for round_key in self._round_keys:
            # The high bits of the product are the best mixed ones.
            left, right = right, left ^ (_mix(right + round_key) >> (_WORD(64) - bits))
        return (left << bits) | right
