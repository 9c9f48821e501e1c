"""From an id, a class or an instance to the `VectorEnv` that algorithms use."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Hashable
from typing import Any

import jax
import numpy as np

from tensor_optix.envs import exploration, goal_tasks, memory
from tensor_optix.envs._gymnax import gymnax
from tensor_optix.envs.contract import foreign_code, is_split, missing_methods
from tensor_optix.envs.parts import goals, mask_span
from tensor_optix.envs.spaces import action_spec, spans, to_array
from tensor_optix.envs.vector import VectorEnv

_OWN: dict[str, Any] = {**memory.IDS, **goal_tasks.IDS, **exploration.IDS}


def make(env: Any, params: Any = None, **env_kwargs: Any) -> VectorEnv:
    """Describe an environment for use by the algorithms.

    `env` is the id of a gymnax environment ("CartPole-v1"), a path to a class ("package.module:ClassName"), a class, or
    an instance that follows `tensor_optix.envs.contract`. `params` replaces the environment's default parameters;
    `env_kwargs` go to the constructor of an id, a path or a class. A `VectorEnv` is passed through.

    ValueError: unknown id (with the nearest ones), or something that is no environment.
    """
    if isinstance(env, VectorEnv):
        return _with_params(env, params, env_kwargs)
    # Spaces and parameters are constants, also when this is called while something is being traced.
    with jax.ensure_compile_time_eval(), foreign_code():
        instance, name, origin = _instantiate(env, env_kwargs)
        _require_contract(instance, name)
        params = getattr(instance, "default_params", None) if params is None else params
        return _describe(instance, params, name, origin)


def list_environments() -> list[str]:
    """The ids that `make` knows: those of gymnax, those registered with `gymnax.register`, and this library's own."""
    return [*gymnax().registered_envs, *_OWN]


def _with_params(env: VectorEnv, params: Any, env_kwargs: dict[str, Any]) -> VectorEnv:
    if env_kwargs:
        raise ValueError(f"{env.name} is made already, got arguments {sorted(env_kwargs)}; pass them with its id")
    if params is None:
        return env
    origin = env.identity[0] if isinstance(env.identity, tuple) else env.identity
    with jax.ensure_compile_time_eval(), foreign_code():
        return _describe(env.env, params, env.name, origin)


def _instantiate(env: Any, env_kwargs: dict[str, Any]) -> tuple[Any, str, Hashable]:
    """The instance, its name, and what identifies it (for equality): what it was made from, or itself."""
    if isinstance(env, str) and ":" not in env:
        return _make_id(env, env_kwargs), env, ("id", env, _freeze(env_kwargs))
    if isinstance(env, str):
        env = _load(env)
    if isinstance(env, type):
        return env(**env_kwargs), env.__name__, ("class", env, _freeze(env_kwargs))
    if env_kwargs:
        name = type(env).__name__
        raise ValueError(f"got arguments {sorted(env_kwargs)} for an instance of {name}; pass the class {name} instead")
    return env, _name_of(env), ("instance", _ById(env))


def _make_id(env_id: str, env_kwargs: dict[str, Any]) -> Any:
    known = list_environments()
    if env_id not in known:
        if _in_gymnasium(env_id):
            raise ValueError(
                f"{env_id!r} is an environment of Gymnasium, and what is compiled needs one of pure functions: train "
                f"on it with the host driver, Optimizer(make_agent({env_id!r}), {env_id!r})"
            )
        near = difflib.get_close_matches(env_id, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(
            f"unknown environment {env_id!r}; {hint}known ids: {', '.join(known)}; or give module.path:ClassName"
        )
    if env_id in _OWN:
        return _OWN[env_id](**env_kwargs)
    try:
        return gymnax().make(env_id, **env_kwargs)[0]
    except OSError as error:
        raise ValueError(
            f"environment {env_id!r} needs a data file that could not be fetched ({error}); "
            "put the file where gymnax looks for it or choose another environment"
        ) from error


def _in_gymnasium(env_id: str) -> bool:
    try:
        import gymnasium
    except ImportError:
        return False
    return env_id in gymnasium.registry


def _load(path: str) -> Any:
    module_name, _, attribute = path.partition(":")
    try:
        found = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"cannot load environment {path!r}: {error}; expected package.module:ClassName, of a module that Python "
            "finds"
        ) from error
    return found


def _require_contract(env: Any, name: str) -> None:
    missing = missing_methods(env)
    if any(kind.__module__.partition(".")[0] == "gymnasium" for kind in type(env).__mro__):
        raise ValueError(
            f"{name} is an environment of Gymnasium, and what is compiled needs one of pure functions: train on it "
            "with the host driver, Optimizer(make_agent(env), make_env)"
        )
    if missing:
        raise ValueError(
            f"{name} is no environment: it lacks {', '.join(missing)}; tensor_optix.envs.contract says what is needed "
            "(reset and step, or reset_env, step_env and is_truncated; observation_space, action_space, default_params)"
        )


def _describe(env: Any, params: Any, name: str, origin: Hashable) -> VectorEnv:
    obs_space = env.observation_space(params)
    reset = env.reset_env if is_split(env) else env.reset
    parts: dict[str, tuple[int, int]] = {}

    def first_obs(key: jax.Array) -> jax.Array:
        obs = reset(key, params)[0]
        parts.update(spans(obs, obs_space))  # shapes only, known while tracing
        return to_array(obs, obs_space)

    obs = jax.eval_shape(first_obs, jax.random.key(0))
    action = action_spec(env.action_space(params))
    limit = getattr(params, "max_steps_in_episode", getattr(env, "max_steps_in_episode", None))
    return VectorEnv(
        name=name,
        identity=(origin, _freeze(params)),
        obs_shape=obs.shape,
        obs_dtype=obs.dtype,
        action=action,
        max_episode_steps=None if limit is None else int(limit),
        env=env,
        params=params,
        observation_space=obs_space,
        goals=goals(env, parts, obs_space),
        mask=mask_span(parts, action, name),
    )


def _name_of(env: Any) -> str:
    name = getattr(env, "name", None)
    return name if isinstance(name, str) else type(env).__name__


def _freeze(tree: Any) -> Hashable:
    """A hashable stand-in of a pytree of numbers and arrays; leaves that are neither count as themselves."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(_freeze_leaf(leaf) for leaf in leaves)


def _freeze_leaf(leaf: Any) -> Hashable:
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if isinstance(leaf, (np.ndarray, np.generic, jax.Array)):
        array = np.asarray(leaf)
        return (array.shape, array.dtype.str, array.tobytes())
    try:
        hash(leaf)
    except TypeError:
        return _ById(leaf)
    return (type(leaf), leaf)


class _ById:
    """Equal to itself only. Keeps the object alive, so that its id is never taken over by another one."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and self._value is other._value

    def __hash__(self) -> int:
        return id(self._value)

    def __repr__(self) -> str:
        return f"<{type(self._value).__name__} at {id(self._value):#x}>"
