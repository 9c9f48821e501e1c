"""Graphs that grow while they learn, against fixed ones of the size they start from and of the size they may reach.

Graph PPO, the same steps for all; `small` hidden neurons at the start, room for `large`. Growing splits neurons:
"signals", where all three signals agree, "plateau", where the score does not rise. Scores are of the best policy by its
own evaluations, 100 fresh episodes: interquartile mean over seeds with its 95 % interval. Neurons are counted at the
end of each quarter of the run.

    python -m benchmarks.growing --json
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._report import Row, arguments, emit, parse

TASKS: dict[str, dict[str, Any]] = {
    "CartPole-v1": {"steps": 100_000, "small": 2, "large": 16, "op": "split_neuron"},
    "MaskedCartPole-v1": {"steps": 400_000, "small": 6, "large": 24, "op": "split_neuron"},
    "Acrobot-v1": {"steps": 300_000, "small": 4, "large": 16, "op": "split_neuron"},
    "Pendulum-v1": {"steps": 300_000, "small": 4, "large": 32, "op": "split_neuron"},
}
ARMS = ("small", "signals", "plateau", "large")
# Growth is asked sooner than by default: a run has some fifty evaluations.
GROWTH = {"min_score_buffer": 10, "grow_cooldown": 4, "maturation_window": 10, "merge_check_interval": 10}


def run(env: str, arm: str, seeds: int, steps: int, dale: str = "off") -> tuple[np.ndarray, list[float]]:
    """Final scores [seeds], and the mean number of neurons at the end of each quarter."""
    import tensor_optix
    from tensor_optix.algorithms.presets import preset

    task = TASKS[env] | {"steps": steps}
    chosen = dict(preset("graph_ppo", env).config)
    config = chosen | {"hidden_sizes": [task["large"] if arm == "large" else task["small"]], "dale": dale}
    if arm in ("signals", "plateau"):
        config |= {"max_neurons": task["large"], "grow_op": task["op"], "grow_trigger": arm, **GROWTH}
    with tempfile.TemporaryDirectory() as folder:
        result = tensor_optix.train(
            env, "graph_ppo", seeds=seeds, total_steps=task["steps"], config=config, stop=False, tune=False,
            eval_every=min(steps // 50, 10_000), progress=False, run_dir=Path(folder) / "run",
        )  # fmt: skip
        rows = [json.loads(line) for line in (Path(folder) / "run" / "events.jsonl").read_text().splitlines()]
    n_in, n_out = _ends(env)
    if arm in ("small", "large"):
        return np.asarray(result.scores), [float(config["hidden_sizes"][0] + n_in + n_out)] * 4
    counted = [(row["env_steps"] / task["steps"], row["losses"]["neurons"]) for row in rows if "losses" in row]
    quarters = [np.mean([n for share, n in counted if abs(share - q) < 0.04]) for q in (0.25, 0.5, 0.75, 1.0)]
    return np.asarray(result.scores), [float(q) for q in quarters]


def _ends(env: str) -> tuple[int, int]:
    """Inputs, and outputs with the value's."""
    from tensor_optix.algorithms.graph_ppo import GraphPPO
    from tensor_optix.envs import make

    capacity = GraphPPO(make(env)).capacity
    return capacity.inputs, capacity.outputs


def main() -> None:
    from tensor_optix.loop import runtime
    from tensor_optix.statistics import bootstrap_interval, interquartile_mean

    parser = arguments(__doc__ or "", timeout_s=3600.0)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--arm", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--dale", default="off", choices=["off", "clamp", "softplus"], help="a law for all of them")
    parser.add_argument("--steps", type=int, default=None, help="instead of the task's own")
    parser.add_argument("--env", nargs="+", default=list(TASKS), choices=list(TASKS))
    args = parse(parser)
    runtime.start()
    rows = []
    for env in args.env:
        for arm in args.arm:
            steps = args.steps or TASKS[env]["steps"]
            scores, counts = run(env, arm, args.seeds, steps, args.dale)
            low, high = bootstrap_interval(scores, interquartile_mean)
            text = f"{float(interquartile_mean(scores)):.1f} [{low:.1f}, {high:.1f}]"
            shown = " / ".join(f"{count:.1f}" for count in counts)
            rows.append(Row(f"{env}, {steps:,} steps, {arm}: neurons {shown}", text, "return"))
            print(rows[-1].name, text, flush=True)
    emit("growing", rows, args.json)


if __name__ == "__main__":
    main()
