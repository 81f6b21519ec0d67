"""Trees of modules that share their weights with another."""

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn

_Module = TypeVar("_Module", bound=nn.Module)


def twin_of(module: _Module) -> _Module:
    """Return a module that holds what another holds; what is set in the one is not set in the other."""
    # Not copy.copy, which some modules refuse, such as parametrized ones.
    twin = object.__new__(type(module))
    twin.__dict__.update(module.__dict__)
    return twin


def with_same_weights(module: Any, exchanged: Mapping[nn.Module, nn.Module] | None = None) -> Any:
    """Copy a tree of modules, but not what they hold, with other modules in place of some."""
    copies: dict[nn.Module, nn.Module] = dict(exchanged or {})

    def copied(module: nn.Module) -> nn.Module:
        """Return the one copy of a module."""
        if module not in copies:
            copies[module] = twin_of(module)
            children = module._modules.items()
            copies[module]._modules = {name: None if child is None else copied(child) for name, child in children}
        return copies[module]

    return copied(module)
