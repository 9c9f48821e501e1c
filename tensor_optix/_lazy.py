"""Public names of a package that are resolved on first use, with the libraries behind them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def resolver(package: str, public: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of `package`. `public`: name -> module that defines it, or "module:name" where it differs."""

    def resolve(name: str) -> Any:
        if name not in public:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, attribute = public[name].partition(":")
        value = getattr(importlib.import_module(module), attribute or name)
        setattr(sys.modules[package], name, value)
        return value

    return resolve
