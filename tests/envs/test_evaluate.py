"""Evaluation against a plain Python loop over gymnax."""

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix import envs
from tensor_optix.envs.probes import DelayedCredit, TimeLimit


def lean(obs, key):
    """A CartPole policy that holds for a while and falls at different times."""
    return (obs[:, 2] > 0).astype(jnp.int32)


def test_first_episodes_as_a_python_loop_sees_them():
    env = envs.make("CartPole-v1")
    key, n = jax.random.key(0), 6
    stats = jax.jit(lambda key: envs.evaluate(env, lean, key, n, 1000))(key)
    state, obs = env.reset(jax.random.fold_in(key, 0), n)
    peer, params = gymnax.make("CartPole-v1")
    with jax.numpy_dtype_promotion("standard"):
        step = jax.jit(peer.step_env)
        for lane in range(n):
            one, seen, length, ended = jax.tree.map(lambda x, i=lane: x[i], state.env), obs[lane], 0, False
            while not ended:
                seen, one, _, terminated, _ = step(jax.random.key(0), one, lean(seen[None], None)[0], params)
                length += 1
                ended = bool(terminated) or length == 500
            assert stats.lengths[lane] == stats.returns[lane] == length
    assert stats.completed.all()
    assert len(np.unique(stats.lengths)) > 1


def test_it_is_cut_at_max_steps():
    env = envs.make("Pendulum-v1")
    stats = envs.evaluate(env, lambda obs, key: jnp.zeros((2, 1)), jax.random.key(0), 2, 50)
    assert stats.lengths.tolist() == [50, 50]
    assert stats.completed.tolist() == [False, False]


def test_only_the_first_episode_counts():
    stats = envs.evaluate(envs.make(TimeLimit), lambda obs, key: jnp.zeros(3, jnp.int32), jax.random.key(0), 3, 100)
    assert stats.returns.tolist() == [5.0, 5.0, 5.0]
    assert stats.lengths.tolist() == [5, 5, 5]
    assert stats.completed.all()


def test_members_do_not_touch_each_other():
    env = envs.make("CartPole-v1")
    run = jax.jit(lambda key: envs.evaluate(env, lean, key, 4, 600))
    keys = jax.random.split(jax.random.key(1), 3)
    together = jax.jit(jax.vmap(lambda key: envs.evaluate(env, lean, key, 4, 600)))(keys)
    for member, key in enumerate(keys):
        jax.tree.map(lambda a, b, m=member: np.testing.assert_array_equal(a[m], b), together, run(key))


def test_random_policies_use_their_key_anew_at_every_step():
    seen = []

    def act(obs, key):
        action = jax.random.randint(key, (4,), 0, 2, jnp.int32)
        jax.debug.callback(lambda a: seen.append(tuple(a.tolist())), action)
        return action

    env = envs.make(DelayedCredit)
    jax.block_until_ready(envs.evaluate(env, act, jax.random.key(0), 4, 5))
    jax.effects_barrier()
    assert len(set(seen)) > 1


def test_memory_is_carried_along():
    env = envs.make(TimeLimit)

    def act(obs, carry, key):
        return jnp.zeros(2, jnp.int32), carry + jnp.int32(1)

    _, carry = envs.evaluate_with_carry(env, act, jnp.int32(0), jax.random.key(0), 2, 100)
    assert carry.tolist() == [5, 5]


@pytest.mark.parametrize(("n", "steps"), [(0, 5), (5, 0)])
def test_numbers_must_be_positive(n, steps):
    with pytest.raises(ValueError, match="must be at least 1"):
        envs.evaluate(envs.make(TimeLimit), lean, jax.random.key(0), n, steps)


def test_deterministic_evaluation_draws_nothing_in_its_loop():
    env = envs.make("CartPole-v1")
    text = jax.jit(lambda key: envs.evaluate(env, lean, key, 8, 100)).lower(jax.random.key(0)).compile().as_text()
    # The draws that are left (the reset's) lie outside the loop over steps, the only computation with cosines.
    bodies = [part for part in text.split("\n\n") if "cosine" in part]
    assert bodies
    assert not any("shift-left" in part or "xor" in part for part in bodies)
