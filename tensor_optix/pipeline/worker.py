"""What is done with an environment itself: steps, resets, its generators; and the process that does it on request.

A process runs this file by its path and not as a part of the package, because importing the package imports JAX:
a second of time and much memory in each process. So nothing here imports anything of the package.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from typing import Any

import numpy as np

RUN_NAME = "tensor_optix_worker"  # what the file is called in a process of its own
REQUEST = "_request"  # the global that holds (pipe, functions that make environments) there
_TEXT_LENGTH = 200  # characters


def take_step(env: Any, action: Any, dtype: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
    """One step; the observation is a copy with `dtype`, as environments may reuse the buffer they hand out."""
    obs, reward, terminated, truncated, info = env.step(action)
    return np.array(obs, dtype), float(reward), bool(terminated), bool(truncated), dict(info)


def begin(
    env: Any, seed: int | None, generators: dict[str, Any] | None, dtype: Any
) -> tuple[np.ndarray, dict[str, Any]]:
    """Reset, after `generators` were put back if given; (observation, generators as they were before the reset)."""
    if generators is not None:
        put_generators(env, generators)
    before = generators_of(env, with_own=seed is None)  # a seed makes the environment's own anew
    obs, _ = env.reset() if seed is None else env.reset(seed=seed)
    return np.array(obs, dtype), before


def generators_of(env: Any, with_own: bool = True) -> dict[str, Any]:
    """States of the NumPy generators of an environment and of its action space; None where there is none."""
    state = None
    if with_own:
        # An environment of another make may have none, and what it draws from is unknown.
        with contextlib.suppress(Exception):
            state = getattr(env, "unwrapped", env).np_random.bit_generator.state
    return {"env": state, "action_space": space_generators(getattr(env, "action_space", None))}


def put_generators(env: Any, generators: dict[str, Any]) -> None:
    """Put back what `generators_of` gave."""
    if generators["env"] is not None:
        getattr(env, "unwrapped", env).np_random.bit_generator.state = generators["env"]
    put_space_generators(getattr(env, "action_space", None), generators["action_space"])


def space_generators(space: Any) -> list[dict[str, Any] | None]:
    """States of the generators of a space and of the spaces in it; None for one that has none."""
    found = [getattr(part, "np_random", None) for part in _parts(space)]
    return [None if generator is None else generator.bit_generator.state for generator in found]


def put_space_generators(space: Any, states: Sequence[dict[str, Any] | None]) -> None:
    """Put back what `space_generators` gave."""
    for part, state in zip(_parts(space), states, strict=True):
        if state is not None:
            part.np_random.bit_generator.state = state


def describe(error: BaseException) -> str:
    """The class and the message of an error, cut to a line's length."""
    return f"{type(error).__name__}: {error}"[:_TEXT_LENGTH]


def dtype_of(env: Any) -> Any:
    """The dtype of an environment's observations; None if it does not tell."""
    return getattr(getattr(env, "observation_space", None), "dtype", None)


def spaces_of(env: Any) -> tuple[Any, Any]:
    """(observation space, action space); None for what an environment does not tell."""
    return getattr(env, "observation_space", None), getattr(env, "action_space", None)


def serve(pipe: connection.Connection, env_fns: Sequence[Callable[[], Any]]) -> None:
    """Make environments, tell their spaces, then answer lists of (environment, "step" or "reset", arguments).

    Each request of a list has an answer of its own: a tuple, or the text of the exception that came instead. None, or
    the end of the pipe, ends the process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    envs: list[Any] = []
    try:
        for fn in env_fns:
            envs.append(fn())
        pipe.send([spaces_of(env) for env in envs])
    except Exception as error:
        pipe.send(describe(error))
        return
    dtypes = [dtype_of(env) for env in envs]
    with contextlib.suppress(EOFError, OSError):
        while (requests := pipe.recv()) is not None:
            for i, name, arguments in requests:
                _send(pipe, _answer(envs[i], dtypes[i], name, arguments))
    for env in envs:
        with contextlib.suppress(Exception):
            env.close()


def _answer(env: Any, dtype: Any, name: str, arguments: Any) -> Any:
    try:
        if name == "step":
            return take_step(env, arguments, dtype)
        seed, generators = arguments
        return begin(env, seed, generators, dtype)
    except Exception as error:
        return describe(error)


def _send(pipe: connection.Connection, answer: Any) -> None:
    try:
        pipe.send(answer)
    except (EOFError, OSError):
        raise
    except Exception as error:  # nothing was written: an answer is packed as a whole first
        pipe.send(f"the result cannot be sent to another process: {describe(error)}"[:_TEXT_LENGTH])


def _end_with_parent() -> None:
    """A step that hangs does not outlive the one who waits for it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _parts(space: Any) -> Iterator[Any]:
    """A space and, if it is composite, all spaces in it."""
    if space is not None:
        yield space
        inner = getattr(space, "spaces", ())
        for part in inner.values() if hasattr(inner, "values") else inner:
            yield from _parts(part)


if __name__ == RUN_NAME:
    serve(*globals()[REQUEST])
