"""What all PyTorch agents share: hyperparameters, saving and loading, generators. No torch in here.

`save_weights` makes a directory: the files of `Networks`, and `agent.json` with the hyperparameters and the parts that
belong to the policy (normalisers, action bounds). `save_state` adds the generators, for a bit-identical resume.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tensor_optix.core.base_agent import BaseAgent
from tensor_optix.core.types import HyperparamSet

if TYPE_CHECKING:
    from tensor_optix.algorithms._torch_networks import Networks, Saved

_AGENT, _FORMAT = "agent.json", 1


def require_torch(name: str) -> None:
    """ImportError with the command that mends it, where PyTorch is missing."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise ImportError(f'{name} needs PyTorch: pip install "tensor-optix[torch]"') from error


class ModuleAgent(BaseAgent):
    """An agent over `Networks`; subclasses act and learn.

    Args:
        networks: modules, optimizer, device.
        hyperparams: as the user gave them; a missing learning_rate is the optimizer's own.
        complete: params -> params with defaults, checked.
        parts: by name, None for what is not there; each has state_dict and load_state_dict.
        seed: of all generators.
    """

    def __init__(
        self,
        networks: Networks,
        hyperparams: HyperparamSet,
        complete: Callable[[Mapping[str, Any]], dict[str, Any]],
        parts: Mapping[str, Any],
        seed: int,
    ) -> None:
        if not isinstance(hyperparams, HyperparamSet):
            raise TypeError(f"hyperparams must be a HyperparamSet, got {hyperparams!r}: write HyperparamSet({{...}})")
        self._networks, self._complete = networks, complete
        self._parts = {name: part for name, part in parts.items() if part is not None}
        streams = np.random.SeedSequence(seed).spawn(3)
        names = ("act", "learn", "perturb")
        self._generators = {n: np.random.default_rng(stream) for n, stream in zip(names, streams, strict=True)}
        self._put_hyperparams(hyperparams, {"learning_rate": networks.learning_rate, **hyperparams.params})

    # -- hyperparameters -----------------------------------------------------------------------------------

    def get_hyperparams(self) -> HyperparamSet:
        """A copy of those in force."""
        return self._hyperparams.copy()

    def set_hyperparams(self, hyperparams: HyperparamSet) -> None:
        """Put new values in force; names that are not given keep theirs. The optimizer's moments stay."""
        before = self._hyperparams.params
        given = {name: _of_kind(before.get(name), value) for name, value in hyperparams.params.items()}
        self._put_hyperparams(hyperparams, {**before, **given})

    def _put_hyperparams(self, source: HyperparamSet, params: Mapping[str, Any]) -> None:
        self._hyperparams = HyperparamSet(self._complete(params), source.episode_id, source.timestamp)
        self._networks.learning_rate = self._hyperparams.params["learning_rate"]

    # -- weights -------------------------------------------------------------------------------------------

    def save_weights(self, path: str) -> None:
        """Write networks, optimizer, normalisers and hyperparameters into the directory `path`."""
        self._save(Path(path), {})

    def load_weights(self, path: str) -> None:
        """Restore what `save_weights` wrote. FileNotFoundError or ValueError if it cannot be, and nothing changes."""
        self._load(Path(path), with_generators=False)

    def save_state(self, path: str) -> None:
        """`save_weights` and the generators."""
        generators = {name: generator.bit_generator.state for name, generator in self._generators.items()}
        self._save(Path(path), {"generators": generators})

    def load_state(self, path: str) -> None:
        """Restore what `save_state` wrote: learning goes on bit by bit as it would have. Errors as `load_weights`."""
        self._load(Path(path), with_generators=True)

    def average_weights(self, paths: Sequence[str]) -> None:
        """Load the mean of several saved weights; normalisers are the first one's, the optimizer is left alone."""
        if not paths:
            raise ValueError("average_weights got no paths: give at least one")
        directories = [Path(path) for path in paths]
        record = self._read_record(directories[0])
        self._networks.average(directories)
        self._put_parts(record)

    def perturb_weights(self, noise_scale: float) -> None:
        """Multiply every weight by 1 + noise_scale * N(0, 1); the optimizer's moments stay."""
        if not 0.0 <= noise_scale < math.inf:
            raise ValueError(f"noise_scale must be at least 0 and finite, got {noise_scale}")
        self._networks.perturb(self._generators["perturb"], float(noise_scale))

    def teardown(self) -> None:
        """Move everything to the CPU and free the GPU's memory; the agent still works, there. May be called again."""
        self._networks.release()

    def _save(self, directory: Path, more: Mapping[str, Any]) -> None:
        params = self._hyperparams.params
        record = {
            "format": _FORMAT,
            "hyperparams": {name: _plain(value, f"hyperparameter '{name}'") for name, value in params.items()},
            "episode_id": self._hyperparams.episode_id,
            "parts": {name: _plain(part.state_dict(), name) for name, part in self._parts.items()},
            **more,
        }
        directory.mkdir(parents=True, exist_ok=True)
        self._networks.save(directory)
        (directory / _AGENT).write_text(json.dumps(record, indent=2), encoding="utf-8")

    def _load(self, directory: Path, with_generators: bool) -> None:
        record = self._read_record(directory)
        if with_generators and set(record.get("generators", ())) != set(self._generators):
            raise ValueError(f"'{directory}' holds no generators: load_state reads what save_state wrote")
        saved: Saved = self._networks.read(directory)
        # From here on nothing fails: all of it was tried on copies.
        self._networks.put(saved)
        self._put_parts(record)
        self._put_hyperparams(HyperparamSet({}, record["episode_id"]), record["hyperparams"])
        if with_generators:
            for name, generator in self._generators.items():
                generator.bit_generator.state = record["generators"][name]

    def _put_parts(self, record: Mapping[str, Any]) -> None:
        for name, part in self._parts.items():
            part.load_state_dict(record["parts"][name])

    def _read_record(self, directory: Path) -> dict[str, Any]:
        """`agent.json`, tried out on copies of what it is for."""
        path = directory / _AGENT
        if not path.is_file():
            raise FileNotFoundError(f"'{path}' is missing: expected a directory that save_weights wrote")
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["format"] != _FORMAT:
                raise ValueError(f"format {record['format']} instead of {_FORMAT}")
            there, here = sorted(record["parts"]), sorted(self._parts)
            if there != here:
                raise ValueError(f"saved with {there or 'nothing'} besides the networks, this agent has {here}")
            for name, part in self._parts.items():
                copy.deepcopy(part).load_state_dict(record["parts"][name])
            for state in record.get("generators", {}).values():
                np.random.default_rng().bit_generator.state = state
            self._complete(record["hyperparams"])
            int(record["episode_id"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"'{path}' does not fit this agent: {error}") from error
        return record


def _of_kind(before: Any, value: Any) -> Any:
    """A tuner's float as what stood there before: flags stay flags, whole numbers whole."""
    if isinstance(value, float | np.floating) and math.isfinite(value):
        if isinstance(before, bool):
            return bool(round(value))
        if isinstance(before, int):
            return round(value)
    return value


def _plain(value: Any, where: str) -> Any:
    """As JSON holds it, floats exact; TypeError for what it cannot hold."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item, where) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{where} is a {type(value).__name__}, which cannot be saved: use numbers, text and lists")
