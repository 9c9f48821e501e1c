"""A process to be killed: saves checkpoints as fast as it can, and says on a pipe what it has done.

Run as a program it is a server: it imports JAX once, and for every path on its standard input forks a child that
opens the run there and saves until it is killed. Forking before JAX starts a backend makes a trial cheap.
"""

import os
import sys

import jax
import jax.numpy as jnp
import orbax.checkpoint  # noqa: F401  imported here so that every forked child has it

from tensor_optix.loop.run_dir import NoCheckpointError, RunDir


def state_at(step: int) -> dict:
    """About 100 KB whose every part depends on `step`."""
    return {
        "params": [jnp.full((100, 60), step, jnp.float32), jnp.arange(500, dtype=jnp.int32) + step],
        "bytes": jnp.full(20_000, step % 251, jnp.uint8),
        "key": jax.random.key(step),
        "step": step,
    }


def save_until_killed(path: str) -> None:
    run = RunDir.open(path)
    step = 0
    try:
        loaded = run.load_checkpoint(state_at(0))
    except NoCheckpointError:
        run.truncate_events(0)
    else:
        step = loaded.step
        run.truncate_events(loaded.events_offset)
    print("opened", step, flush=True)
    while True:
        step += 1
        run.append_events([{"step": step}])
        print("saving", step, flush=True)
        run.save_checkpoint(step, state_at(step), {"step": step})
        print("saved", step, flush=True)


def serve() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            save_until_killed(line.strip())
        print("child", child, flush=True)
        os.waitpid(child, 0)
        print("gone", child, flush=True)


if __name__ == "__main__":
    serve()
