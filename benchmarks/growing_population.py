"""A population whose graphs grow, each as it likes, in one call: what that saves, and what becomes of the graphs.

64 members of graph PPO on CartPole that split neurons while they learn (settings of `benchmarks.growing`): one call of
`tensor_optix.train` with 64 seeds, against 64 calls with one seed each, one after the other. Of these a few are run,
half of them before the population and half behind it, and their median counts 64 times. All keep their runs on disk.

    without compiling   seconds in compiled training
    programs in cache   whole calls, where the compilation cache holds the program of one member
    an empty cache      whole calls, each compiling anew, as processes of their own would: from the first call alone

The population compiles its own program in both. The start of a process is in none of them.

Then every member: neurons and edges at its end, how much grew, was pruned (neurons and edges) and was merged, and its
score: the best policy by its own evaluations, 100 fresh episodes. `--out` draws the last graphs of twelve.

    python -m benchmarks.growing_population --out pictures --json
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._report import Row, arguments, emit, parse
from benchmarks.growing import GROWTH, TASKS

ENV = "CartPole-v1"
DRAWN = 12


def train(seeds: list[int], steps: int, trigger: str, run_dir: Path) -> Any:
    """The result of one call."""
    import tensor_optix
    from tensor_optix.algorithms.presets import preset

    task = TASKS[ENV]
    config = dict(preset("graph_ppo", ENV).config) | {
        "hidden_sizes": [task["small"]], "max_neurons": task["large"], "grow_op": task["op"], "grow_trigger": trigger,
    }  # fmt: skip
    return tensor_optix.train(
        ENV, "graph_ppo", seeds=seeds, total_steps=steps, config=config | GROWTH, stop=False, tune=False,
        eval_every=max(steps // 50, 1), progress=False, run_dir=run_dir,
    )  # fmt: skip


def learners_of(run_dir: Path) -> tuple[Any, Any]:
    """The algorithm, and the learners [M, ...] at the end of the run."""
    import jax

    from tensor_optix.finished import planned
    from tensor_optix.loop.run_dir import RunDir
    from tensor_optix.loop.session import Session

    directory = RunDir.read(run_dir)
    plan = planned(directory.manifest, directory.manifest["config"], None, None)
    session = Session(plan.program, plan.members, devices=jax.local_devices(), block=1)
    state = directory.load_checkpoint(session.template()).state
    return plan.program.algorithm, state["members"].learner


def saved(count: int, population: Any, singles: list[Any]) -> list[Row]:
    """One call against `count` calls; the first of `singles` found an empty cache."""
    warm = singles[1:] or singles
    run_s, wall_s = (float(np.median([getattr(one, name) for one in warm])) for name in ("run_s", "wall_s"))
    rows = [Row(f"{count} members in one call", population.env_steps_per_s / 1e3, "k steps/s")]
    for name, ours, theirs in (
        (f"without compiling (a call: median of {len(warm)})", population.run_s, run_s),
        (f"programs in cache (a call: median of {len(warm)})", population.wall_s, wall_s),
        ("an empty cache (a call: the first)", population.wall_s, singles[0].wall_s),
    ):
        title = f"one call with {count} members against {count} calls, {name}"
        rows.append(Row(title, ours, "s", count * theirs, ours / (count * theirs)))
    rows.append(Row(f"{count} members in one call: compiling", population.compile_s, "s", singles[0].compile_s,
                    population.compile_s / singles[0].compile_s))  # fmt: skip
    return rows


def table(population: Any, learners: Any) -> list[Row]:
    """What became of every member."""
    neurons = (np.asarray(learners.topology.role) != 0).sum(axis=1)
    edges = np.asarray(learners.topology.edges).sum(axis=(1, 2, 3))
    counts = np.asarray(learners.growing.growth.counts)
    rows = []
    for name, of in (("neurons", neurons), ("edges", edges), ("grown", counts[:, 0])):
        rows.append(Row(f"{name}: fewest / median / most", f"{of.min()} / {np.median(of):g} / {of.max()}", "a member"))
    for i, member in enumerate(population.members):
        grown, pruned, merged = counts[i]
        title = f"member {member.seed}: {neurons[i]} neurons, {edges[i]} edges; {grown} grown, {pruned} pruned, "
        rows.append(Row(f"{title}{merged} merged", member.score, "return"))
    return rows


def picture(algorithm: Any, learners: Any, population: Any, path: Path) -> None:
    """The last graphs of members that are evenly spread over the population, the smallest first."""
    import jax
    from matplotlib.figure import Figure

    from tensor_optix.neuroevo.graph.drawing import draw

    sizes = np.asarray(learners.topology.edges).sum(axis=(1, 2, 3))
    order = np.argsort(sizes, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(DRAWN, len(order))).astype(int)]
    columns = min(6, len(chosen))
    figure = Figure(figsize=(3.1 * columns, 3.1 * -(-len(chosen) // columns)), layout="constrained")
    axes = figure.subplots(-(-len(chosen) // columns), columns, squeeze=False).reshape(-1)
    for axis in axes:
        axis.set_axis_off()
    for axis, i in zip(axes, chosen, strict=False):
        learner = jax.tree.map(lambda x, i=i: np.asarray(x)[i], (learners.params, learners.topology))
        graph, member = algorithm.graph_of(*learner), population.members[i]
        title = f"member {member.seed}, return {member.score:.0f}\n"
        title += f"{(graph.topology.role != 0).sum()} neurons, {sizes[i]} edges"
        draw(graph, axis, title, legend=False)
        axis.title.set_fontsize(8.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    from tensor_optix.loop import runtime

    parser = arguments(__doc__ or "", timeout_s=3600.0)
    parser.add_argument("--members", type=int, default=64)
    parser.add_argument("--singles", type=int, default=8, help="calls with one member that are run")
    parser.add_argument("--steps", type=int, default=TASKS[ENV]["steps"], help="of each member")
    parser.add_argument("--trigger", default="plateau", choices=["signals", "plateau"])
    parser.add_argument("--out", type=Path, default=None, help="draw twelve members here")
    args = parse(parser)
    with tempfile.TemporaryDirectory() as folder:
        runtime.start(cache_dir=Path(folder) / "cache")
        singles: list[Any] = []

        def alone(seeds: range) -> None:
            singles.extend(train([i], args.steps, args.trigger, Path(folder) / f"single_{i}") for i in seeds)

        alone(range(args.singles // 2))
        runs = Path(folder) / "population"
        population = train(list(range(args.members)), args.steps, args.trigger, runs)
        alone(range(args.singles // 2, args.singles))
        algorithm, learners = learners_of(runs)
    rows = saved(args.members, population, singles) + table(population, learners)
    if args.out is not None:
        picture(algorithm, learners, population, args.out / "growing_population.png")
    notes = [f"{args.steps:,} steps a member, trigger {args.trigger}"]
    same = [one.members[0].score == population.members[i].score for i, one in enumerate(singles[: args.members])]
    notes.append(f"scores of members that ran alone, too: the same for {sum(same)} of {len(same)}")
    emit("growing_population", rows, args.json, notes)


if __name__ == "__main__":
    main()
