"""Memory of a replay: what `algorithm.replay_bytes()` says against how much a process grows, and against storing twice.

For every algorithm that learns from a replay, a million transitions of vectors and a hundred thousand of images
(Breakout-MinAtar; SAC and TD3 play it with a continuous action, cut into the game's). A child process compiles the
driver's own programs first; then it notes its resident memory, creates a member, runs windows until it has learned,
writes to every row of the replay, and notes its memory again. What the same member with the smallest replay adds
(networks, environment, thread stacks) is measured alike and taken off. The peak says whether a copy of the replay was
ever made. Several members of one device are measured as one. Linux only.

    python -m benchmarks.replay_memory --json
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks._report import Row, arguments, emit, parse, run_python

VECTORS, IMAGES = "vectors", "images"
SIZES = {VECTORS: 1_000_000, IMAGES: 100_000}
GAME = "Breakout-MinAtar"
WARMUP = SMALLEST = 512  # transitions
AGREES = (0.95, 1.05)  # growth over estimate
GROWTH = "resident growth, against replay_bytes"
MB = 1e6


def environment(algorithm: str, kind: str) -> Any:
    """An environment's id, or an object."""
    if kind == VECTORS:
        return "Pendulum-v1" if algorithm in ("sac", "td3") else "CartPole-v1"
    return continuous_game() if algorithm in ("sac", "td3") else GAME


def continuous_game() -> Any:
    """The game with one action from -1 to 1, cut into as many equal parts as it has actions."""
    import gymnax
    import jax.numpy as jnp

    from tensor_optix.envs.spaces import Box

    game, params = gymnax.make(GAME)
    n_actions = int(game.action_space(params).n)

    class Continuous:
        name = f"continuous {GAME}"
        default_params = params
        observation_space = staticmethod(game.observation_space)
        reset_env = staticmethod(game.reset_env)
        is_truncated = staticmethod(game.is_truncated)

        def action_space(self, params: Any) -> Any:
            return Box(-1.0, 1.0, (1,))

        def step_env(self, key: Any, state: Any, action: Any, params: Any) -> Any:
            part = ((action[0] + 1.0) * (0.5 * n_actions)).astype(jnp.int32)
            return game.step_env(key, state, jnp.clip(part, 0, n_actions - 1), params)

    return Continuous()


def child(algorithm: str, kind: str, size: int, members: int) -> dict[str, float]:
    """Bytes: what members on one device add to the process, at its peak too, and what was estimated for them."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from tensor_optix.config import RunConfig
    from tensor_optix.core.autonomy import NO_LIMIT
    from tensor_optix.loop import runtime
    from tensor_optix.loop.compiled import make_mesh, sharded_chunk, sharded_init
    from tensor_optix.plan import make_plan

    platform = runtime.start().platform
    env = environment(algorithm, kind)
    config = {"replay_size": size, "warmup_steps": WARMUP}
    named = isinstance(env, str)
    run = RunConfig(env=env if named else env.name, algorithm=algorithm, seeds=1, config=config, total_steps=1_000_000)
    plan = make_plan(run, None if named else env)
    learner = plan.program.algorithm

    mesh = make_mesh(jax.local_devices()[:1])
    hyper = {name: np.full(members, value, np.float32) for name, value in plan.members[0].hyper.items()}
    zero, on = np.zeros(members, np.uint32), np.ones(members, bool)
    limits = (np.full(members, NO_LIMIT, np.int32), np.full(members, np.inf, np.float32))
    compile_program = partial(runtime.compile_program, platform=platform)
    to_init: Any = sharded_init(plan.program, mesh)
    init = compile_program(to_init.lower(zero, zero, hyper, *limits, on))
    shapes = jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        init.out_info,
        init.output_shardings,
    )
    n_windows = -(-WARMUP // learner.steps_per_window) + 1
    to_chunk: Any = sharded_chunk(plan.program, mesh, 1, n_windows)
    chunk = compile_program(to_chunk.lower(shapes, jax.ShapeDtypeStruct((), jnp.int32)))
    touch = compile_program(jax.jit(touched, donate_argnums=0).lower(shapes))

    before = settled()
    reset_peak()
    state = jax.block_until_ready(init(zero, zero, hyper, *limits, on))
    state, _ = jax.block_until_ready(chunk(state, jnp.int32(n_windows)))
    peak = status("VmHWM")
    if int(state.unpack().learner.updates.min()) < 1:
        raise RuntimeError(f"{algorithm} has not learned in {n_windows} windows: nothing was drawn from the replay")
    state = jax.block_until_ready(touch(state))
    return {
        "estimated": members * learner.replay_bytes(),
        "storing_twice": members * storing_twice(learner, size),
        "grown": settled() - before,
        "peak": peak - before,
    }


def storing_twice(algorithm: Any, size: int) -> int:
    """Bytes of transitions with both observations, action, reward, and one byte for how it ended; same priorities."""
    import jax
    import jax.numpy as jnp

    from tensor_optix.core import replay

    hyper = {name: jnp.float32(value) for name, value in algorithm.hyperparams().items()}
    learner = jax.eval_shape(lambda key: algorithm.init(key, hyper), jax.random.key(0))
    obs, action = (replay.n_bytes(leaf) // leaf.shape[0] for leaf in (learner.replay.obs, learner.replay.action))
    n_envs = algorithm.config.n_envs
    return size // n_envs * (2 * obs + action + n_envs * (4 + 1)) + replay.n_bytes(learner.priorities)


def settled() -> int:
    """Resident memory without what is free but not given back to the system, in bytes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return status("VmRSS")


