"""A population that exchanges against as many members that do not: what the exchange costs, and what it brings.

64 members of PPO on one environment, from random points of the search space, the same windows on both sides; they take
turns in one process. The cost is the time of a run with exchanges after every evaluation over that of one whose rule
never copies (both meet after every evaluation), and over that of plain variants, which never meet at all.

    python -m benchmarks.population --json
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks._report import Row, arguments, emit, parse

NEVER = 10**6  # evaluations


def session_of(env: str, members: int, steps: int, every: int | None) -> Any:
    """A started session: of a population, or of members that never meet (every None)."""
    import jax

    from tensor_optix import RunConfig
    from tensor_optix.loop.session import Session, default_block
    from tensor_optix.plan import make_plan

    settings: dict[str, Any] = {"seeds": [0], "total_steps": steps, "stop": False, "eval_every": 2048}
    if every is None:
        settings |= {"seeds": members, "tune": False}
    else:
        settings |= {"population": members, "exchange": {"every": every}}
    plan = make_plan(RunConfig(env=env, **settings))
    session = Session(
        plan.program,
        plan.members,
        devices=jax.local_devices(),
        block=default_block(jax.default_backend()),
        max_windows=plan.max_windows,
        meeting=plan.meeting,
    )
    session.compile()
    return session


def run(session: Any) -> float:
    """Seconds of one whole run, compilation apart."""
    session.start()
    session.windows[:] = 0
    session.stop_reasons[:] = 0
    session.run_s = 0.0
    session._met = 0
    while not session.done:
        session.step()
    return float(session.run_s)


def main() -> None:
    parser = arguments(__doc__ or "", timeout_s=3600.0)
    parser.add_argument("--env", default="Acrobot-v1")
    parser.add_argument("--members", type=int, default=64)
    parser.add_argument("--steps", type=int, default=65_536, help="of each member")
    parser.add_argument("--rounds", type=int, default=3)
    args = parse(parser)
    from tensor_optix.loop import runtime

    runtime.start()
    sides = {"exchange after every evaluation": 1, "exchange after four": 4, "never": NEVER, "plain variants": None}
    sessions = {name: session_of(args.env, args.members, args.steps, every) for name, every in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(args.rounds):
        for name, session in sessions.items():
            seconds[name].append(run(session))
    rows = []
    for name in sides:
        value = float(np.median(seconds[name]))
        ratio = float(np.median(np.divide(seconds[name], seconds["never"])))
        rows.append(Row(f"{args.members} members, {name}", value, "s", float(np.median(seconds["never"])), ratio))
    for name, session in sessions.items():
        if name != "plain variants":
            _, episodes = session.final()
            scores = np.asarray(episodes.returns, np.float64).mean(axis=1)
            text = f"{scores.max():.1f} / {np.median(scores):.1f} / {scores.min():.1f}"
            rows.append(Row(f"{args.env}, {name}: best / median / worst member", text, "return"))
    emit("population", rows, args.json)


if __name__ == "__main__":
    main()
