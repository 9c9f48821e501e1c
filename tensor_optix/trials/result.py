"""What a search found: a pair and a mapping in one."""

from __future__ import annotations

from collections.abc import ItemsView, KeysView, Mapping, ValuesView
from typing import Any


class BestTrial(tuple[Any, ...]):
    """(params, score), and a mapping over the params.

    Both `params, score = orchestrator.run()` and `config = orchestrator.run(); config["learning_rate"]` work, and so
    do `dict(config)` and `make(**config)`. Its length and its items by number are those of the pair.
    """

    __slots__ = ()

    def __new__(cls, params: Mapping[str, Any], score: float) -> BestTrial:
        return super().__new__(cls, (dict(params), float(score)))

    def __getnewargs__(self) -> tuple[dict[str, Any], float]:
        return self.params, self.score

    @property
    def params(self) -> dict[str, Any]:
        return tuple.__getitem__(self, 0)

    @property
    def score(self) -> float:
        return tuple.__getitem__(self, 1)

    def __getitem__(self, key: Any) -> Any:
        return self.params[key] if isinstance(key, str) else tuple.__getitem__(self, key)

    def __contains__(self, key: object) -> bool:
        return key in self.params if isinstance(key, str) else tuple.__contains__(self, key)

    def keys(self) -> KeysView[str]:
        return self.params.keys()

    def values(self) -> ValuesView[Any]:
        return self.params.values()

    def items(self) -> ItemsView[str, Any]:
        return self.params.items()

    def get(self, key: str, default: Any = None) -> Any:
        return self.params.get(key, default)

    def __repr__(self) -> str:
        return f"BestTrial(params={self.params!r}, score={self.score!r})"
