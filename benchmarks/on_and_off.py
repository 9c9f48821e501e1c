"""Autonomy on against off, the same steps: DQN on CartPole-v1 and PPO on Acrobot-v1.

Off is a fixed budget of steps with fixed hyperparameters, and its last policy. Kept is the same with the best policy
handed back. On is the autonomous loop over the same budget: it tunes, too. Same networks and starting hyperparameters,
by default the algorithm's general ones and not those of the environment's preset. Scores are of fresh episodes of the
deterministic policy.

    python -m benchmarks.on_and_off --json
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from benchmarks._report import Row, arguments, emit, parse

TASKS = {  # algorithm, environment, steps, solved at
    "DQN CartPole-v1": ("dqn", "CartPole-v1", 50_000, 475.0),
    "PPO Acrobot-v1": ("ppo", "Acrobot-v1", 200_000, -100.0),
}


def main() -> None:
    from tensor_optix import train
    from tensor_optix.algorithms import registry
    from tensor_optix.envs import make
    from tensor_optix.loop import runtime
    from tensor_optix.statistics import bootstrap_interval, interquartile_mean

    parser = arguments(__doc__ or "", timeout_s=7200.0)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--presets", action="store_true", help="start from the environment's preset")
    args = parse(parser)
    runtime.start()
    rows = []
    for name, (algorithm, env, steps, solved) in TASKS.items():
        given: dict[str, Any] = {}
        if not args.presets:
            kind = registry.get(algorithm)
            general = kind(make(env), kind.config_type())
            config = {
                key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(general.config).items()
            }
            given = {"config": config, "hyperparams": general.hyperparams()}
        for side in ("off", "kept", "on"):
            result = train(
                env,
                algorithm,
                seeds=args.seeds,
                total_steps=steps,
                tune=side == "on",
                stop=False,
                eval_every=2048,
                eval_episodes=100 if side == "off" else None,
                progress=False,
                **given,
            )
            curves = [member.curve for member in result.members]
            scores = result.scores if side != "off" else np.asarray([curve.score[-1] for curve in curves], np.float64)
            low, high = bootstrap_interval(scores, interquartile_mean)
            text = f"{float(interquartile_mean(scores)):.1f} [{low:.1f}, {high:.1f}]"
            rows.append(Row(f"{name}, {side}: IQM of {args.seeds} seeds after {steps:,} steps", text, "return"))
            rows.append(Row(f"{name}, {side}: standard deviation over seeds", float(scores.std()), "return"))
            rows.append(
                Row(f"{name}, {side}: seeds solved (at least {solved:g})", int((scores >= solved).sum()), "seeds")
            )
            reached = [c.env_steps[np.argmax(c.score >= solved)] for c in curves if (c.score >= solved).any()]
            text = f"{np.mean(reached) / 1e3:.1f} k (sd {np.std(reached) / 1e3:.1f}, {len(reached)} seeds)"
            rows.append(Row(f"{name}, {side}: steps to {solved:g}", text if reached else "never", "steps"))
    emit("on_and_off", rows, args.json)


if __name__ == "__main__":
    main()
