"""An observation normaliser beside the inputs of a graph: what it knows of each follows the input by its id."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from tensor_optix.core.normalizers import ObsNormalizer


class InputMoments:
    """Mean and variance of each input, whatever its place among the others is by now.

    Args:
        normalizer: rearranged in place; None: there is nothing to follow.
        ids: of the inputs, in the order of the observation.

    Raises:
        ValueError: the normaliser is for another number of inputs.
    """

    def __init__(self, normalizer: ObsNormalizer | None, ids: Sequence[Hashable]) -> None:
        self._normalizer, self._ids = normalizer, list(ids)
        self._check()

    def follow(self, ids: Sequence[Hashable]) -> None:
        """The inputs are these now. Of new ones nothing is known, what was known of those that are gone is dropped."""
        if self._normalizer is None:
            return
        self._check()
        if ids != self._ids:
            place = {name: i for i, name in enumerate(self._ids)}
            self._normalizer.rearrange([place.get(name) for name in ids])
            self._ids = list(ids)

    def record(self) -> dict[str, Any]:
        """What is saved beside the moments."""
        return {} if self._normalizer is None else {"inputs": self._ids}

    def expect(self, record: Mapping[str, Any], ids: Sequence[Hashable]) -> None:
        """The moments of `record` are about to be loaded; before there was a `record()`, they were of `ids`.

        ValueError if they are of another number.
        """
        saved = record["parts"].get("obs_normalizer")
        if self._normalizer is None or saved is None:
            return
        # JSON has no tuples: a brain's ids are region and neuron.
        found = [tuple(name) if isinstance(name, list) else name for name in record.get("inputs", ids)]
        if len(saved["mean"]) != len(found):
            raise ValueError(
                f"the normaliser was saved for {len(saved['mean'])} inputs, and the graph has {len(found)}"
            )
        self._normalizer.rearrange([None] * len(found))
        self._ids = found

    def _check(self) -> None:
        if self._normalizer is not None and self._normalizer.rms.mean.shape != (len(self._ids),):
            shape = list(self._normalizer.rms.mean.shape)
            raise ValueError(f"obs_normalizer is for observations of shape {shape}, expected {[len(self._ids)]}")
