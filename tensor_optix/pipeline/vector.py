"""Windows from several Gymnasium environments that step side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tensor_optix.core.base_agent import BaseAgent
from tensor_optix.core.types import EpisodeData
from tensor_optix.pipeline.acting import choose
from tensor_optix.pipeline.collector import Collector
from tensor_optix.pipeline.crew import Crew, LocalCrew
from tensor_optix.pipeline.given_vector import GivenVector, mode_named
from tensor_optix.pipeline.processes import ProcessCrew
from tensor_optix.pipeline.rows import positive, positive_seconds, segment_starts, window_of
from tensor_optix.pipeline.source import Source, SourcePipeline

if TYPE_CHECKING:
    from gymnasium import Env
    from gymnasium.vector import AutoresetMode, VectorEnv


class VectorBatchPipeline(SourcePipeline):
    """Windows of `window_size` steps of all environments, one environment's rows after the other's.

    `env_fns` is a sequence of functions that make environments, or a vector environment (which stays the caller's to
    close). Environment i is seeded with seed + i, at the first reset only.

    A window's rows are those of environment 0, then of environment 1, ...; `episode_starts` is a list of rows;
    `final_obs` [n_envs, ...] is the true next observation of each environment's last row. `metadata` holds "n_envs",
    "n_steps" (steps of the vector), "segment_starts" and "segment_lengths" (of each environment's rows),
    "final_observations" (row that ended an episode -> its terminal observation), "dropped" (transitions lost to
    faults) and "cut" (rows after which a fault ended the episode). With a recurrent agent `hidden_states` [n_envs, C]
    is what it remembered of each environment before its first row (None: nothing).

    *Environments from functions.* All blocks have `window_size` rows. An exception of an environment drops that
    transition only: the environment is reset, its episode counts as truncated after its last kept row, and it steps
    on when the others are done. After `max_faults_in_a_row` faults of one environment without a successful step,
    RuntimeError. `async_envs` runs them in `n_workers` processes (one each by default), which survive more: a process
    that dies, or an environment that does not answer within `step_timeout_s`, is killed and replaced by a fresh one
    with a fresh seed, and counts as a fault. (Environments that share the process lose their episodes, too.) A script
    must then keep its code under `if __name__ == "__main__":`, as with any process started afresh. `autoreset_mode`
    changes nothing: no step is ever spent on a reset. `state_dict` keeps up to `max_replay` actions of each open
    episode, to play them again.

    *A vector environment.* Its autoreset mode is found out, or given as `autoreset_mode` (an AutoresetMode or its
    name). With NEXT_STEP an environment spends a step on each reset, which is no transition, so its block is that
    much shorter (with `window_size=1`, the vector steps on until every environment has a row). Its exceptions are
    raised as RuntimeError.
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
        max_faults_in_a_row: int = 10,
        step_timeout_s: float = 60.0,
        n_workers: int | None = None,
        max_replay: int = 50_000,
    ) -> None:
        window_size = positive("window_size", window_size)
        seed = None if seed is None else int(seed)
        mode = None if autoreset_mode is None else mode_named(autoreset_mode)
        step_timeout_s = positive_seconds("step_timeout_s", step_timeout_s)
        if n_workers is not None and not async_envs:
            raise ValueError(f"n_workers={n_workers} has a meaning with async_envs=True only")
        source: Source
        given: Any = env_fns
        if hasattr(given, "num_envs"):
            if async_envs:
                raise ValueError("async_envs has no meaning for a vector environment that is made already")
            self._n_envs = int(given.num_envs)
            source = GivenVector(given, mode, window_size, seed)
        else:
            fns = _checked(given)
            self._n_envs = len(fns)
            make: Callable[[], Crew] = partial(LocalCrew, fns)
            if async_envs:
                n_workers = None if n_workers is None else positive("n_workers", n_workers)
                make = partial(ProcessCrew, fns, step_timeout_s, n_workers)
            source = Collector(make, len(fns), window_size, seed, max_faults_in_a_row, max_replay, "environment {}")
        super().__init__(agent, window_size, seed, deterministic, source)

    @property
    def env(self) -> Any:
        """The vector environment that was given, or the environments made here (made at the first look).

        Both have `num_envs`, `single_observation_space` and `single_action_space`; those made here in this process
        are listed as `envs`.
        """
        return self._source.crew if isinstance(self._source, Collector) else self._source.env  # type: ignore[attr-defined]

    @property
    def n_envs(self) -> int:
        """Environments side by side."""
        return self._n_envs

    def _window(self) -> EpisodeData:
        self._was_loaded = False
        hidden = self._memory.of(self._agent)
        act = partial(choose, self._agent, self._deterministic, self._memory, self.env.single_action_space)
        blocks, n_steps, dropped = self._source.window(self._checking(act))
        starts = segment_starts(blocks)
        metadata = {
            "n_envs": self._n_envs,
            "n_steps": n_steps,
            "segment_starts": starts,
            "segment_lengths": [len(block) for block in blocks],
            "dropped": dropped,
            "cut": [start + row for start, block in zip(starts, blocks, strict=True) for row in block.cuts],
        }
        return window_of(blocks, self._episode_id, np.stack([block.next_obs for block in blocks]), metadata, hidden)


def _checked(env_fns: Any) -> list[Callable[[], Env[Any, Any]]]:
    fns = list(env_fns) if isinstance(env_fns, Iterable) else []
    if not fns or not all(callable(fn) for fn in fns):
        raise TypeError("env_fns must be functions that make environments, at least one, or a vector environment")
    return fns
