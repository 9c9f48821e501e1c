"""Act and learn with a graph of neurons on CartPole: the host's GraphAgent and the compiled graph PPO against a peer.

The peer is an installed package with the documented interface (`tensor_optix.neuroevo.NeuronGraph`, `GraphAgent`,
`BatchPipeline`), of another interpreter: the same lines run in both. Windows of 256 steps of one environment, 4 epochs
of minibatches of 64; the compiled one has 8 environments of 32 steps in a window. Steps a second in turns, each in a
process of its own, compile and first windows apart.

    python -m benchmarks.graph_agents --peer-python /path/to/python-with-the-peer --json
"""

from __future__ import annotations

from functools import partial

from benchmarks._report import Row, arguments, emit, median_ratio, parse, run_python

TARGET = 100.0  # compiled, one member

HOST = """
import os, sys, time, json
os.environ.setdefault("NPROC", "8")
import numpy as np, gymnasium as gym
from tensor_optix import BatchPipeline
from tensor_optix.core.types import HyperparamSet
from tensor_optix.neuroevo import GraphAgent, NeuronGraph
hidden, windows = int(sys.argv[1]), int(sys.argv[2])
rng, graph = np.random.default_rng(0), NeuronGraph()
layers = [[graph.add_neuron(role=role, activation=activation) for _ in range(count)]
          for role, activation, count in (("input", "linear", 4), ("hidden", "tanh", hidden), ("output", "linear", 3))]
for before, after in zip(layers, layers[1:]):
    for u in before:
        for v in after:
            graph.add_edge(u, v, weight=float(rng.normal() / len(before) ** 0.5), delay=0)
params = {"learning_rate": 3e-4, "clip_ratio": 0.2, "entropy_coef": 0.01, "vf_coef": 0.5, "gamma": 0.99,
          "gae_lambda": 0.95, "n_epochs": 4, "minibatch_size": 64, "max_grad_norm": 0.5}
agent = GraphAgent(graph=graph, obs_dim=4, n_actions=2, hyperparams=HyperparamSet(params=params, episode_id=0))
pipeline = BatchPipeline(env=gym.make("CartPole-v1"), agent=agent, window_size=256)
pipeline.setup()
for i, data in enumerate(pipeline.episodes()):
    agent.learn(data)
    if i == 1:
        start = time.perf_counter()
    if i == 1 + windows:
        break
print(json.dumps({"speed": 256 * windows / (time.perf_counter() - start)}))
"""

COMPILED = """
import sys, json
from tensor_optix import train
hidden, steps = int(sys.argv[1]), int(sys.argv[2])
result = train("CartPole-v1", "graph_ppo", seeds=1, total_steps=steps, stop=False, tune=False, progress=False,
               config={"hidden_sizes": [hidden], "n_envs": 8, "n_steps": 32, "n_epochs": 4, "n_minibatches": 4},
               eval_every=steps // 2, final_episodes=1)
print(json.dumps({"speed": result.env_steps_per_s}))
"""


def speed(code: str, python: str, hidden: int, amount: int) -> float:
    """Environment steps a second, in a process of its own."""
    return run_python(["-P", "-c", code, str(hidden), str(amount)], 600.0, {}, python=python).json()["speed"]


def main() -> None:
    parser = arguments(__doc__ or "", timeout_s=3600.0)
    parser.add_argument("--peer-python", required=True, help="interpreter in which the peer is installed")
    parser.add_argument("--hidden", type=int, nargs="+", default=[16, 64], help="hidden neurons")
    parser.add_argument("--rounds", type=int, default=3, help="turns each side takes")
    args = parse(parser)
    rows, notes = [], []
    for hidden in args.hidden:
        theirs = partial(speed, HOST, args.peer_python, hidden, 2)
        for name, ours in (
            ("host GraphAgent", partial(speed, HOST, "", hidden, 30)),
            ("compiled graph_ppo", partial(speed, COMPILED, "", hidden, 204_800)),
        ):
            pair = median_ratio(ours, theirs, args.rounds)
            rows.append(Row(f"{name}, {hidden} hidden neurons", pair.a, "steps/s", pair.b, pair.ratio))
            notes.append(f"{name}, {hidden} hidden: {min(pair.ratios):.0f} to {max(pair.ratios):.0f}x")
            emit("graph_agents", rows, args.json, notes)


if __name__ == "__main__":
    main()
