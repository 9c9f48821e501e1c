"""Windows of a fixed number of steps from one Gymnasium environment."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from tensor_optix.core.base_agent import BaseAgent
from tensor_optix.core.types import EpisodeData
from tensor_optix.pipeline.conversion import act_function, as_action, as_observation, check_observation_space
from tensor_optix.pipeline.rows import Rows, positive, window_of
from tensor_optix.pipeline.windows import WindowPipeline

if TYPE_CHECKING:
    import gymnasium

_WINDOW = 200  # steps, where neither window_size nor n_steps is given
_FAULTS_KEPT = 20
_FAULT_LENGTH = 200  # characters


class BatchPipeline(WindowPipeline):
    """Windows of exactly `window_size` steps; episodes go on across windows.

    Give either `env` or `env_id`; `n_steps` is another name of `window_size` (200 if neither is given). `seed` is used
    by the first reset only. `deterministic` asks the agent's `act_deterministic`, if it has one.

    A window's `episode_starts` is a list of rows; `final_obs` is the true next observation of its last row;
    `metadata` holds "final_observations" (row that ended an episode -> its terminal observation), "dropped"
    (transitions lost to exceptions of the environment) and "cut" (rows after which such a loss ended the episode).

    An exception of the environment drops the transition and resets; the episode counts as truncated after its last
    kept row. After `max_faults_in_a_row` exceptions without a successful step, RuntimeError.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any] | None = None,
        agent: BaseAgent | None = None,
        window_size: int | None = None,
        *,
        env_id: str | None = None,
        n_steps: int | None = None,
        seed: int | None = None,
        deterministic: bool = False,
        max_faults_in_a_row: int = 10,
    ) -> None:
        if (env is None) == (env_id is None):
            raise TypeError("BatchPipeline takes either env or env_id, one of them and not both")
        if env is not None and not (hasattr(env, "reset") and hasattr(env, "step")):
            hint = "; give an id as env_id" if isinstance(env, str) else ""
            raise TypeError(f"env must be a Gymnasium environment, got {env!r}{hint}")
        if window_size is not None and n_steps is not None and window_size != n_steps:
            raise ValueError(f"window_size={window_size} and n_steps={n_steps} name the same thing but differ")
        size = n_steps if window_size is None else window_size
        size = positive("window_size" if n_steps is None else "n_steps", _WINDOW if size is None else size)
        super().__init__(agent, size, seed, deterministic)
        self._max_faults_in_a_row = positive("max_faults_in_a_row", max_faults_in_a_row)
        self._env, self._env_id = env, env_id
        self._obs: np.ndarray | None = None  # None: a reset is due
        self._begins = False  # the next row is the first of its episode
        self._faults: deque[str] = deque(maxlen=_FAULTS_KEPT)
        self._n_faults = 0
        self._faults_in_a_row = 0

    @property
    def env(self) -> gymnasium.Env[Any, Any]:
        """The environment; the `env_id` form makes it at the first look."""
        if self._env is None:
            import gymnasium

            assert self._env_id is not None
            self._env = gymnasium.make(self._env_id)
        return self._env

    @property
    def faults(self) -> list[str]:
        """The newest exceptions of the environment, oldest first, at most 20."""
        return list(self._faults)

    @property
    def n_faults(self) -> int:
        """Exceptions of the environment so far."""
        return self._n_faults

    def setup(self) -> None:
        """Make the environment if need be, and reset it."""
        check_observation_space(getattr(self.env, "observation_space", None))
        self._obs = None
        self._is_set_up = True
        self._observation()

    def teardown(self) -> None:
        """Close the environment if it was made here; may be called again."""
        self._obs = None
        self._is_set_up = False
        if self._env_id is not None and self._env is not None:
            env, self._env = self._env, None
            env.close()

    def _window(self) -> EpisodeData:
        rows, dropped = Rows(), 0
        while len(rows) < self._window_size:
            if not self._step(rows):
                rows.cut()
                dropped += 1
        return window_of([rows], self._episode_id, np.array(rows.next_obs), {"dropped": dropped, "cut": rows.cuts})

    def _step(self, rows: Rows) -> bool:
        """Add one transition; False if the environment raised instead."""
        obs = self._observation()
        # Outside the try: an error of the agent is not the environment's, and must be seen.
        recorded, sent = as_action(
            act_function(self._agent, self._deterministic)(obs), getattr(self.env, "action_space", None)
        )
        try:
            raw, reward, terminated, truncated, info = self.env.step(sent)
            next_obs = as_observation(raw, getattr(self.env, "observation_space", None))
            transition = float(reward), bool(terminated), bool(truncated), dict(info)
        except Exception as error:
            self._obs = None
            self._count_fault("step", error)
            return False
        self._faults_in_a_row = 0
        rows.add(obs, recorded, *transition, next_obs, self._begins)
        self._begins = False
        # A reset that is due waits for the next step: final_obs is the terminal observation.
        self._obs = None if terminated or truncated else next_obs
        return True

    def _observation(self) -> np.ndarray:
        """What the agent sees now, after as many resets as it takes."""
        while self._obs is None:
            try:
                raw, _ = self.env.reset() if self._seed is None else self.env.reset(seed=self._seed)
                self._obs = as_observation(raw, getattr(self.env, "observation_space", None))
            except Exception as error:
                self._count_fault("reset", error)
            else:
                self._seed, self._begins = None, True
        return self._obs

    def _count_fault(self, where: str, error: Exception) -> None:
        """Record an exception of the environment; RuntimeError if it was one too many."""
        text = f"{where}: {type(error).__name__}: {error}"[:_FAULT_LENGTH]
        self._faults.append(text)
        self._n_faults += 1
        self._faults_in_a_row += 1
        if self._faults_in_a_row >= self._max_faults_in_a_row:
            raise RuntimeError(
                f"the environment raised {self._faults_in_a_row} times without a successful step, at last in {text}"
            ) from error
