"""gymnax, imported at first use and without what it imports only for drawing.

Some of gymnax's environments have a `render` method and import matplotlib and seaborn (with pandas and scipy.stats)
for it at module level: most of the time that `import gymnax` takes. While gymnax is imported, those two packages are
replaced by stand-ins that load the real one when they are first used. The stand-ins leave `sys.modules` again right
after, so that everybody else's `import matplotlib` and `import seaborn` are untouched.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import sys
import threading
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

_DRAWING = ("matplotlib", "seaborn")
_lock = threading.Lock()


def gymnax() -> ModuleType:
    """The module `gymnax`. ImportError with the pip command if it is not installed."""
    with _lock:
        if "gymnax" in sys.modules:
            return sys.modules["gymnax"]
        try:
            with _deferred(_DRAWING):
                return importlib.import_module("gymnax")
        except ModuleNotFoundError as error:
            if error.name == "gymnax":
                raise ImportError("environments by id need gymnax: pip install gymnax") from error
            raise
        except (ImportError, AttributeError):
            # A version of gymnax that needs the real thing while it is imported.
            for name in [name for name in sys.modules if name.split(".")[0] == "gymnax"]:
                del sys.modules[name]
            return importlib.import_module("gymnax")


class _StandIn(ModuleType):
    """A module that becomes another one when it is used."""

    _active = True

    def __getattr__(self, name: str) -> Any:
        if self._active:
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)


class _StandInFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answers for the given packages, unless they are loaded already, and for the importing thread only."""

    def __init__(self, packages: Sequence[str]) -> None:
        self._packages = [name for name in packages if name not in sys.modules]
        self._thread = threading.get_ident()
        self.made: list[_StandIn] = []

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if threading.get_ident() != self._thread or fullname.split(".")[0] not in self._packages:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        self.made.append(_StandIn(spec.name))
        return self.made[-1]

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextlib.contextmanager
def _deferred(packages: Sequence[str]) -> Iterator[None]:
    finder = _StandInFinder(packages)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for module in finder.made:
            module._active = False
            if sys.modules.get(module.__name__) is module:
                del sys.modules[module.__name__]
