"""Replay against flashbax: add 64 transitions and draw 256, a million kept, uniform and prioritised; and the host's.

One round, the same on both sides, in a jitted call of many rounds whose state is donated and full before it is timed:
the newest step of 64 environments is added (observation of 4 float32, int32 action, reward, how it ended); 256
transitions are drawn and read (obs, action, reward, discount, next_obs), held in memory by a barrier, and summed so
that nothing can be left out. Prioritised: what is added gets the greatest priority so far, the draw comes with
importance weights, and the 256 priorities are written back (the rewards that were read, as if they were errors).
Random numbers are drawn inside the timed call.

- Ours: `core.replay` with 64 environments, a row a round; each observation stored once, final observations of
  truncations kept beside; `core.prioritized` over its places. The random numbers of all rounds are drawn before the
  loop, as the algorithms do for a window.
- flashbax, in the three layouts that its documentation offers for this: `item` (independent transitions with both
  observations), `trajectory` (64 rows in time, sequences of 1 and period 1, both observations: what it recommends where
  speed counts more than memory), and `flat` (neighbours in time, each observation stored once; after a truncation the
  next episode's observation follows, where the others and ours give the final one). State donated, one key a draw,
  the sum tree's variant for this backend. The importance weights are made from the probabilities that it returns.
  The reference is whichever layout is fastest.

Each side runs in a process of its own, in turns, with XLA's own settings and with this library's (`loop.runtime`) on
both sides; the target, at most flashbax's time, is judged under both. In the first turn each side must show that what
it draws was added and comes as often as it should. The host's `PrioritizedReplayBuffer` (64 pushes, a draw of 256, an
update of 256) stands alone.

    python -m benchmarks.replay --peer-python /path/to/python-with-flashbax --json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from benchmarks._replay_sides import ALPHA, BATCH, BETA, CLASSES, EPS, GAMMA, N_ENVS, Side, sides, step_of
from benchmarks._report import Row, arguments, emit, parse, run_python

CHECK_DRAWS = 400  # batches of 256
TARGET = 1.0

# -- timing ------------------------------------------------------------------------------------------------------------


def compiled(f: Callable[..., Any], options: dict[str, Any], *args: Any) -> Callable[..., Any]:
    """f compiled for these arguments, the first of which is donated."""
    import jax

    return jax.jit(f, donate_argnums=0).lower(*args).compile(options)


def filled(side: Side, capacity: int, options: dict[str, Any]) -> Any:
    """A state after a tenth more steps than it holds."""
    import jax
    import jax.numpy as jnp

    state, count = jax.jit(side.init)(), jnp.int32(steps_to_fill(capacity))

    def fill(state: Any, count: Any) -> Any:
        return jax.lax.fori_loop(0, count, lambda i, state: side.add(state, i), state)

    return compiled(fill, options, state, count)(state, count)


def steps_to_fill(capacity: int) -> int:
    return capacity // N_ENVS * 11 // 10


def microseconds(side: Side, args: argparse.Namespace, options: dict[str, Any]) -> tuple[float, int]:
    """Of one round: median over `repeats` calls of `rounds` rounds, after one that is not timed.

    And how many rounds drew something that has no priority: its importance weight is then not finite.
    """
    import jax
    import jax.numpy as jnp

    def run(state: Any, first: Any, key: Any) -> tuple[Any, Any, Any]:
        random = side.random(key, args.rounds)

        def one(k: Any, carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
            state, total, faults = carry
            state = side.add(state, first + k)
            batch = jax.lax.optimization_barrier(side.sample(state, random[k]))
            if side.update is not None:
                state = side.update(state, batch.index, batch.reward)
            faults = faults + (~jnp.isfinite(batch.weight).all()).astype(jnp.int32)
            return state, total + sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in batch[:-1]), faults

        return jax.lax.fori_loop(0, args.rounds, one, (state, jnp.float32(0.0), jnp.int32(0)))

    state, added = filled(side, args.capacity, options), steps_to_fill(args.capacity)
    call = compiled(run, options, state, jnp.int32(added), jax.random.key(0))
    times, n_faults = [], 0
    for k in range(args.repeats + 1):
        first, key = jnp.int32(added + k * args.rounds), jax.random.key(k)
        start = time.perf_counter()
        state, _, faults = jax.block_until_ready(call(state, first, key))
        times.append(time.perf_counter() - start)
        n_faults += int(faults)
    return statistics.median(times[1:]) / args.rounds * 1e6, n_faults


# -- proof -------------------------------------------------------------------------------------------------------------


def wrong_draws(side: Side, capacity: int, options: dict[str, Any]) -> list[str]:
    """What is wrong with the draws from a full state; nothing if each was added, is whole and comes as often as due.

    Prioritised: first all transitions are given priorities whose powers are as 1, 2, 3, 4 by their environment.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    state, update = filled(side, capacity, options), side.update
    share = np.ones(CLASSES)
    if update is not None:
        share = np.arange(1.0, CLASSES + 1)
        priority = jnp.asarray((share / CLASSES) ** (1.0 / ALPHA) - EPS, jnp.float32)

        def prioritise(k: Any, state: Any) -> Any:
            index = jnp.minimum(k * BATCH + jnp.arange(BATCH, dtype=jnp.int32), side.n_indices - 1)
            index = side.drawable(state, index)
            return update(state, index, priority[side.classes(index)])

        def prioritise_all(state: Any) -> Any:
            return jax.lax.fori_loop(0, -(-side.n_indices // BATCH), prioritise, state)

        state = compiled(prioritise_all, options, state)(state)
    random = side.random(jax.random.key(1), CHECK_DRAWS)
    drawn = jax.jit(lambda state: jax.lax.map(lambda x: side.sample(state, x), random))(state)
    drawn = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), drawn)

    i, env = drawn.obs[:, 0].astype(np.int32), drawn.obs[:, 1].astype(np.int32)
    added = jax.tree.map(np.asarray, step_of(jnp.asarray(i), jnp.asarray(env)))
    free = added["terminated"] | (added["truncated"] & (not side.keeps_final_obs))  # any next observation will do
    rows, age = capacity // N_ENVS, steps_to_fill(capacity) - 1 - i
    weight = (share[0] / share[env % CLASSES]) ** BETA
    envs, ages = np.bincount(env, minlength=N_ENVS), np.histogram(age, 25, (0, rows))[0]
    age_share = np.histogram(np.arange(0 if side.keeps_final_obs else 1, rows), 25, (0, rows))[0]  # no pair yet at 0
    holds = {
        "ages": ((age >= 0) & (age < rows)).all(),
        "observations": (drawn.obs == added["obs"]).all(),
        "actions": (drawn.action == added["action"]).all(),
        "rewards": (drawn.reward == added["reward"]).all(),
        "discounts": np.allclose(drawn.discount, np.where(added["terminated"], 0.0, GAMMA)),
        "next observations": ((drawn.next_obs == added["final"]).all(axis=-1) | free).all(),
        "indices": update is None or (np.asarray(side.classes(drawn.index)) == added["action"]).all(),
        "weights": np.allclose(drawn.weight, weight, rtol=1e-3),
        "frequencies of environments": as_often(envs, share[np.arange(N_ENVS) % CLASSES]),
        "frequencies of ages": as_often(ages, age_share),
    }
    return [name for name, right in holds.items() if not right]


