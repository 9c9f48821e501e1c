"""What every host agent in JAX is: parameters and optimiser state as pytrees, a generator, hyperparameters, files."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tensor_optix.adapters.jax import agent_files
from tensor_optix.core.base_agent import BaseAgent
from tensor_optix.core.normalizers import ObsNormalizer, RewardNormalizer
from tensor_optix.core.types import HyperparamSet


class FlaxBase(BaseAgent):
    """Hyperparameters, saving and loading, averaging and perturbing; subclasses act and learn.

    Args:
        params: nested dict of arrays, the network weights.
        opt: the optimiser's state, a pytree of arrays.
        hyperparams: what the user gave.
        complete: fills in defaults and refuses bad values.
        seed: of acting, shuffling and perturbing.
        parts: name -> what else is saved, with `state_dict` and `load_state_dict`, or None; an observation normaliser
            is "obs_normalizer".
    """

    def __init__(
        self,
        params: Any,
        opt: Any,
        hyperparams: HyperparamSet,
        complete: Callable[[Mapping[str, Any]], dict[str, Any]],
        seed: int,
        parts: Mapping[str, Any],
    ) -> None:
        self._params, self._opt = params, opt
        self._complete = complete
        self._rng = np.random.default_rng(seed)
        self._parts = {name: part for name, part in parts.items() if part is not None}
        self._hyperparams = HyperparamSet({})
        self.set_hyperparams(hyperparams)

    @property
    def obs_normalizer(self) -> ObsNormalizer | None:
        """Normalises what the networks see; learns from each window after the agent has."""
        return self._parts.get("obs_normalizer")

    @property
    def reward_normalizer(self) -> RewardNormalizer | None:
        """Scales the rewards that are learned from."""
        return self._parts.get("reward_normalizer")

    # -- hyperparameters -----------------------------------------------------------------------------------

    def get_hyperparams(self) -> HyperparamSet:
        return self._hyperparams.copy()

    def set_hyperparams(self, hyperparams: HyperparamSet) -> None:
        """In force from the next window on; the optimiser's moments stay, and nothing is compiled anew.

        (A `minibatch_size` that was not used before is a new shape: the update is compiled for it, once.)
        """
        params = self._complete({**self._hyperparams.params, **hyperparams.params})
        self._hyperparams = HyperparamSet(params, hyperparams.episode_id, hyperparams.timestamp)

    # -- observations --------------------------------------------------------------------------------------

    def _prepared(self, obs: Any) -> np.ndarray:
        """Observations as the networks take them, float32."""
        normalizer = self.obs_normalizer
        return np.asarray(obs, np.float32) if normalizer is None else normalizer.normalize(obs)

    def _present(self) -> Any:
        """The parameters; RuntimeError after `teardown`."""
        if self._params is None:
            raise RuntimeError("the agent was torn down: load weights into a new one")
        return self._params

    # -- weights -------------------------------------------------------------------------------------------

    def save_weights(self, path: str) -> None:
        """Write the directory `path`: weights, optimiser, normalisers, hyperparameters (see `agent_files`)."""
        agent_files.write(path, self._present(), self._opt, self._record())

    def load_weights(self, path: str) -> None:
        """Read all that `save_weights` wrote. RunDirError or ValueError leave the agent as it was."""
        self._load(path, with_generator=False)

    def save_state(self, path: str) -> None:
        """`save_weights` and the random generator: what comes after `load_state` is what would have come here."""
        agent_files.write(
            path, self._present(), self._opt, {**self._record(), "generator": self._rng.bit_generator.state}
        )

    def load_state(self, path: str) -> None:
        """Read what `save_state` wrote; raises as `load_weights`."""
        self._load(path, with_generator=True)

    def average_weights(self, paths: Sequence[str]) -> None:
        """Load the mean of several saved weights, with the normalisers of the first; the rest stays."""
        if not paths:
            raise ValueError("average_weights got no paths: give at least one that save_weights wrote")
        first = agent_files.read(paths[0], self._present(), self._opt)
        trees = [first.params, *(agent_files.read_params(path, self._params) for path in paths[1:])]
        mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0, dtype=np.float64).astype(leaves[0].dtype), *trees)
        self._restore_parts(first.record)
        self._params = agent_files.on_device(mean)

    def perturb_weights(self, noise_scale: float) -> None:
        """Multiply every weight by 1 + noise_scale * N(0, 1); the optimiser's moments stay."""

        def noisy(leaf: Any) -> Any:
            noise = self._rng.standard_normal(leaf.shape, np.float32)
            return (np.asarray(leaf) * (1.0 + np.float32(noise_scale) * noise)).astype(leaf.dtype)

        self._params = agent_files.on_device(jax.tree.map(noisy, self._present()))

    def teardown(self) -> None:
        """Free the device's memory; the agent neither acts nor learns afterwards. May be called again."""
        self._params = self._opt = None

    def _record(self) -> dict[str, Any]:
        parts = {name: _plain(part.state_dict()) for name, part in self._parts.items()}
        hyper = self._hyperparams
        return {"hyperparams": hyper.params, "episode_id": hyper.episode_id, "parts": parts}

    def _load(self, path: str, with_generator: bool) -> None:
        saved = agent_files.read(path, self._present(), self._opt)
        params = self._complete(revived(saved.record["hyperparams"]))
        generator = copy.deepcopy(self._rng)
        if with_generator:
            if "generator" not in saved.record:
                raise ValueError(f"'{path}' has no generator: it was written by save_weights, expected save_state")
            generator.bit_generator.state = saved.record["generator"]
        self._restore_parts(saved.record)
        self._hyperparams = HyperparamSet(params, int(saved.record["episode_id"]))
        self._rng = generator
        self._params, self._opt = agent_files.on_device(saved.params), agent_files.on_device(saved.opt)

    def _restore_parts(self, record: Mapping[str, Any]) -> None:
        """Normalisers and the like: all of them, or a ValueError and none."""
        found = {name: revived(state) for name, state in record["parts"].items()}
        if found.keys() != self._parts.keys():
            raise ValueError(
                f"the weights were saved with {', '.join(sorted(found)) or 'no normaliser'}, but the agent has "
                f"{', '.join(sorted(self._parts)) or 'none'}: make it alike"
            )
        for name, part in self._parts.items():
            copy.deepcopy(part).load_state_dict(found[name])
        for name, part in self._parts.items():
            part.load_state_dict(found[name])


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: np.asarray(value).tolist() for name, value in state.items()}


def revived(value: Any) -> Any:
    """JSON's names of NaN and the infinities as the floats that they stand for."""
    if isinstance(value, dict):
        return {name: revived(item) for name, item in value.items()}
    if isinstance(value, list):
        return [revived(item) for item in value]
    return float(value) if isinstance(value, str) and value in ("NaN", "Infinity", "-Infinity") else value
