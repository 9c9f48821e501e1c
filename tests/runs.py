"""Small runs for tests: a session of PPO on CartPole with windows of 64 steps."""

from __future__ import annotations

import jax
import numpy as np

from tensor_optix.config import RunConfig
from tensor_optix.loop.session import Session
from tensor_optix.plan import make_plan

# What XLA compiles with unless told otherwise; the suite's own jits are compiled with less (see conftest.py).
XLA_DEFAULTS = {"xla_cpu_use_fusion_emitters": True, "xla_backend_optimization_level": 3}

SMALL = {"n_envs": 4, "n_steps": 16, "n_epochs": 2, "n_minibatches": 2, "hidden_sizes": [16]}


def plan_of(seeds=2, total_steps=64 * 40, env="CartPole-v1", env_object=None, **settings):
    settings.setdefault("config", SMALL)
    settings.setdefault("eval_every", 128)
    settings.setdefault("eval_episodes", 4)
    settings.setdefault("final_episodes", 4)
    return make_plan(RunConfig(env=env, seeds=seeds, total_steps=total_steps, **settings), env_object)


def session_of(plan, *, block=1, devices=None, start=True) -> Session:
    session = Session(
        plan.program,
        plan.members,
        devices=devices or jax.local_devices(),
        block=block,
        max_windows=plan.max_windows,
        target_score=plan.target_score,
        final_episodes=plan.run.final_episodes,
        meeting=plan.meeting,
    )
    if start:
        session.start()
    return session


def run_windows(session: Session, count: int, chunk: int = 1000) -> list:
    """Exactly `count` windows of every running member, in chunks of at most `chunk`."""
    reports = []
    while count > 0 and not session.done:
        n = min(count, chunk)
        session._next_chunk = lambda n=n: n
        before = session.windows.max()
        reports.append(session.step())
        count -= session.windows.max() - before  # a population stops on its way to meet
    return reports


def leaves(tree) -> dict[str, np.ndarray]:
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}


def assert_same_bits(a, b) -> None:
    a, b = leaves(a), leaves(b)
    assert a.keys() == b.keys()
    different = [name for name in a if a[name].tobytes() != b[name].tobytes()]
    assert not different, different


def member(tree, index):
    return jax.tree.map(lambda x: np.asarray(x)[index], tree)
