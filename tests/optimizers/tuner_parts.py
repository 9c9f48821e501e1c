"""What tests of tuners share. Few programs per tuner: one plays a stream of scores, one plays objectives in lanes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from tensor_optix.core.search_space import search_space

YES, NO = jnp.bool_(True), jnp.bool_(False)
NO_NOISE = jnp.float32(0.0)
LENGTH = 160  # of a stream
PERIODS = 400


def space_of(d):
    return search_space({f"p{i}": (0.0, 1.0) for i in range(d)})


@functools.partial(jax.jit, static_argnums=(0, 1))
def call(tuner, method, *args):
    """A method of a tuner, compiled: eager calls are slow."""
    return getattr(tuner, method)(*args)


_init = jax.jit(lambda tuner, space, x0, key: tuner.init(space, x0, key), static_argnums=(0, 1))


def start(tuner, x0, seed=0, space=None):
    x0 = jnp.asarray(x0, jnp.float32)
    return _init(tuner, space or space_of(x0.size), x0, jax.random.key(seed))


def observe(tuner, state, score, noise=0.0, valid=True):
    return call(tuner, "observe", state, jnp.float32(score), jnp.float32(noise), jnp.bool_(valid))


def suggest(tuner, state):
    return np.asarray(call(tuner, "suggest", state)[1])


def centre(tuner, state):
    return np.asarray(call(tuner, "centre", state))


def one_cycle(tuner, state, score_of):
    """Four periods with scores score_of(t, probes so far) as Python floats; returns the new state and the probes."""
    probes = []
    for t in range(4):
        probes.append(suggest(tuner, state))
        state = observe(tuner, state, score_of(t, probes))
    return state, np.stack(probes)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# ---- a stream of scores ----


def fed(tuner, state, scores, noises=0.0, valid=True):
    """The state after a stream of at most LENGTH scores and what was suggested, [n, D]."""
    states, xs = history_of(tuner, state, scores, noises, valid)
    return jax.tree.map(lambda leaf: leaf[-1], states), xs


def history_of(tuner, state, scores, noises=0.0, valid=True):
    """The states after each of a stream of scores, [n, ...], and what was suggested before it, [n, D]."""
    n = len(scores)

    def whole(values, dtype):
        return jnp.asarray(np.resize(np.broadcast_to(np.asarray(values, dtype), n), LENGTH))

    told = whole(scores, np.float32), whole(noises, np.float32), whole(valid, bool)
    states, xs = stream_program(tuner, state, told)
    return jax.tree.map(lambda leaf: leaf[:n], states), np.asarray(xs[:n])


@functools.partial(jax.jit, static_argnums=0)
def stream_program(tuner, state, told):
    def period(state, told):
        state, x = tuner.suggest(state)
        state = tuner.observe(state, *told)
        return state, (state, x)

    return jax.lax.scan(period, state, told)[1]


# ---- objectives of one hyperparameter ----


class Objective(struct.PyTreeNode):
    """One lane: the score is -|x - optimum|, or rises by 1 - |x - optimum|; float32 [] each."""

    x0: jax.Array
    optimum: jax.Array
    rate: float = 0.0  # 1: it rises
    late: float = 0.0  # 1: each score is told one period late
    drift: float = 0.0  # per period
    noise: float = 0.0  # standard deviation
    limit: float = 2.0  # above it the learner breaks: the period is invalid and its score NaN


def play(tuner, lanes, seed):
    """Mean centre of the last 80 periods and number of valid periods, [lanes] each, of a list of objectives."""
    stacked = jax.tree.map(lambda *leaves: jnp.asarray(leaves, jnp.float32), *lanes)
    finals, valid = _objective_program(tuner, stacked, jax.random.split(jax.random.key(seed), len(lanes)))
    return np.asarray(finals), np.asarray(valid)


@functools.partial(jax.jit, static_argnums=0)
def _objective_program(tuner, lanes, keys):
    def run(lane, key):
        key_tuner, key_noise = jax.random.split(key)

        def period(carry, inputs):
            state, total, before, count = carry
            t, eps = inputs
            state, x = tuner.suggest(state)
            f = -jnp.abs(x[0] - lane.optimum)
            total = total + 1 + f
            score = jnp.where(lane.rate > 0, total, f) + lane.drift * t + lane.noise * eps
            valid = x[0] < lane.limit
            told = jnp.where(valid, jnp.where(lane.late > 0, before, score), jnp.float32(jnp.nan))
            state = tuner.observe(state, told, NO_NOISE, valid)
            return (state, total, score, count + valid.astype(jnp.float32)), tuner.centre(state)[0]

        carry = (tuner.init(space_of(1), lane.x0[None], key_tuner), *([jnp.float32(0.0)] * 3))
        inputs = jnp.arange(PERIODS, dtype=jnp.float32), jax.random.normal(key_noise, (PERIODS,), jnp.float32)
        carry, centres = jax.lax.scan(period, carry, inputs)
        return centres[-80:].mean(), carry[3]

    return jax.vmap(run)(lanes, keys)
