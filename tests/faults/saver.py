"""A process to be killed: saves checkpoints as fast as it can, and says on a pipe what it has done.

Run as a program it is a server: it imports JAX once, and for every line "<path> <n>" on its standard input forks a
child that opens the run at the path and saves until it is killed. If n > 0 the child, once it has saved, kills itself
just before its n-th call that changes a name or flushes a file. Forking before JAX starts a backend, and building the
states without compiling anything, makes a trial cheap.
"""

import faulthandler
import itertools
import os
import signal
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint  # noqa: F401  imported here so that every forked child has it

from tensor_optix.loop.run_dir import NoCheckpointError, RunDir


def state_at(step: int) -> dict:
    """About 100 KB whose every part depends on `step`."""
    words = np.array([step, step + 1], np.uint32)
    return {
        "params": [jnp.asarray(np.full((100, 60), step, np.float32)), np.arange(500) + step],
        "bytes": jnp.asarray(np.full(20_000, step % 251, np.uint8)),
        "key": jax.random.wrap_key_data(jnp.asarray(words), impl="threefry2x32"),
        "step": step,
    }


def say(word: str, number: int) -> None:
    """One line in one system call: death comes before or after it, never within (`print` may write in pieces)."""
    os.write(sys.stdout.fileno(), f"{word} {number}\n".encode())


def save_until_killed(path: str, fatal_call: int) -> None:
    faulthandler.dump_traceback_later(30)  # a child that hangs says where
    run = RunDir.open(path)
    step = 0
    try:
        loaded = run.load_checkpoint(state_at(0))
    except NoCheckpointError:
        run.truncate_events(0)
    else:
        step = loaded.step
        run.truncate_events(loaded.events_offset)
    say("opened", step)
    while True:
        step += 1
        run.append_events([{"step": step}])
        say("saving", step)
        run.save_checkpoint(step, state_at(step), {"step": step})
        say("saved", step)
        if fatal_call:
            die_before_call(fatal_call)
            fatal_call = 0


def die_before_call(fatal_call: int) -> None:
    counter = itertools.count(1)

    def counted(call: Callable) -> Callable:
        def wrapper(*args, **kwargs):
            if next(counter) == fatal_call:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return wrapper

    for name in ("rename", "replace", "unlink", "rmdir", "mkdir", "fsync"):
        setattr(os, name, counted(getattr(os, name)))


def serve() -> None:
    for line in sys.stdin:
        path, _, fatal_call = line.strip().rpartition(" ")
        child = os.fork()
        if child == 0:
            save_until_killed(path, int(fatal_call))
        say("child", child)
        os.waitpid(child, 0)
        say("gone", child)


if __name__ == "__main__":
    serve()
