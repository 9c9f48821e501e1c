"""What every TensorFlow agent is besides its learning: networks, an optimizer, generators, and files of all of them.

Loading is all or nothing: what was there is kept in memory until everything read is in place.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tensor_optix.algorithms import _tf_files as files
from tensor_optix.core.base_agent import BaseAgent
from tensor_optix.core.types import HyperparamSet


def require_tensorflow() -> Any:
    """The tensorflow module. ImportError with the command that installs it, or if Keras runs on another backend."""
    try:
        import keras
        import tensorflow
    except ImportError as error:
        raise ImportError('TensorFlow agents need TensorFlow: pip install "tensor-optix[tensorflow]"') from error
    if keras.backend.backend() != "tensorflow":
        raise ImportError(
            f"Keras runs on {keras.backend.backend()} here, and TensorFlow agents need KERAS_BACKEND=tensorflow"
        )
    return tensorflow


class TFNetworkAgent(BaseAgent):
    """Networks, their one optimizer, and what belongs to them.

    Args:
        networks: name -> Keras model, built. Names are those of the files.
        optimizer: Keras optimizer of all of them, with a learning rate that is a number.
        hyperparams: as the user gave them; a missing learning_rate is the optimizer's own.
        complete: params -> params with defaults, checked.
        parts: name -> what has `state_dict` and `load_state_dict` (normalisers, action bounds), or None.
        seed: of the generators for acting and for learning.
    """

    def __init__(
        self,
        networks: Mapping[str, Any],
        optimizer: Any,
        hyperparams: HyperparamSet,
        complete: Callable[[Mapping[str, Any]], dict[str, Any]],
        parts: Mapping[str, Any],
        seed: int,
    ) -> None:
        require_tensorflow()
        self._networks, self._optimizer = dict(networks), optimizer
        for name, network in self._networks.items():
            _check_model(name, network)
        if not hasattr(optimizer, "apply") or not hasattr(optimizer, "build"):
            raise TypeError(f"optimizer must be a tf.keras.optimizers.Optimizer, got {optimizer!r}")
        self._variables = _distinct(v for network in self._networks.values() for v in network.trainable_variables)
        if not optimizer.built:
            optimizer.build(self._variables)
        self._parts = {name: part for name, part in parts.items() if part is not None}
        self._generators = {"acting": np.random.default_rng([seed, 0]), "learning": np.random.default_rng([seed, 1])}
        self._compiled: Any = None  # made from the first observations
        self._obs_shape: tuple[int, ...] | None = None
        self._complete = complete
        self._hyperparams = HyperparamSet({"learning_rate": float(optimizer.learning_rate)})
        self.set_hyperparams(hyperparams)

    @abstractmethod
    def _compile(self, obs_shape: tuple[int, ...]) -> Any:
        """The compiled functions for observations of `obs_shape`."""

    # -- hyperparameters -----------------------------------------------------------------------------------

    def get_hyperparams(self) -> HyperparamSet:
        return self._hyperparams.copy()

    def set_hyperparams(self, hyperparams: HyperparamSet) -> None:
        """In force from the next `learn` on; names that are not given keep their values, the optimizer its moments.

        TypeError, ValueError for what is not a value of that hyperparameter.
        """
        if not isinstance(hyperparams, HyperparamSet):
            raise TypeError(f"hyperparams must be a HyperparamSet, got {hyperparams!r}: write HyperparamSet({{...}})")
        before = self._hyperparams.params
        given = {name: _of_kind(before.get(name), value) for name, value in hyperparams.params.items()}
        params = self._complete({**before, **given})
        try:
            self._optimizer.learning_rate = params["learning_rate"]
        except (AttributeError, TypeError):
            raise TypeError(
                "the optimizer's learning rate must be a number, so that it can be set; got a schedule or a function"
            ) from None
        self._hyperparams = HyperparamSet(params, hyperparams.episode_id, hyperparams.timestamp)

    # -- observations --------------------------------------------------------------------------------------

    def _inputs(self, observations: Any) -> np.ndarray:
        """Raw observations [N, *obs] as the networks take them, float32."""
        if "obs_normalizer" in self._parts:
            return self._parts["obs_normalizer"].normalize(observations)
        return np.asarray(observations, np.float32)

    def _graph(self, inputs: np.ndarray) -> Any:
        """The compiled functions; made at the first call. ValueError for a shape that differs from the first."""
        shape = inputs.shape[1:]
        if self._compiled is None:
            if not self._networks:
                raise RuntimeError("the agent was torn down: make a new one")
            self._compiled = self._compile(shape)
            self._obs_shape = shape
        elif shape != self._obs_shape:
            raise ValueError(f"observations must have shape {self._obs_shape} as the first ones had, got {shape}")
        return self._compiled

    # -- weights -------------------------------------------------------------------------------------------

    def save_weights(self, path: str) -> None:
        """Make `path` a directory that `load_weights` restores all but the generators from.

        <network>.weights.h5 is Keras' own format; optimizer.safetensors holds the optimizer's variables, in order,
        under their paths; agent.json the rest.
        """
        self._write(Path(path), {})

    def load_weights(self, path: str) -> None:
        """Restore networks, optimizer, normalisers and hyperparameters, or nothing at all.

        FileNotFoundError for a missing file, ValueError for a broken one or for one of other networks.
        """
        self._read(Path(path))

    def save_state(self, path: str) -> None:
        """`save_weights` and the generators: an agent of the same networks that loads this goes on bit for bit."""
        self._write(Path(path), {name: rng.bit_generator.state for name, rng in self._generators.items()})

    def load_state(self, path: str) -> None:
        """Restore what `save_state` wrote, or nothing at all; errors as of `load_weights`."""
        with self._all_or_nothing():
            generators = self._read(Path(path)).get("generators")
            if not generators:
                raise ValueError(f"'{path}' holds weights without generators: load_weights reads it")
            for name, rng in self._generators.items():
                rng.bit_generator.state = generators[name]

    def average_weights(self, paths: Sequence[str]) -> None:
        """Load the mean of saved networks, with the normalisers of the first; the optimizer stays."""
        if not paths:
            raise ValueError("average_weights needs at least one path, got none")
        with self._all_or_nothing():
            members = []
            for path in map(Path, paths):
                files.read_networks(path, files.read_record(path), self._networks)
                members.append({name: network.get_weights() for name, network in self._networks.items()})
            for name, network in self._networks.items():
                network.set_weights([_mean(arrays) for arrays in zip(*(m[name] for m in members), strict=True)])
            self._restore_parts(files.read_record(Path(paths[0])), Path(paths[0]))

    def perturb_weights(self, noise_scale: float) -> None:
        """Multiply every trainable weight by 1 + noise_scale * N(0, 1); the optimizer keeps its moments."""
        if not 0.0 <= noise_scale < np.inf:
            raise ValueError(f"noise_scale must be at least 0 and finite, got {noise_scale}")
        for variable in self._variables:
            noise = self._generators["learning"].normal(size=tuple(variable.shape))
            variable.assign((variable.value.numpy() * (1.0 + noise_scale * noise)).astype(variable.dtype))

    def teardown(self) -> None:
        """Let go of networks, optimizer and compiled functions; may be called again."""
        self._compiled, self._optimizer = None, None
        self._networks, self._variables = {}, []

    def _write(self, path: Path, generators: dict[str, Any]) -> None:
        record = {
            "hyperparams": self._hyperparams.params,
            "episode_id": self._hyperparams.episode_id,
            "parts": {name: part.state_dict() for name, part in self._parts.items()},
            "generators": generators,
        }
        files.write(path, self._networks, self._optimizer, record)

    def _read(self, path: Path) -> dict[str, Any]:
        record = files.read_record(path)
        with self._all_or_nothing():
            files.read_networks(path, record, self._networks)
            files.read_optimizer(path, self._optimizer)
            self._restore_parts(record, path)
            self.set_hyperparams(HyperparamSet(record["hyperparams"], record["episode_id"]))
        return record

    def _restore_parts(self, record: Mapping[str, Any], path: Path) -> None:
        saved = record["parts"]
        if set(saved) != set(self._parts):
            raise ValueError(f"'{path}' was saved with {sorted(saved)}, and this agent has {sorted(self._parts)}")
        for name, part in self._parts.items():
            part.load_state_dict(saved[name])

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Puts everything back as it was if an exception passes."""
        variables = _distinct(v for owner in (*self._networks.values(), self._optimizer) for v in owner.variables)
        values = [v.value.numpy() for v in variables]
        parts = {name: copy.deepcopy(part.state_dict()) for name, part in self._parts.items()}
        generators = {name: rng.bit_generator.state for name, rng in self._generators.items()}
        hyperparams = self._hyperparams
        try:
            yield
        except BaseException:
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
            for name, part in self._parts.items():
                part.load_state_dict(parts[name])
            for name, rng in self._generators.items():
                rng.bit_generator.state = generators[name]
            self._hyperparams = hyperparams
            raise


def _check_model(name: str, model: Any) -> None:
    import keras

    if not isinstance(model, keras.Model):
        raise TypeError(f"{name} must be a tf.keras.Model, got {type(model).__name__}")
    if not model.built:
        raise ValueError(
            f"{name} has no weights yet: begin it with tf.keras.layers.Input(shape=...), or call it once on a batch"
        )


def _of_kind(before: Any, value: Any) -> Any:
    """A number for what was a flag is a flag, for what was a whole number a whole number."""
    if isinstance(before, bool):
        return bool(value)
    if isinstance(before, int) and isinstance(value, float | np.floating) and np.isfinite(value):
        return round(float(value))
    return value


def _distinct(variables: Iterable[Any]) -> list[Any]:
    """In order, each once: networks may share layers."""
    return list({id(v): v for v in variables}.values())


def _mean(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Of float arrays, in float64; of others (the counters of layers) the first."""
    if not np.issubdtype(arrays[0].dtype, np.floating):
        return arrays[0]
    return np.mean([a.astype(np.float64) for a in arrays], axis=0).astype(arrays[0].dtype)
