"""Taking tensors out of a forward while it runs, and leaving it when the last one is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress

from torch import Tensor

from pipeline.models.hooks import HookSite, tap


class _AllCapturedError(Exception):
    """Leaves a forward whose remaining layers nobody asked for."""


def capture(
    run: Callable[[], object],
    sites: Sequence[HookSite],
    *,
    copied: set[str],
    differentiated: frozenset[str] = frozenset(),
) -> tuple[dict[str, Tensor], set[str]]:
    """Run until each site was passed once; the tensors in the order of ``sites``, and those overwritten since.

    Tensors named in ``copied`` are cloned, the others are the network's own. A site that is passed more than once gives
    its first tensor. With ``differentiated`` the forward runs to its end, and those tensors get a gradient from what is
    computed of them.
    """
    found: dict[str, tuple[Tensor, int]] = {}

    def keep_as(name: str) -> Callable[[Tensor], None]:
        def keep(tensor: Tensor) -> None:
            if name not in found:
                if name in differentiated:
                    tensor.requires_grad_()
                kept = tensor.clone() if name in copied and name not in differentiated else tensor
                found[name] = (kept, kept._version)
            if len(found) == len(sites) and not differentiated:
                raise _AllCapturedError

        return keep

    with ExitStack() as stack:
        for site in sites:
            stack.callback(tap(site, keep_as(site.name)).remove)
        with suppress(_AllCapturedError):
            run()
    mutated = {name for name, (tensor, version) in found.items() if tensor._version != version}
    return {site.name: found[site.name][0] for site in sites if site.name in found}, mutated
