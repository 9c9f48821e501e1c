"""GAE and V-trace on a [128, 2048] window: ours against rlax under vmap, in turns in one process.

rlax is optional (`pip install rlax`); without it the reference is empty.

    python -m benchmarks.returns --json
"""

from __future__ import annotations

import os

os.environ.setdefault("NPROC", "8")  # XLA's CPU client can hang when its thread pool has two threads

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks._report import Row, arguments, emit, median_ratio, parse
from tensor_optix.core import returns

T, N = 128, 2048
GAMMA, LAMBDA = 0.99, 0.95


def window() -> dict[str, jax.Array]:
    """A [T, N] window in which one step in fifty ends an episode."""
    keys = jax.random.split(jax.random.key(0), 4)
    values = jax.random.normal(keys[0], (T + 1, N), jnp.float32)
    return {
        "r_t": jax.random.normal(keys[1], (T, N), jnp.float32),
        "v_tm1": values[:-1],
        "v_t": values[1:],
        "terminated": jax.random.bernoulli(keys[2], 0.02, (T, N)),
        "log_ratio": 0.1 * jax.random.normal(keys[3], (T, N), jnp.float32),
    }


def ours() -> dict[str, Callable[..., Any]]:
    def gae(r_t: Any, v_tm1: Any, v_t: Any, terminated: Any, log_ratio: Any) -> Any:
        return returns.gae(r_t, v_tm1, v_t, terminated, terminated, GAMMA, LAMBDA)[0]

    def vtrace(r_t: Any, v_tm1: Any, v_t: Any, terminated: Any, log_ratio: Any) -> Any:
        return returns.vtrace(r_t, v_tm1, v_t, terminated, terminated, log_ratio, GAMMA, LAMBDA)

    return {"gae": gae, "vtrace": vtrace}


def theirs(axis: int) -> dict[str, Callable[..., Any]]:
    """The same from rlax: one trace, mapped over the batch `axis`. Empty if rlax is missing."""
    try:
        import rlax
    except ImportError:
        return {}

    def gae(r_t: Any, v_tm1: Any, v_t: Any, terminated: Any, log_ratio: Any) -> Any:
        def one(r_t: Any, v_tm1: Any, v_t: Any, terminated: Any) -> Any:
            values = jnp.append(v_tm1, v_t[-1])
            return rlax.truncated_generalized_advantage_estimation(r_t, GAMMA * (1.0 - terminated), LAMBDA, values)

        return jax.vmap(one, in_axes=axis, out_axes=axis)(r_t, v_tm1, v_t, terminated)

    def vtrace(r_t: Any, v_tm1: Any, v_t: Any, terminated: Any, log_ratio: Any) -> Any:
        def one(r_t: Any, v_tm1: Any, v_t: Any, terminated: Any, log_ratio: Any) -> Any:
            out = rlax.vtrace_td_error_and_advantage(
                v_tm1, v_t, r_t, GAMMA * (1.0 - terminated), jnp.exp(log_ratio), LAMBDA
            )
            return out.errors, out.pg_advantage

        return jax.vmap(one, in_axes=axis, out_axes=axis)(r_t, v_tm1, v_t, terminated, log_ratio)

    return {"gae": gae, "vtrace": vtrace}


def timer(f: Callable[..., Any], repeats: int, batch_major: bool = False) -> Callable[[], float]:
    """Milliseconds per call over `repeats` calls; compiled before it is returned."""
    args = {name: x.T if batch_major else x for name, x in window().items()}
    call = jax.jit(lambda args: f(**args))
    jax.block_until_ready(call(args))

    def measure() -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            jax.block_until_ready(call(args))
        return (time.perf_counter() - start) / repeats * 1e3

    return measure


def reference_timers(repeats: int) -> dict[str, Callable[[], float]]:
    """rlax in whichever layout of the window suits it better: [T, N] mapped over axis 1, or [N, T] over axis 0."""
    best = {}
    for name in theirs(0):
        layouts = [timer(theirs(axis)[name], repeats, batch_major=axis == 0) for axis in (0, 1)]
        best[name] = min(layouts, key=lambda measure: min(measure() for _ in range(3)))
    return best


def main() -> None:
    parser = arguments(__doc__ or "", timeout_s=300.0)
    parser.add_argument("--rounds", type=int, default=15, help="pairs of measurements")
    parser.add_argument("--repeats", type=int, default=50, help="calls per measurement")
    args = parse(parser)

    rows, references = [], reference_timers(args.repeats)
    for name, f in ours().items():
        measure, title = timer(f, args.repeats), f"{name} [{T}, {N}]"
        if name in references:
            pair = median_ratio(measure, references[name], args.rounds)
            rows.append(Row(title, pair.a, "ms", pair.b, pair.ratio))
        else:
            rows.append(Row(title, sorted(measure() for _ in range(args.rounds))[args.rounds // 2], "ms"))
    notes = [] if references else ["rlax is not installed: no reference (pip install rlax)"]
    emit("returns", rows, args.json, notes)


if __name__ == "__main__":
    main()
