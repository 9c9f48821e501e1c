"""Windows of a fixed number of steps from one Gymnasium environment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tensor_optix.core.base_agent import BaseAgent
from tensor_optix.core.types import EpisodeData
from tensor_optix.pipeline.acting import choose_alone
from tensor_optix.pipeline.collector import Collector
from tensor_optix.pipeline.crew import Crew, LocalCrew
from tensor_optix.pipeline.processes import ProcessCrew
from tensor_optix.pipeline.rows import positive, positive_seconds, window_of
from tensor_optix.pipeline.source import SourcePipeline

if TYPE_CHECKING:
    import gymnasium

_WINDOW = 200  # steps, where neither window_size nor n_steps is given


@dataclass(frozen=True)
class RemoteEnv:
    """What this process knows of an environment in another one."""

    observation_space: Any
    action_space: Any


class BatchPipeline(SourcePipeline):
    """Windows of exactly `window_size` steps; episodes go on across windows.

    Give one of `env`, `env_id` and `env_fn` (a function that makes the environment); `n_steps` is another name of
    `window_size` (200 if neither is given). `seed` is used by the first reset only. `deterministic` asks the agent's
    `act_deterministic`, if it has one.

    A window's `episode_starts` is a list of rows; `final_obs` is the true next observation of its last row;
    `metadata` holds "final_observations" (row that ended an episode -> its terminal observation), "dropped"
    (transitions lost to faults of the environment) and "cut" (rows after which such a loss ended the episode). With a
    recurrent agent `hidden_states` [1, C] is what it remembered before the first row (None: nothing).

    An exception of the environment drops the transition and resets; the episode counts as truncated after its last
    kept row. After `max_faults_in_a_row` faults without a successful step, RuntimeError.

    With `step_timeout_s` the environment runs in a process of its own: one that dies, or does not answer for so many
    seconds, is killed and replaced by a fresh one with a fresh seed, and counts as a fault. (A script must then keep
    its code under `if __name__ == "__main__":`.) `env` then has the two spaces only. `state_dict` keeps up to
    `max_replay` actions of the open episode, to play them again.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any] | None = None,
        agent: BaseAgent | None = None,
        window_size: int | None = None,
        *,
        env_id: str | None = None,
        env_fn: Callable[[], gymnasium.Env[Any, Any]] | None = None,
        n_steps: int | None = None,
        seed: int | None = None,
        deterministic: bool = False,
        max_faults_in_a_row: int = 10,
        step_timeout_s: float | None = None,
        max_replay: int = 50_000,
    ) -> None:
        if sum(given is not None for given in (env, env_id, env_fn)) != 1:
            raise TypeError("BatchPipeline takes either env or env_id or env_fn, one of them and no other")
        if env is not None and (isinstance(env, type) or not (hasattr(env, "reset") and hasattr(env, "step"))):
            hint = "; give an id as env_id" if isinstance(env, str) else ""
            hint = "; give a function that makes it as env_fn" if callable(env) else hint
            raise TypeError(f"env must be a Gymnasium environment, got {env!r}{hint}")
        if env_fn is not None and not callable(env_fn):
            raise TypeError(f"env_fn must be a function that makes an environment, got {env_fn!r}")
        if window_size is not None and n_steps is not None and window_size != n_steps:
            raise ValueError(f"window_size={window_size} and n_steps={n_steps} name the same thing but differ")
        size = n_steps if window_size is None else window_size
        size = positive("window_size" if n_steps is None else "n_steps", _WINDOW if size is None else size)
        if step_timeout_s is not None:
            step_timeout_s = positive_seconds("step_timeout_s", step_timeout_s)
            if env is not None:
                raise ValueError(
                    "step_timeout_s runs the environment in a process of its own, which an environment that is made "
                    "already cannot enter: give env_fn or env_id instead of env"
                )
        seed = None if seed is None else int(seed)
        make = partial(_crew, env, env_id, env_fn, step_timeout_s)
        self._collector = Collector(make, 1, size, seed, max_faults_in_a_row, max_replay, "the environment")
        super().__init__(agent, size, seed, deterministic, self._collector)

    @property
    def env(self) -> gymnasium.Env[Any, Any]:
        """The environment; made at the first look unless it was given. Its two spaces if it is in another process."""
        crew: Any = self._collector.crew
        if isinstance(crew, LocalCrew):
            return crew.envs[0]
        remote: Any = RemoteEnv(crew.single_observation_space, crew.single_action_space)
        return remote

    def _window(self) -> EpisodeData:
        self._was_loaded = False
        space = self._collector.crew.single_action_space
        hidden = self._memory.of(self._agent)
        choose = partial(choose_alone, self._agent, self._deterministic, self._memory, space)
        (rows,), _, dropped = self._collector.window(self._checking(choose))
        metadata = {"dropped": dropped, "cut": rows.cuts}
        return window_of([rows], self._episode_id, np.array(rows.next_obs), metadata, hidden)


def _crew(env: Any, env_id: str | None, env_fn: Callable[[], Any] | None, step_timeout_s: float | None) -> Crew:
    """The one environment, here or in a process."""
    if env is not None:
        return LocalCrew([lambda: env], owned=False)
    if env_id is not None:
        import gymnasium

        # Another process may not have run the code that registered the id, but can make what the id stands for.
        known: Any = env_id if step_timeout_s is None else gymnasium.registry.get(env_id, env_id)
        env_fn = partial(gymnasium.make, known)
    assert env_fn is not None
    return LocalCrew([env_fn]) if step_timeout_s is None else ProcessCrew([env_fn], step_timeout_s)
