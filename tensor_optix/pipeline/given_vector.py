"""Blocks of transitions from a Gymnasium vector environment that somebody else made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tensor_optix.pipeline.acting import Choose
from tensor_optix.pipeline.conversion import as_observation, check_observation_space
from tensor_optix.pipeline.rows import Rows

if TYPE_CHECKING:
    from gymnasium.vector import AutoresetMode, VectorEnv


class GivenVector:
    """Steps a vector environment as its autoreset mode asks; `mode` is None or must agree with its own.

    Its exceptions are raised: there is no way to go on with the others.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], mode: str | None, window_size: int, seed: int | None) -> None:
        self.env = env
        self.faults: list[str] = []  # none is ever survived
        self.n_faults = 0
        self._mode = mode_of(env, mode)
        self._n = int(env.num_envs)
        self._window_size, self._seed = window_size, seed
        self._obs = np.empty(0)  # [n_envs, ...], what each environment shows now
        self._begins = np.zeros(self._n, bool)  # the next row is the first of its episode
        self._ended = np.zeros(self._n, bool)  # the newest row was the last of its episode
        self._sent: list[Any] = [None] * self._n  # the newest actions, as the environments got them

    def setup(self) -> None:
        """Reset all environments; only the first time with the seed."""
        check_observation_space(getattr(self.env, "single_observation_space", None))
        obs, _ = self._call("reset") if self._seed is None else self._call("reset", seed=self._seed)
        self._seed = None
        self._obs = self._as_observations(obs)
        self._begins[:], self._ended[:] = True, False

    def close(self) -> None:
        """The environment is the caller's to close."""

    def window(self, choose: Choose) -> tuple[list[Rows], int, int]:
        """(a block for each environment, steps of the vector, 0)."""
        blocks = [Rows() for _ in range(self._n)]
        n_steps = 0
        while n_steps < self._window_size or not all(blocks):
            self._step(blocks, choose)
            n_steps += 1
        return blocks, n_steps, 0

    def state(self) -> dict[str, Any]:
        """Nothing: how far its environments are cannot be asked."""
        return {}

    def load(self, state: dict[str, Any]) -> list[str]:
        """Begin fresh episodes."""
        self.setup()
        return ["a vector environment that was given cannot be put back: its environments begin fresh episodes"]

    def _step(self, blocks: list[Rows], choose: Choose) -> None:
        """One step of the vector: a row for each environment that does not spend it on a reset."""
        if self._mode == "DISABLED" and self._ended.any():
            self._reset_ended()
        resets = self._ended.copy() if self._mode == "NEXT_STEP" else np.zeros(self._n, bool)
        live = np.flatnonzero(~resets).tolist()
        recorded = {}
        # Environments that are not live are sent their last action again.
        for i, (record, sent) in zip(live, choose(self._obs, live, self._begins), strict=True):  # type: ignore[arg-type]
            recorded[i], self._sent[i] = record, sent
        obs, rewards, terminated, truncated, infos = self._vector_step()
        self._ended = (terminated | truncated) & ~resets
        for i in live:
            replaced = self._mode == "SAME_STEP" and bool(self._ended[i])
            next_obs = self._terminal(infos, i) if replaced else obs[i]
            info = _info_of(infos.get("final_info", {}) if replaced else infos, i, self._n)
            flags = bool(terminated[i]), bool(truncated[i])
            blocks[i].add(
                self._obs[i], recorded[i], float(rewards[i]), *flags, info, next_obs, begins=bool(self._begins[i])
            )
        self._obs = obs
        self._begins = resets if self._mode == "NEXT_STEP" else self._ended.copy()

    def _vector_step(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        from gymnasium.vector.utils import concatenate, create_empty_array

        space = self.env.single_action_space
        actions = concatenate(space, self._sent, create_empty_array(space, n=self._n))
        obs, rewards, terminated, truncated, infos = self._call("step", actions)
        flags = np.asarray(terminated, bool), np.asarray(truncated, bool)
        return self._as_observations(obs), np.asarray(rewards), *flags, infos

    def _reset_ended(self) -> None:
        fresh, _ = self._call("reset", options={"reset_mask": self._ended.copy()})
        # In place: rows have copied their terminal observations.
        self._obs[self._ended] = self._as_observations(fresh)[self._ended]

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return getattr(self.env, name)(*args, **kwargs)
        except Exception as error:
            cause = f"{type(error).__name__}: {error}".rstrip(": ")
            if isinstance(error, EOFError | ConnectionError):
                cause = f"the process of an environment ended unexpectedly ({cause})"
            raise RuntimeError(
                f"{name} of the given vector environment failed with {cause}; "
                "environments given as a list of functions are reset and go on after a fault"
            ) from error

    def _terminal(self, infos: Mapping[str, Any], i: int) -> np.ndarray:
        if "final_obs" not in infos:
            raise RuntimeError('the vector environment resets in the same step but gives no "final_obs" in its infos')
        return as_observation(infos["final_obs"][i], self.env.single_observation_space)

    def _as_observations(self, obs: Any) -> np.ndarray:
        return as_observation(obs, getattr(self.env, "single_observation_space", None))


def mode_named(mode: AutoresetMode | str) -> str:
    """NEXT_STEP, SAME_STEP or DISABLED, from the enum, its name or its value."""
    from gymnasium.vector import AutoresetMode

    for known in AutoresetMode:
        if mode is known or str(mode).lower() in (known.name.lower(), str(known.value).lower()):
            return known.name
    raise ValueError(f"autoreset_mode must be one of {[known.name for known in AutoresetMode]}, got {mode!r}")


def mode_of(env: VectorEnv[Any, Any, Any], given: str | None) -> str:
    """The autoreset mode of a vector environment; ValueError if it is unknown or not the one given."""
    # The attribute first: `metadata` is one dict for all vectors of an environment class, and the newest wins.
    own = getattr(env.unwrapped, "autoreset_mode", None) or (env.metadata or {}).get("autoreset_mode")
    if own is None and given is None:
        raise ValueError("the vector environment does not tell its autoreset mode: give autoreset_mode")
    found = given if own is None else mode_named(own)
    if given is not None and found != given:
        raise ValueError(f"autoreset_mode is {given}, but the vector environment was made with {found}")
    assert found is not None
    return found


def _info_of(infos: Mapping[str, Any], i: int, n_envs: int) -> dict[str, Any]:
    """Environment i's own info, out of Gymnasium's arrays with their masks ("key" and "_key")."""
    own: dict[str, Any] = {}
    for key, value in infos.items():
        mask = infos.get(f"_{key}")
        if mask is None and key.startswith("_") and key[1:] in infos:
            continue
        if mask is not None and not mask[i]:
            continue
        if isinstance(value, Mapping):
            own[key] = _info_of(value, i, n_envs)
        elif mask is not None or (isinstance(value, np.ndarray) and value.shape[:1] == (n_envs,)):
            own[key] = value[i]
        else:
            own[key] = value
    return own
