"""Torch PPO through the host driver against Stable-Baselines3: steps per second and score, and where our time goes.

Both at SB3's own settings for CartPole-v1 (RL Zoo: 8 environments, 32 steps, one batch of 256, 20 epochs, two separate
networks of 64x64 tanh), the same number of environment steps, one Torch thread, each in a process of its own, in turns.
Ours runs everything a user gets: scheduler, tuner, best-of, events, snapshots and checkpoints on disk. Two windows go
before on both sides, so that what is compiled or traced once is not in the time; it has a row of its own. The score is
that of 100 fresh episodes with the deterministic policy at the end (ours: the best policy, put back by the run).
Target: 1.5x.

    python -m benchmarks.host --json
    python -m benchmarks.host --agents TorchPPOAgent FlaxPPOAgent --rounds 5
"""

from __future__ import annotations

import statistics
import sys

from benchmarks._report import Row, arguments, emit, parse, run_python

TARGET = 1.5
STEPS = 51_200

SB3 = """
import sys, time, json
import torch
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
torch.set_num_threads(1)
seed, steps = int(sys.argv[1]), int(sys.argv[2])
model = PPO("MlpPolicy", make_vec_env("CartPole-v1", n_envs=8, seed=seed), n_steps=32, batch_size=256, n_epochs=20,
            learning_rate=lambda left: 1e-3 * left, gamma=0.98, gae_lambda=0.8, clip_range=lambda left: 0.2 * left,
            ent_coef=0.0, device="cpu", seed=seed)
model.learn(512)
start = time.perf_counter()
model.learn(steps)
seconds = time.perf_counter() - start
score, _ = evaluate_policy(model, make_vec_env("CartPole-v1", n_envs=8, seed=1000 + seed), n_eval_episodes=100)
print(json.dumps({"speed": steps / seconds, "score": float(score)}))
"""

OURS = """
import sys, json, tempfile, time
from benchmarks._host_agents import score_of, setting
agent_name, seed, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
task = setting("CartPole-v1 (SB3's settings)", agent_name, seed)
with tempfile.TemporaryDirectory() as directory:
    start = time.perf_counter()
    task.optimizer(directory, max_episodes=2).run()
    warm = time.perf_counter() - start
    optimizer = task.optimizer(directory, max_episodes=steps // task.rows)
    result = optimizer.run()
seconds = result.seconds
print(json.dumps({"warm": warm,
    "speed": result.windows * task.rows / seconds["total"], "score": score_of(task, episodes=100),
    "collect": seconds["collect"] / seconds["total"], "learn": seconds["learn"] / seconds["total"],
}))
"""


def main() -> None:
    parser = arguments(__doc__ or "", timeout_s=1800.0)
    parser.add_argument("--agents", nargs="+", default=["TorchPPOAgent"])
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side, in turns; the round is the seed")
    parser.add_argument("--peer-python", default=sys.executable, help="an interpreter that has stable-baselines3")
    args = parse(parser)
    peers: list[dict] = []
    ours: dict[str, list[dict]] = {name: [] for name in args.agents}
    for seed in range(args.rounds):
        peers.append(run_python(["-c", SB3, str(seed), str(STEPS)], args.timeout, python=args.peer_python).json())
        for name in args.agents:
            ours[name].append(run_python(["-c", OURS, name, str(seed), str(STEPS)], args.timeout).json())
    rows = [
        Row("SB3", statistics.median(run["speed"] for run in peers), "steps/s"),
        Row("SB3, score", statistics.mean(run["score"] for run in peers), "return"),
    ]
    for name, runs in ours.items():
        ratio = statistics.median(run["speed"] / peer["speed"] for run, peer in zip(runs, peers, strict=True))
        rows += [
            Row(name, statistics.median(run["speed"] for run in runs), "steps/s"),
            Row(f"{name}, times SB3", ratio, "x", reference=TARGET, ratio=ratio / TARGET),
            Row(f"{name}, score", statistics.mean(run["score"] for run in runs), "return"),
            Row(f"{name}, collecting (environments, acting)", statistics.median(r["collect"] for r in runs), "share"),
            Row(f"{name}, agent.learn", statistics.median(r["learn"] for r in runs), "share"),
            Row(f"{name}, first two windows", statistics.median(run["warm"] for run in runs), "s"),
            Row(f"{name}, the loop itself", statistics.median(1 - r["collect"] - r["learn"] for r in runs), "share"),
        ]
    notes = [f"{STEPS} steps a run, {args.rounds} runs of each side in turns, seeds 0 to {args.rounds - 1}"]
    emit("host", rows, args.json, notes)


if __name__ == "__main__":
    main()
