"""Making a vector environment, and ending it with all its processes, whatever state they are in."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gymnasium import Env
    from gymnasium.vector import AsyncVectorEnv, VectorEnv

_PATIENCE = 5.0  # seconds for a process to end by itself


def make_vector_env(env_fns: list[Callable[[], Env[Any, Any]]], in_processes: bool, mode: str) -> VectorEnv:
    """A vector of `env_fns` in one process or in one each; `mode` is the name of an AutoresetMode."""
    from gymnasium.vector import AutoresetMode, SyncVectorEnv

    if not in_processes:
        return SyncVectorEnv(env_fns, autoreset_mode=AutoresetMode[mode])
    return _make_async(env_fns, AutoresetMode[mode])


def close_vector_env(env: VectorEnv) -> None:
    """Close it; processes that do not end on request are ended by force."""
    try:
        # After an error of a worker's process, closing in good order may fail too.
        with contextlib.suppress(Exception):
            env.close(timeout=_PATIENCE)
    finally:
        _end_processes(env)


def _make_async(env_fns: list[Callable[[], Env[Any, Any]]], mode: Any) -> AsyncVectorEnv:
    from gymnasium.vector import AsyncVectorEnv

    # JAX runs threads, and a forked copy of a process with threads may hang: processes are started afresh.
    context = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    # Allocated first, so that processes started by a constructor that then fails can be ended.
    env = AsyncVectorEnv.__new__(AsyncVectorEnv)
    try:
        AsyncVectorEnv.__init__(env, env_fns, context=context, autoreset_mode=mode)
    except (EOFError, ConnectionError) as error:
        _end_processes(env)
        raise RuntimeError(
            "the process of an environment ended while starting: either its function raised (see above), or the "
            'script does not keep its code under `if __name__ == "__main__":`'
        ) from error
    except BaseException:
        _end_processes(env)
        raise
    return env


def _end_processes(env: VectorEnv) -> None:
    """End the processes of an AsyncVectorEnv that still run, and close its pipes; nothing for other vectors."""
    inner = getattr(env, "unwrapped", env)
    for process in getattr(inner, "processes", []):
        if process.is_alive():
            process.terminate()
            process.join(_PATIENCE)
        if process.is_alive():
            process.kill()
            process.join()
    for pipe in getattr(inner, "parent_pipes", []):
        if pipe is not None:
            pipe.close()
    env.closed = True
