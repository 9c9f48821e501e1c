"""Does autonomy pay? Tuning while training against the same algorithm with fixed hyperparameters, same total steps.

PPO on eight environments, 30 seeds. Each method gets the same training steps for a seed in all: a method of one
learner has them alone, a population of four shares them out. Everybody is evaluated equally often for each of its
steps, so that evaluations are equal too; nobody stops early but `spawn`, with its last variant. A seed's score is that
of its best policy by its own evaluations, in 100 fresh episodes of the deterministic policy; of `plain` its last one.

    plain       hyperparameters as given, and the policy that is there at the end: the algorithm without the loop
    fixed       hyperparameters as given, the best policy kept
    spsa        one learner, SPSA on all that PPO names (learning rate, clip range, entropy coefficient, discount)
    rate        one learner, SPSA on the learning rate alone: the default
    adaptive    one learner, the tuner that chooses among tuners
    shared      four learners, one vector of hyperparameters, SPSA's slope averaged over them
    pbt         four learners from random hyperparameters, exploit and explore
    search      four learners from random hyperparameters, nothing else (random search)
    spawn       one learner, tuned as `rate`, and up to four variants of its best policy, one after the other

They start from the hyperparameters of the library's presets ("given"), or from a random point of PPO's search space,
another for each seed ("random"): what somebody has whose problem nobody has tuned for.

Probability of improvement: of a seed of the method against a seed of `fixed` (what tuning brings), and against one of
`plain` (what the loop brings in all), ties count half; the mean over environments, with a 95 % bootstrap interval over
seeds within environments (Agarwal et al. 2021).

    python -m benchmarks.autonomy --out pays --json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._report import Row, arguments, emit, parse

STEPS = {  # training steps of one seed in all
    "CartPole-v1": 30_000,
    "Acrobot-v1": 160_000,
    "Pendulum-v1": 160_000,
    "MountainCarContinuous-v0": 60_000,
    "Catch-bsuite": 20_000,
    "FourRooms-misc": 30_000,
    "PointRobot-misc": 100_000,
    "Reacher-misc": 160_000,
}
POPULATION = 4
ALL = ["learning_rate", "gamma", "clip_range", "entropy_coef"]
METHODS: dict[str, dict[str, Any]] = {
    "plain": {"tune": False, "eval_episodes": 100},
    "fixed": {"tune": False},
    "spsa": {"tune": ALL},
    "rate": {},
    "adaptive": {"tune": ALL, "tuner": "adaptive"},
    "shared": {"population": POPULATION, "exchange": {"rule": "spsa"}},
    "pbt": {"population": POPULATION, "exchange": {"rule": "pbt", "every": 1, "quantile": 0.25}},
    "search": {"population": POPULATION, "exchange": {"rule": "pbt", "every": 10**6}},
    "spawn": {"max_spawns": POPULATION, "stop": True},
}
BASELINES = ("plain", "fixed")
STARTS = ("given", "random")
RESAMPLES = 2000


def run(env: str, method: str, start: str, seeds: int, share: float) -> list[float]:
    """Scores [seeds] of one method on one environment."""
    import tensor_optix
    from tensor_optix import RunConfig
    from tensor_optix.loop import runtime
    from tensor_optix.plan import make_plan

    runtime.start()
    settings = dict(METHODS[method])
    steps = int(STEPS[env] * share) // settings.get("population", 1)
    members: dict[str, Any] = {"seeds": seeds}
    if start == "random":
        space = make_plan(RunConfig(env=env, tune=ALL)).space
        rng = np.random.default_rng(0)
        members = {"seeds": [0], "variants": [_drawn(space, rng) for _ in range(seeds)]}
    common = {"eval_every": 2048, "eval_episodes": 16, "stop": False, "progress": False, "total_steps": steps}
    result = tensor_optix.train(env, **members, **(common | settings))
    if method == "plain":  # the end of the budget is evaluated
        return [float(member.curve.score[-1]) for member in result.members]
    return [float(score) for score in result.scores]


def _drawn(space: Any, rng: np.random.Generator) -> dict[str, float]:
    """A point of the search space, uniform on each hyperparameter's own scale."""
    values = {}
    for name, parameter in space.entries:
        x = rng.uniform()
        log = parameter.low * (parameter.high / parameter.low) ** x if parameter.log else 0.0
        values[name] = float(log if parameter.log else parameter.low + x * (parameter.high - parameter.low))
    return values


def improvement(method: np.ndarray, fixed: np.ndarray) -> float:
    """P(a score of `method` > one of `fixed`), ties half."""
    difference = method[:, None] - fixed[None, :]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def with_interval(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float, float]:
    """Mean of `improvement` over environments and its 95 % interval: seeds resampled within environments."""
    rng = np.random.default_rng(0)
    value = float(np.mean([improvement(a, b) for a, b in pairs]))
    drawn = [
        np.mean([improvement(rng.choice(a, a.size), rng.choice(b, b.size)) for a, b in pairs]) for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return value, float(low), float(high)


def table(scores: dict[str, dict[str, dict[str, list[float]]]]) -> list[Row]:
    """Rows of start -> method -> environment -> scores."""
    from tensor_optix.statistics import bootstrap_interval, interquartile_mean

    rows = []
    for start, methods in scores.items():
        for method, envs in methods.items():
            for env, values in envs.items():
                low, high = bootstrap_interval(np.asarray(values), interquartile_mean)
                text = f"{float(interquartile_mean(np.asarray(values))):.1f} [{low:.1f}, {high:.1f}]"
                rows.append(Row(f"{start}, {env}, {method}: IQM of {len(values)}", text, "return"))
        for against in BASELINES:
            for method, envs in methods.items():
                if method in BASELINES[: BASELINES.index(against) + 1] or against not in methods:
                    continue
                pairs = {env: (np.asarray(envs[env]), np.asarray(methods[against][env])) for env in envs}
                name = f"{method} against {against}: better"
                for env, pair in pairs.items():
                    value, low, high = with_interval([pair])
                    rows.append(Row(f"{start}, {env}, {name}", f"{value:.2f} [{low:.2f}, {high:.2f}]", "P"))
                value, low, high = with_interval(list(pairs.values()))
                text = f"{value:.3f} [{low:.3f}, {high:.3f}]"
                rows.append(Row(f"{start}, all {len(pairs)} environments, {name}", text, "P"))
    return rows


def plot(scores: dict[str, dict[str, dict[str, list[float]]]], path: Path) -> None:
    """One panel a start: the probability of improvement of each method, by environment and in all."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 0.42 * (len(STEPS) + 1) * len(scores) + 2), layout="constrained")
    axes = figure.subplots(len(scores), 1, squeeze=False, sharex=True)[:, 0]
    for axis, (start, methods) in zip(axes, scores.items(), strict=True):
        compared = [name for name in methods if name not in BASELINES]
        envs = list(methods["fixed"])
        for i, method in enumerate(compared):
            pairs = [(np.asarray(methods[method][env]), np.asarray(methods["fixed"][env])) for env in envs]
            rows = [with_interval([pair]) for pair in pairs] + [with_interval(pairs)]
            values, low, high = np.asarray(rows).T
            y = np.arange(len(rows)) + 0.7 * ((i + 0.5) / len(compared) - 0.5)
            axis.errorbar(values, y, xerr=[values - low, high - values], fmt="o", ms=4, lw=1.2, label=method)
        axis.axvline(0.5, color="#9aa7b8", lw=1)
        axis.axhline(len(envs) - 0.5, color="#c3c9d1", lw=0.8)
        axis.set_yticks(range(len(envs) + 1), [*envs, "all"])
        axis.invert_yaxis()
        axis.set_title(f"start: {start} hyperparameters", loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("probability that a seed beats one with fixed hyperparameters, 95 % interval")
    axes[0].legend(fontsize=8, frameon=False, ncols=len(METHODS), loc="lower center", bbox_to_anchor=(0.5, 1.08))
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = arguments(__doc__ or "", timeout_s=36_000.0)
    parser.add_argument("--env", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--method", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--start", nargs="+", default=list(STARTS), choices=STARTS)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--share", type=float, default=1.0, help="share of the steps, for a first look")
    parser.add_argument("--out", type=Path, default=None, help="keep scores here, use those that are there, draw them")
    args = parse(parser)
    scores: dict[str, dict[str, dict[str, list[float]]]] = {}
    for start in args.start:
        for env in args.env:
            for method in args.method:
                kept = None if args.out is None else args.out / f"{start}_{env}_{method}_{args.seeds}_{args.share}.json"
                if kept is not None and kept.is_file():
                    values = json.loads(kept.read_text())
                else:
                    values = run(env, method, start, args.seeds, args.share)
                    print(f"{start} {env} {method}: {np.mean(values):.1f}", flush=True)
                    if kept is not None:
                        kept.parent.mkdir(parents=True, exist_ok=True)
                        kept.write_text(json.dumps(values))
                scores.setdefault(start, {}).setdefault(method, {})[env] = values
    if args.out is not None:
        plot(scores, args.out / "autonomy.png")
    emit("autonomy", table(scores), args.json)


if __name__ == "__main__":
    main()
