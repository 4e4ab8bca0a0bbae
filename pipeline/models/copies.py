"""Networks that share the weights of another one and differ in some modules."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import nn


def with_layers(backbone: nn.Module, path: str, layers: Sequence[nn.Module]) -> nn.Module:
    """A shallow copy of the backbone whose list of blocks at ``path`` is ``layers``."""
    root = shallow_copy(backbone)
    parent = root
    *above, last = path.split(".")
    for name in above:
        child = shallow_copy(parent.get_submodule(name))
        parent._modules[name] = child
        parent = child
    is_called = isinstance(parent._modules[last], nn.Sequential)
    parent._modules[last] = nn.Sequential(*layers) if is_called else nn.ModuleList(layers)
    return root


def shallow_copy(module: nn.Module) -> nn.Module:
    """The same parameters, buffers and children, but an own table of children."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin
