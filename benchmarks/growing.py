"""Graphs that grow while they learn, against fixed ones of the size they start from and of the size they may reach.

Graph PPO, the same steps for all; `small` hidden neurons at the start, room for `large`. Growing splits neurons:
"signals", where all three signals agree, "plateau", where the score does not rise. Scores are of the best policy by its
own evaluations, 100 fresh episodes, and of the evaluations in the last quarter of the run, whatever was best:
interquartile means over seeds with 95 % intervals. Neurons are counted at the end of each quarter.

    python -m benchmarks.growing --json
"""

from __future__ import annotations

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


def run(env: str, arm: str, seeds: int, steps: int, dale: str = "off") -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Final scores [seeds], mean scores in the last quarter [seeds], the mean number of neurons after each quarter."""
    import tensor_optix
    from tensor_optix.algorithms.presets import preset

    task = TASKS[env] | {"steps": steps}
    chosen = dict(preset("graph_ppo", env).config)
    config = chosen | {"hidden_sizes": [task["large"] if arm == "large" else task["small"]], "dale": dale}
    if arm in ("signals", "plateau"):
        config |= {"max_neurons": task["large"], "grow_op": task["op"], "grow_trigger": arm, **GROWTH}
    result = tensor_optix.train(
        env, "graph_ppo", seeds=seeds, total_steps=task["steps"], config=config, stop=False, tune=False,
        eval_every=min(steps // 50, 10_000), progress=False,
    )  # fmt: skip
    curves = [member.curve for member in result.members]
    late = np.asarray([curve.score[curve.env_steps > 0.75 * task["steps"]].mean() for curve in curves])
    n_in, n_out = _ends(env)
    if arm in ("small", "large"):
        return np.asarray(result.scores), late, [float(config["hidden_sizes"][0] + n_in + n_out)] * 4
    ends = [(curve, np.searchsorted(curve.env_steps, np.arange(1, 5) * task["steps"] / 4)) for curve in curves]
    counts = [curve.losses["neurons"][np.minimum(at, len(curve) - 1)] for curve, at in ends]
    return np.asarray(result.scores), late, [float(count) for count in np.mean(counts, axis=0)]


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
            scores, late, counts = run(env, arm, args.seeds, steps, args.dale)
            shown = " / ".join(f"{count:.1f}" for count in counts)
            for what, values in (("best", scores), ("last quarter", late)):
                low, high = bootstrap_interval(values, interquartile_mean)
                text = f"{float(interquartile_mean(values)):.1f} [{low:.1f}, {high:.1f}]"
                rows.append(Row(f"{env}, {steps:,} steps, {arm}, {what}: neurons {shown}", text, "return"))
                print(rows[-1].name, text, flush=True)
    emit("growing", rows, args.json)


if __name__ == "__main__":
    main()
