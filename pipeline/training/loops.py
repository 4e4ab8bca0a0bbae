"""How the loops over active latents and candidates are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

# Sums may be reordered and fused so that they vectorise. NaN and infinity keep their meaning: divergence is detected.
compile_loop: Callable[..., Any] = numba.njit(nogil=True, fastmath={"reassoc", "contract", "nsz"}, boundscheck=False)
