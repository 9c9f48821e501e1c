"""Windows from several Gymnasium environments that step side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tensor_optix.core.base_agent import BaseAgent
from tensor_optix.core.types import EpisodeData
from tensor_optix.pipeline.conversion import (
    act_batch_function,
    act_function,
    as_action,
    as_observation,
    check_observation_space,
)
from tensor_optix.pipeline.rows import Rows, segment_starts, window_of
from tensor_optix.pipeline.windows import WindowPipeline
from tensor_optix.pipeline.workers import close_vector_env, make_vector_env

if TYPE_CHECKING:
    from gymnasium import Env
    from gymnasium.vector import AutoresetMode, VectorEnv


class VectorBatchPipeline(WindowPipeline):
    """Windows of `window_size` steps of all environments, one environment's rows after the other's.

    `env_fns` is a sequence of functions that make environments, or a vector environment (which stays the caller's to
    close). Environment i is seeded with seed + i, at the first reset only. `async_envs` runs each in a process of its
    own; a script must then keep its code under `if __name__ == "__main__":`, as with any process started afresh.

    A window's rows are those of environment 0, then of environment 1, ...; `episode_starts` is a list of rows;
    `final_obs` [n_envs, ...] is the true next observation of each environment's last row. `metadata` holds "n_envs",
    "n_steps" (steps of the vector), "segment_starts" and "segment_lengths" (of each environment's rows) and
    "final_observations" (row that ended an episode -> its terminal observation).

    All blocks have `window_size` rows, except with NEXT_STEP: there an environment spends a step on each reset, which
    is no transition, so its block is that much shorter. (With `window_size=1`, the vector steps on until every
    environment has a row.) `autoreset_mode` (an AutoresetMode or its name) is DISABLED by default, where nothing is
    spent on resets and the terminal observation is copied before the reset; a vector environment's own is found out.
    Exceptions of the environments are raised.
    """

    def __init__(
        self,
        env_fns: Iterable[Callable[[], Env[Any, Any]]] | VectorEnv[Any, Any, Any],
        agent: BaseAgent | None = None,
        window_size: int = 256,
        async_envs: bool = False,
        *,
        seed: int | None = None,
        deterministic: bool = False,
        autoreset_mode: AutoresetMode | str | None = None,
    ) -> None:
        super().__init__(agent, window_size, seed, deterministic)
        self._mode = None if autoreset_mode is None else _mode_named(autoreset_mode)
        self._async_envs = async_envs
        self._env: VectorEnv[Any, Any, Any] | None = None
        self._env_fns: list[Callable[[], Env[Any, Any]]] | None = None
        given: Any = env_fns
        if hasattr(given, "num_envs"):
            if async_envs:
                raise ValueError("async_envs has no meaning for a vector environment that is made already")
            self._env = given
            self._mode = _mode_of(given, self._mode)
            self._n_envs = int(given.num_envs)
        else:
            self._env_fns = _checked(given)
            self._mode = self._mode or "DISABLED"
            self._n_envs = len(self._env_fns)
        self._obs = np.empty(0)  # [n_envs, ...], what each environment shows now
        self._begins = np.zeros(self._n_envs, bool)  # the next row is the first of its episode
        self._ended = np.zeros(self._n_envs, bool)  # the newest row was the last of its episode
        self._sent: list[Any] = [None] * self._n_envs  # the newest actions, as the environments got them

    @property
    def env(self) -> VectorEnv[Any, Any, Any]:
        """The vector environment; made at the first look."""
        if self._env is None:
            assert self._env_fns is not None
            assert self._mode is not None
            self._env = make_vector_env(self._env_fns, self._async_envs, self._mode)
        return self._env

    @property
    def n_envs(self) -> int:
        """Environments side by side."""
        return self._n_envs

    def setup(self) -> None:
        """Make the environments if need be, and reset them all."""
        check_observation_space(getattr(self.env, "single_observation_space", None))
        obs, _ = self.env.reset() if self._seed is None else self.env.reset(seed=self._seed)
        self._seed = None
        self._obs = self._as_observations(obs)
        self._begins[:], self._ended[:] = True, False
        self._is_set_up = True

    def teardown(self) -> None:
        """Close environments that were made here and end their processes; may be called again."""
        self._is_set_up = False
        if self._env_fns is not None and self._env is not None:
            env, self._env = self._env, None
            close_vector_env(env)

    def _window(self) -> EpisodeData:
        blocks = [Rows() for _ in range(self._n_envs)]
        n_steps = 0
        while n_steps < self._window_size or not all(blocks):
            self._step(blocks)
            n_steps += 1
        metadata = {
            "n_envs": self._n_envs,
            "n_steps": n_steps,
            "segment_starts": segment_starts(blocks),
            "segment_lengths": [len(block) for block in blocks],
        }
        return window_of(blocks, self._episode_id, np.stack([block.next_obs for block in blocks]), metadata)

    def _step(self, blocks: list[Rows]) -> None:
        """One step of the vector: a row for each environment that does not spend it on a reset."""
        if self._mode == "DISABLED" and self._ended.any():
            self._reset_ended()
        resets = self._ended.copy() if self._mode == "NEXT_STEP" else np.zeros(self._n_envs, bool)
        recorded = self._act(~resets)
        obs, rewards, terminated, truncated, infos = self._vector_step()
        self._ended = (terminated | truncated) & ~resets
        for i in map(int, np.flatnonzero(~resets)):
            replaced = self._mode == "SAME_STEP" and bool(self._ended[i])
            next_obs = self._terminal(infos, i) if replaced else obs[i]
            info = _info_of(infos.get("final_info", {}) if replaced else infos, i, self._n_envs)
            flags = bool(terminated[i]), bool(truncated[i])
            blocks[i].add(
                self._obs[i], recorded[i], float(rewards[i]), *flags, info, next_obs, begins=bool(self._begins[i])
            )
        self._obs = obs
        self._begins = resets if self._mode == "NEXT_STEP" else self._ended.copy()

    def _act(self, live: np.ndarray) -> list[Any]:
        """The actions to record; those to send go to `_sent`. Environments that are not live repeat their last one."""
        batch = act_batch_function(self._agent, self._deterministic)
        if batch is None:
            act = act_function(self._agent, self._deterministic)
            chosen = [act(self._obs[i]) if live[i] else None for i in range(self._n_envs)]
        else:
            actions = batch(self._obs)
            chosen = list(np.asarray(actions) if hasattr(actions, "__array__") else actions)
            if len(chosen) != self._n_envs:
                raise ValueError(f"act_batch gave {len(chosen)} actions for {self._n_envs} environments")
        recorded: list[Any] = [None] * self._n_envs
        for i in map(int, np.flatnonzero(live)):
            recorded[i], self._sent[i] = as_action(chosen[i], self.env.single_action_space)
        return recorded

    def _vector_step(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        from gymnasium.vector.utils import concatenate, create_empty_array

        space = self.env.single_action_space
        actions = concatenate(space, self._sent, create_empty_array(space, n=self._n_envs))
        try:
            obs, rewards, terminated, truncated, infos = self.env.step(actions)
        except (EOFError, ConnectionError) as error:
            raise RuntimeError("the process of an environment ended unexpectedly") from error
        flags = np.asarray(terminated, bool), np.asarray(truncated, bool)
        return self._as_observations(obs), np.asarray(rewards), *flags, infos

    def _reset_ended(self) -> None:
        fresh, _ = self.env.reset(options={"reset_mask": self._ended.copy()})
        # In place: rows have copied their terminal observations.
        self._obs[self._ended] = self._as_observations(fresh)[self._ended]

    def _terminal(self, infos: Mapping[str, Any], i: int) -> np.ndarray:
        if "final_obs" not in infos:
            raise RuntimeError('the vector environment resets in the same step but gives no "final_obs" in its infos')
        return as_observation(infos["final_obs"][i], self.env.single_observation_space)

    def _as_observations(self, obs: Any) -> np.ndarray:
        return as_observation(obs, getattr(self.env, "single_observation_space", None))


def _checked(env_fns: Any) -> list[Callable[[], Env[Any, Any]]]:
    fns = list(env_fns) if isinstance(env_fns, Iterable) else []
    if not fns or not all(callable(fn) for fn in fns):
        raise TypeError("env_fns must be functions that make environments, at least one, or a vector environment")
    return fns


def _mode_named(mode: AutoresetMode | str) -> str:
    """NEXT_STEP, SAME_STEP or DISABLED, from the enum, its name or its value."""
    from gymnasium.vector import AutoresetMode

    for known in AutoresetMode:
        if mode is known or str(mode).lower() in (known.name.lower(), str(known.value).lower()):
            return known.name
    raise ValueError(f"autoreset_mode must be one of {[known.name for known in AutoresetMode]}, got {mode!r}")


def _mode_of(env: VectorEnv[Any, Any, Any], given: str | None) -> str:
    """The autoreset mode of a vector environment; ValueError if it is unknown or not the one given."""
    # The attribute first: `metadata` is one dict for all vectors of an environment class, and the newest wins.
    own = getattr(env.unwrapped, "autoreset_mode", None) or (env.metadata or {}).get("autoreset_mode")
    if own is None and given is None:
        raise ValueError("the vector environment does not tell its autoreset mode: give autoreset_mode")
    found = given if own is None else _mode_named(own)
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