def touched(tree: Any) -> Any:
    """Every number overwritten, in place, so that no page is left that only exists on paper."""
    import jax
    import jax.numpy as jnp

    def overwritten(x: Any) -> Any:
        return x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x + jnp.ones_like(x)

    return jax.tree.map(overwritten, tree)


def status(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}: this benchmark needs Linux")


def reset_peak() -> None:
    """Start VmHWM anew, so that what compiling took does not hide what running takes."""
    Path("/proc/self/clear_refs").write_text("5")


def measured(timeout_s: float, *case: str | int) -> dict[str, float]:
    """`child` in a process of its own, in which every array has pages of its own."""
    args = ["-m", "benchmarks.replay_memory", "--child", *map(str, case)]
    return run_python(args, timeout_s, {"MALLOC_MMAP_THRESHOLD_": "65536"}).json()


def case_rows(algorithm: str, kind: str, size: int, members: int, timeout_s: float) -> list[Row]:
    full = measured(timeout_s, algorithm, kind, size, members)
    least = measured(timeout_s, algorithm, kind, SMALLEST, members)
    title = f"{algorithm}, {size} {kind}" + (f", {members} members" if members > 1 else "")
    expected = full["estimated"] - least["estimated"]
    figures = {
        GROWTH: (full["grown"] - least["grown"], expected),
        "growth at the peak, against replay_bytes": (full["peak"] - least["peak"], expected),
        "resident growth with all else, against replay_bytes": (full["grown"], full["estimated"]),
        "replay_bytes, against storing twice": (full["estimated"], full["storing_twice"]),
    }
    return [Row(f"{title}: {name}", a / MB, "MB", b / MB, a / b) for name, (a, b) in figures.items()]


def main() -> None:
    from tensor_optix.algorithms import registry

    off_policy = [name for name in registry.names() if not registry.get(name).is_on_policy]
    parser = arguments(__doc__ or "", timeout_s=3600.0)
    parser.add_argument("--only", nargs="+", choices=off_policy, default=off_policy, help="algorithms")
    parser.add_argument("--kinds", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--members", nargs="+", type=int, default=[1, 4], help="on one device; several: vectors only")
    parser.add_argument("--size", type=int, default=None, help="transitions kept; default: by kind")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parse(parser)
    if args.child:
        algorithm, kind, size, members = args.child
        print(json.dumps(child(algorithm, kind, int(size), int(members))))
        return

    rows: list[Row] = []
    low, high = AGREES
    for kind in args.kinds:
        for members in args.members if kind == VECTORS else [1]:
            for algorithm in args.only:
                rows += case_rows(algorithm, kind, args.size or SIZES[kind], members, args.timeout)
                apart = [row.name for row in rows if GROWTH in row.name and not low <= (row.ratio or 0.0) <= high]
                notes = [f"growth more than 5 % from replay_bytes: {', '.join(apart) or 'none'}"]
                emit("replay_memory", rows, args.json, notes)  # so far: an interrupted run keeps what it has
                sys.stdout.flush()


if __name__ == "__main__":
    main()
