"""What an environment has to be: pure functions of a key, a state and parameters.

Nothing needs to be inherited or registered. An object with these methods is an environment; environments of
gymnax 1.0 are, and so is a class of your own:

    class Corridor:
        default_params = None
        def reset(self, key, params): ...                 # -> obs, state
        def step(self, key, state, action, params): ...   # -> obs, state, reward, terminated, truncated, info
        def observation_space(self, params): return Box(0.0, 1.0, (3,))
        def action_space(self, params): return Discrete(2)

Where episodes are cut at a number of steps only, `max_steps_in_episode` of the parameters or of the environment says
it: evaluations then last as long, and replays keep fewer final observations.

`step` starts the next episode by itself where one ended, and `info["final_observation"]` is what was seen last.

Cheaper, and simpler to write: leave `reset` and `step` out and give `reset_env`, `step_env` and `is_truncated`
(`SplitEnvironment`). Then the library starts new episodes itself, and only where one ended.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import jax


class Described(Protocol):
    """What both forms of an environment tell about themselves."""

    @property
    def default_params(self) -> Any:
        """Parameters used when none are given; a pytree, or None."""
        ...

    def observation_space(self, params: Any) -> Any:
        """Box, Discrete, MultiDiscrete, Dict or Tuple (of `tensor_optix.envs.spaces`, gymnax or Gymnasium).

        In a Dict, "action_mask" says which discrete actions are allowed (see `tensor_optix.envs.parts`), and
        "achieved_goal" with "desired_goal" makes goals that hindsight can replace.
        """
        ...

    def action_space(self, params: Any) -> Any:
        """Box, Discrete, or several of these choices at once (MultiDiscrete, MultiBinary)."""
        ...


@runtime_checkable
class Environment(Described, Protocol):
    """An environment that starts new episodes by itself. One environment: no batch axis anywhere."""

    def reset(self, key: jax.Array, params: Any) -> tuple[Any, Any]:
        """First observation and state of an episode."""
        ...

    def step(
        self, key: jax.Array, state: Any, action: jax.Array, params: Any
    ) -> tuple[Any, Any, jax.Array, jax.Array, jax.Array, Mapping[Any, Any]]:
        """Observation, state, reward, terminated, truncated, info.

        Where the episode ended, observation and state are those of the next episode's start and
        `info["final_observation"]` is the last one of the episode that ended.
        """
        ...


@runtime_checkable
class SplitEnvironment(Described, Protocol):
    """An environment that never starts an episode by itself. One environment: no batch axis anywhere."""

    def reset_env(self, key: jax.Array, params: Any) -> tuple[Any, Any]:
        """First observation and state of an episode."""
        ...

    def step_env(
        self, key: jax.Array, state: Any, action: jax.Array, params: Any
    ) -> tuple[Any, Any, jax.Array, jax.Array, Mapping[Any, Any]]:
        """Observation, state, reward, terminated, info, of this episode even where it ended."""
        ...

    def is_truncated(self, state: Any, params: Any) -> jax.Array:
        """Whether the episode is cut here (a time limit) although the task goes on."""
        ...


def is_split(env: Any) -> bool:
    """True if `env` may be driven through `reset_env`, `step_env` and `is_truncated`.

    An environment with a `reset` or a `step` of its own means them to be used, so those win; the ones that gymnax's
    base class provides are not its own. Names are looked up on the class: a wrapper that forwards unknown attributes
    to what it wraps must not be bypassed.
    """
    if any(_own(env, name) is None for name in ("reset_env", "step_env", "is_truncated")):
        return False
    gymnax = sys.modules.get("gymnax.environments.environment")
    inherited = {} if gymnax is None else vars(gymnax.Environment)
    return all(_own(env, name) in (None, inherited.get(name)) for name in ("reset", "step"))


def missing_methods(env: Any) -> list[str]:
    """What `env` lacks to be an environment, in the order of the contract; empty if it is one."""
    needed = ["observation_space", "action_space"]
    if not is_split(env):
        needed = ["reset", "step", *needed]
    return [name for name in needed if not callable(getattr(env, name, None))]


@contextlib.contextmanager
def foreign_code() -> Iterator[None]:
    """Environments are other people's code: strict promotion rules that a caller may have set do not bind them."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def _own(env: Any, name: str) -> Any:
    return inspect.getattr_static(env, name, None)