def as_often(counts: Any, share: Any) -> bool:
    """Whether counts are those of draws in proportion to `share`: chi-square within six deviations of its mean.

    A false alarm in less than one of 1e5 checks; the random numbers are fixed.
    """
    expected = share / share.sum() * counts.sum()
    chi_square, freedom = ((counts - expected) ** 2 / expected).sum(), len(counts) - 1
    return bool(chi_square <= freedom + 6.0 * (2.0 * freedom) ** 0.5)


# -- the host's buffer -------------------------------------------------------------------------------------------------


def host_microseconds(capacity: int, repeats: int) -> dict[str, float]:
    """`PrioritizedReplayBuffer`, full: 64 pushes, a draw of 256, an update of 256, and all three; medians."""
    import numpy as np

    from tensor_optix.core.prioritized_buffer import PrioritizedReplayBuffer

    buffer = PrioritizedReplayBuffer(capacity, ALPHA, BETA, seed=0)
    obs = np.arange(4, dtype=np.float32)
    buffer.push(obs, np.int32(0), 0.5, obs, False)
    state = buffer.state_dict()
    for part in (state, state["columns"]):  # fill it without a million pushes
        part |= {name: np.repeat(x, capacity, axis=0) for name, x in part.items() if isinstance(x, np.ndarray)}
    buffer.load_state_dict(state)

    times: list[tuple[float, float, float]] = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        for env in range(N_ENVS):
            buffer.push(obs, np.int32(env % CLASSES), 0.5, obs, False)
        pushed = time.perf_counter()
        batch = buffer.sample(BATCH)
        sampled = time.perf_counter()
        buffer.update_priorities(batch[6], batch[2])
        times.append((pushed - start, sampled - pushed, time.perf_counter() - sampled))
    if len(buffer) != capacity:
        raise RuntimeError(f"the buffer should hold {capacity} rows, it holds {len(buffer)}")
    pushes, draws, updates = zip(*times[1:], strict=True)
    columns = {"push 64": pushes, "sample 256": draws, "update 256": updates, "all": map(sum, times[1:])}
    return {name: statistics.median(column) * 1e6 for name, column in columns.items()}


