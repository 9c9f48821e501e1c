"""Says what is wrong with an environment of your own, before a compiler does.

`check_environment(MyEnv())` runs the environment a few hundred steps with random actions, compiled and not, and
compares what it does with what it says. Every finding is one sentence with its remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensor_optix.envs.contract import foreign_code, is_split, missing_methods
from tensor_optix.envs.spaces import ActionSpec, action_spec, choices, is_box, is_discrete, to_array


@dataclass(frozen=True)
class Problem:
    """One finding. An "error" breaks training; a "warning" is legal and seldom meant."""

    level: str  # "error" or "warning"
    where: str  # "reset", "step", "state.position", "action_space", ...
    message: str  # what, and how to mend it

    def __str__(self) -> str:
        return f"{self.level}: {self.where}: {self.message}"


class EnvironmentProblems(ValueError):
    """Raised by `check_environment`; `problems` lists every finding, warnings too."""

    def __init__(self, name: str, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__(f"{name} cannot be trained on:\n" + "\n".join(f"  {problem}" for problem in problems))


def check_environment(env: Any, params: Any = None, steps: int = 1000, raise_errors: bool = True) -> list[Problem]:
    """Check an environment (an instance, in either form of `tensor_optix.envs.contract`).

    Args:
        env: The environment.
        params: Its parameters; the default ones if None.
        steps: Random steps within which an episode is expected to end.
        raise_errors: Raise `EnvironmentProblems` if there is an error; otherwise only return the findings.

    Returns the findings, errors first. Later checks need what earlier ones establish, so they stop at the first stage
    that has errors; repair and run again.
    """
    if isinstance(env, type):
        env = env()
    params = getattr(env, "default_params", None) if params is None else params
    subject = _Subject(env, params)
    problems: list[Problem] = []
    for stage in (_check_methods, _check_spaces, _check_shapes, _check_purity, lambda s: _check_rollout(s, steps)):
        # The same key is used twice on purpose here, to see that it gives the same.
        with foreign_code(), jax.debug_key_reuse(False):
            problems += stage(subject)
        if any(problem.level == "error" for problem in problems):
            break
    problems.sort(key=lambda problem: problem.level)
    if raise_errors and any(problem.level == "error" for problem in problems):
        raise EnvironmentProblems(type(env).__name__, problems)
    return problems


class _Subject:
    """The environment under examination, with both of its forms brought to one."""

    def __init__(self, env: Any, params: Any) -> None:
        self.env, self.params, self.split = env, params, is_split(env)
        self.actions: ActionSpec | None = None

    def reset(self, key: jax.Array) -> tuple[Any, Any]:
        return (self.env.reset_env if self.split else self.env.reset)(key, self.params)

    def step(self, key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, ...]:
        """Observation, state, reward, terminated, truncated, info."""
        if not self.split:
            return self.env.step(key, state, action, self.params)
        obs, state, reward, terminated, info = self.env.step_env(key, state, action, self.params)
        return obs, state, reward, terminated, self.env.is_truncated(state, self.params), info

    def action(self, key: jax.Array) -> jax.Array:
        assert self.actions is not None  # set by `_check_spaces`, which runs before
        return self.actions.to_env(self.actions.sample(key, 1)[0])

    def follow(self, key: jax.Array, steps: int) -> tuple[Any, ...]:
        """A random rollout: observations, rewards, ends, and actions seen, each with a leading axis [steps]."""

        def one(state: Any, key: jax.Array) -> tuple[Any, Any]:
            key_action, key_step, key_reset = jax.random.split(key, 3)
            obs, after, reward, terminated, truncated, info = self.step(key_step, state, self.action(key_action))
            done = jnp.logical_or(terminated, truncated)
            seen = obs if self.split else info["final_observation"]
            if self.split:
                _, fresh = self.reset(key_reset)
                after = jax.tree.map(lambda new, old: jnp.where(done, new, old), fresh, after)
            return jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), after, state), (seen, reward, done)

        key_reset, key_steps = jax.random.split(key)
        _, state = self.reset(key_reset)
        state = jax.tree.map(jnp.asarray, state)
        state = jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), state)
        return jax.lax.scan(one, state, jax.random.split(key_steps, steps))[1]


def _check_methods(subject: _Subject) -> Iterator[Problem]:
    for name in missing_methods(subject.env):
        yield _error(name, f"there is no method {name}; write one as in tensor_optix.envs.contract")


def _check_spaces(subject: _Subject) -> Iterator[Problem]:
    try:
        subject.actions = action_spec(subject.env.action_space(subject.params))
    except Exception as error:
        yield _error(
            "action_space", f"it cannot be used ({error}); return a Discrete, MultiDiscrete or floating point Box"
        )
    try:
        space = subject.env.observation_space(subject.params)
    except Exception as error:
        yield _error("observation_space", f"it raises {type(error).__name__}: {error}; return a {_OBSERVATION_SPACES}")
        return
    if not (is_box(space) or is_discrete(space) or choices(space) or hasattr(space, "spaces")):
        yield _error("observation_space", f"{space!r} is no {_OBSERVATION_SPACES}; return one of these")


def _check_shapes(subject: _Subject) -> Iterator[Problem]:
    key = jax.random.key(0)
    reset, failure = _trace("reset", subject.reset, key)
    if failure or not _is_pair(reset):
        yield failure or _error("reset", f"it returns {_describe(reset)}; {_RESET_CONTRACT}")
        return
    obs, state = reset
    step, failure = _trace("step", subject.step, key, state, jax.eval_shape(subject.action, key))
    if failure or not (isinstance(step, tuple) and len(step) == 6):
        yield failure or _error("step", f"it returns {_describe(step)}; {_STEP_CONTRACT}")
        return
    new_obs, new_state, reward, terminated, truncated, info = step
    yield from _compare("state", state, new_state)
    yield from _compare("observation", obs, new_obs)
    yield from _check_observation(subject, obs)
    yield from _check_scalars(reward, terminated, truncated)
    if subject.split:
        return
    if not hasattr(info, "get") or "final_observation" not in info:
        yield _error("info", 'there is no info["final_observation"]; put the last observation of the episode there')
    else:
        yield from _compare('info["final_observation"]', obs, info["final_observation"])


def _check_observation(subject: _Subject, obs: Any) -> Iterator[Problem]:
    space = subject.env.observation_space(subject.params)
    try:
        jax.eval_shape(lambda x: to_array(x, space), obs)
    except Exception as error:
        yield _error("reset", f"the observation does not fit observation_space ({type(error).__name__}: {error})")
        return
    if is_box(space) and tuple(obs.shape) != tuple(space.shape):
        yield _error(
            "reset",
            f"the observation has shape {obs.shape}, observation_space says {tuple(space.shape)}; make them agree",
        )
    elif is_box(space) and obs.dtype != jnp.dtype(space.dtype):
        yield _warning(
            "reset", f"the observation is {obs.dtype}, observation_space says {jnp.dtype(space.dtype)}; make them agree"
        )


def _check_scalars(reward: Any, terminated: Any, truncated: Any) -> Iterator[Problem]:
    if reward.shape != ():
        yield _error("reward", f"it has shape {reward.shape}; return a scalar, for instance reward.sum() or reward[0]")
    elif jnp.issubdtype(reward.dtype, jnp.complexfloating):
        yield _error("reward", f"it is {reward.dtype}; return a float32")
    for name, flag in (("terminated", terminated), ("truncated", truncated)):
        if flag.shape != () or flag.dtype != bool:
            yield _error(
                name, f"it is {flag.dtype}{list(flag.shape)}; return a boolean scalar, for instance state.time >= 200"
            )


def _check_purity(subject: _Subject) -> Iterator[Problem]:
    key_reset, key_other, key_action, key_step = jax.random.split(jax.random.key(1), 4)
    before = _attributes(subject.env)
    obs, state = subject.reset(key_reset)
    if not _equal((obs, state), subject.reset(key_reset)):
        yield _error("reset", f"two calls with the same key differ; {_PURE}")
    action = subject.action(key_action)
    first = subject.step(key_step, state, action)
    if not _equal(first, subject.step(key_step, state, action)):
        yield _error("step", f"two calls with the same arguments differ; {_PURE}")
    elif not _close(first, jax.jit(subject.step)(key_step, state, action)):
        yield _error("step", f"compiled and plain calls differ; {_PURE}")
    changed = sorted(name for name, value in _attributes(subject.env).items() if before.get(name) != value)
    if changed:
        names = ", ".join(f"self.{name}" for name in changed)
        yield _error(
            "step",
            f"reset or step changes {names}; keep what changes in the state, compiled code runs Python only once",
        )
    elif _equal((obs, state), subject.reset(key_other)):
        yield _warning("reset", "two different keys give the same episode start; if it should vary, draw from the key")
    yield from _check_key_reuse(subject, state, action)


def _check_key_reuse(subject: _Subject, state: Any, action: jax.Array) -> Iterator[Problem]:
    key_reset, key_step = jax.random.split(jax.random.key(3))
    calls = {"reset": (subject.reset, key_reset), "step": (lambda key: subject.step(key, state, action), key_step)}
    for where, (call, key) in calls.items():
        try:
            with jax.debug_key_reuse(True):
                jax.jit(call)(key)
        except jax.errors.KeyReuseError:
            yield _warning(where, "one key is used for two draws, which are then the same numbers; split it first")


def _check_rollout(subject: _Subject, steps: int) -> Iterator[Problem]:
    keys = jax.random.split(jax.random.key(2), 2)
    try:
        obs, reward, done = jax.jit(jax.vmap(lambda key: subject.follow(key, steps)))(keys)
    except Exception as error:
        yield _error(
            "step", f"it fails under vmap and scan ({type(error).__name__}: {_first_line(error)}); use jax.numpy only"
        )
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(obs):
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not np.isfinite(leaf).all():
            yield _error(
                f"observation{jax.tree_util.keystr(path)}", "it holds NaN or infinity; guard divisions, roots and logs"
            )
    if not np.isfinite(np.asarray(reward, np.float64)).all():
        yield _error("reward", "it is NaN or infinite at times; guard divisions, roots and logs, and clip it")
    space = subject.env.observation_space(subject.params)
    if is_box(space) and np.isfinite(obs).all():
        below, above = np.asarray(obs) < np.asarray(space.low) - 1e-4, np.asarray(obs) > np.asarray(space.high) + 1e-4
        if (below | above).any():
            worst = float(np.asarray(obs)[below | above][0])
            yield _warning("observation", f"{worst:.6g} lies outside observation_space; widen its bounds or clip")
    if is_discrete(space) and ((obs < 0) | (obs >= space.n)).any():
        yield _error("observation", f"it leaves the range 0 .. {space.n - 1} of observation_space; make them agree")
    if not np.asarray(done).any():
        yield _warning("step", f"no episode ended within {steps} random steps; truncate after a number of steps")


_OBSERVATION_SPACES = "Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple"
_RESET_CONTRACT = "reset(key, params) returns (observation, state)"
_STEP_CONTRACT = (
    "step(key, state, action, params) returns (observation, state, reward, terminated, truncated, info); "
    "step_env the same without truncated"
)
_PURE = "draw random numbers from the key only, and keep everything that changes in the state"


def _error(where: str, message: str) -> Problem:
    return Problem("error", where, message)


def _warning(where: str, message: str) -> Problem:
    return Problem("warning", where, message)


def _trace(where: str, f: Callable[..., Any], *args: Any) -> tuple[Any, Problem | None]:
    """Shapes of `f(*args)`, or what kept it from being traced."""
    try:
        return jax.eval_shape(f, *args), None
    except jax.errors.TracerBoolConversionError:
        return None, _error(
            where, "it branches in Python on a value that is known only at run time; use jnp.where or lax.cond"
        )
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        return None, _error(
            where, f"it needs a value that is known only at run time ({_first_line(error)}); use jax.numpy"
        )
    except Exception as error:
        contract = _RESET_CONTRACT if where == "reset" else _STEP_CONTRACT
        return None, _error(where, f"it raises {type(error).__name__}: {_first_line(error)}; {contract}")


def _compare(name: str, before: Any, after: Any) -> Iterator[Problem]:
    """What differs between a tree of shapes from reset and the one from step."""
    old_structure: Any = jax.tree.structure(before)
    if old_structure != jax.tree.structure(after):
        yield _error(name, f"reset returns {_describe(before)} and step {_describe(after)}; return the same structure")
        return
    for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True):
        where = name + jax.tree_util.keystr(path)
        if old.shape != new.shape or old.dtype != new.dtype:
            was, now = (f"{leaf.dtype}{list(leaf.shape)}" for leaf in (old, new))
            yield _error(
                where, f"it is {was} after reset and {now} after step; return the same shape and dtype from both"
            )
        elif getattr(old, "weak_type", False) != getattr(new, "weak_type", False):
            number = f"jnp.{old.dtype}(...)"
            yield _warning(where, f"it is a plain Python number in one of reset and step; write {number} in both")


def _describe(tree: Any) -> str:
    return str(jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") else leaf, tree))


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2


def _attributes(env: Any) -> dict[str, tuple[int, int]]:
    """What can be seen of an object's own state: which objects it holds and how many things are in them."""
    values = getattr(env, "__dict__", {}).items()
    return {name: (id(value), len(value) if isinstance(value, (list, dict, set)) else 0) for name, value in values}


def _leaves(tree: Any) -> list[np.ndarray]:
    return [np.asarray(_plain(leaf)) for leaf in jax.tree.leaves(tree)]


def _plain(leaf: Any) -> Any:
    is_key = hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def _equal(a: Any, b: Any) -> bool:
    return all(np.array_equal(x, y, equal_nan=x.dtype.kind == "f") for x, y in zip(_leaves(a), _leaves(b), strict=True))


def _close(a: Any, b: Any) -> bool:
    return all(
        np.allclose(x, y, rtol=1e-3, atol=1e-4, equal_nan=True) for x, y in zip(_leaves(a), _leaves(b), strict=True)
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
