"""Trees of modules that share their weights with another."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn


def with_same_weights(module: Any, exchanged: Mapping[nn.Module, nn.Module] | None = None) -> Any:
    """Copy a tree of modules, but not what they hold, with other modules in place of some."""
    copies: dict[nn.Module, nn.Module] = dict(exchanged or {})

    def copied(module: nn.Module) -> nn.Module:
        """Return the one copy of a module."""
        if module not in copies:
            copies[module] = copy.copy(module)
            children = module._modules.items()
            copies[module]._modules = {name: None if child is None else copied(child) for name, child in children}
        return copies[module]

    return copied(module)