# -- processes ---------------------------------------------------------------------------------------------------------


def child(args: argparse.Namespace) -> dict[str, Any]:
    """One side under one setting: microseconds a round by case, faulty rounds, and what is wrong with the draws."""
    if args.side == "host":
        return host_microseconds(args.capacity, args.rounds)
    options: dict[str, Any] = {}
    if args.settings == ["library"]:
        from tensor_optix.loop import runtime

        options = runtime.compiler_options(runtime.start().platform)
    said: dict[str, dict[str, Any]] = {"us": {}, "faults": {}, "wrong": {}}
    for name, side in sides(args.side, args.capacity).items():
        if args.check:
            said["wrong"][name] = wrong_draws(side, args.capacity, options)
        said["us"][name], said["faults"][name] = microseconds(side, args, options)
    return said


def run(args: argparse.Namespace, side: str, settings: str, check: bool = False) -> dict[str, Any]:
    command = ["-m", "benchmarks.replay", "--side", side, "--settings", settings, *(["--check"] if check else [])]
    for name in ("capacity", "repeats", "rounds"):
        command += [f"--{name}", str(getattr(args, name))]
    return run_python(command, args.timeout, python=args.peer_python if side == "flashbax" else "").json()


def measured(args: argparse.Namespace, settings: str) -> tuple[list[Row], list[str]]:
    """Both sides in turns under one setting: ours over the peer's fastest layout, and each layout."""
    turns: list[dict[str, float]] = []
    faults: Counter[str] = Counter()
    notes = []
    for turn in range(args.turns):
        times: dict[str, float] = {}
        for name in ("ours", *(["flashbax"] if args.peer_python else [])):
            said = run(args, name, settings, check=turn == 0)
            times |= said["us"]
            faults.update(said["faults"])
            notes += [f"{case}, {settings}: WRONG {', '.join(wrong)}" for case, wrong in said["wrong"].items() if wrong]
        turns.append(times)
    n_rounds = args.turns * (args.repeats + 1) * args.rounds
    for case, n in faults.items():
        if n:
            notes.append(f"{case}, {settings}: {n} of {n_rounds} rounds drew what has no priority (or is not there)")

    median = {case: statistics.median(turn[case] for turn in turns) for case in turns[0]}
    rows = []
    for kind in ("uniform", "prioritised"):
        title, mine = f"{kind}, settings of {'XLA' if settings == 'xla' else 'the library'}", f"ours {kind}"
        peers = [case for case in median if case.endswith(f" {kind}") and case != mine]
        if not peers:
            rows.append(Row(title, median[mine], "us"))
            continue
        best = min(peers, key=lambda case: median[case])
        ratios = [turn[mine] / turn[best] for turn in turns]
        ratio = statistics.median(ratios)
        rows.append(Row(f"{title}, against {best.split()[0]}", median[mine], "us", median[best], ratio))
        rows += [Row(f"  flashbax {case}", median[case], "us") for case in peers]
        spread = f"{ratio:.2f}, {min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)} turns"
        notes.append(f"{title}: ratio {spread}; target {TARGET:g} {'met' if ratio <= TARGET else 'missed'}")
    return rows, notes


def main() -> None:
    parser = arguments(__doc__ or "", timeout_s=3600.0)
    parser.add_argument("--peer-python", help="interpreter in which flashbax is installed; without it no reference")
    parser.add_argument("--capacity", type=int, default=1_000_000, help="transitions kept; a multiple of 64")
    parser.add_argument("--turns", type=int, default=5, help="processes of each side and setting")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls in a process")
    parser.add_argument("--rounds", type=int, default=1000, help="rounds in a call")
    parser.add_argument("--settings", choices=("xla", "library"), nargs="+", default=["xla", "library"])
    parser.add_argument("--side", choices=("ours", "flashbax", "host"), help=argparse.SUPPRESS)
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    args = parse(parser)
    if args.capacity % N_ENVS:
        parser.error(f"--capacity must be a multiple of {N_ENVS}, got {args.capacity}")
    if args.side:
        print(json.dumps(child(args)))
        return

    host = run(args, "host", "xla")
    rows = [Row(f"host: {name}", value, "us") for name, value in host.items()]
    notes: list[str] = []
    for settings in args.settings:
        more_rows, more_notes = measured(args, settings)
        rows, notes = rows + more_rows, notes + more_notes
        emit("replay", rows, args.json, notes)  # so far: an interrupted run keeps what it has
        sys.stdout.flush()
    if any(note.startswith("ours ") for note in notes):
        sys.exit("our draws are not what they should be; see the notes")


if __name__ == "__main__":
    main()
