"""Runs that are there already: read a result back, play its best policy, plan what it was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tensor_optix.config import ConfigError, from_mapping
from tensor_optix.loop import runtime
from tensor_optix.loop.run_dir import ENSEMBLE, RunDir
from tensor_optix.plan import Plan, make_plan
from tensor_optix.results import TrainResult

NETWORKS = "networks"  # in the manifest: the places that the user filled


def load_run(run_dir: str | Path, env: Any = None, networks: Mapping[str, Any] | None = None) -> TrainResult:
    """The result of a finished run, with its best policy. env, networks: as given to `train`, if they were objects."""
    import jax

    from tensor_optix.evolution.ensemble_policy import Ensemble, EnsembleParams
    from tensor_optix.policy import Policy, from_named_arrays

    runtime.start()
    directory = RunDir.read(run_dir)
    result = TrainResult.from_payload(*directory.load_result())
    result.run_dir = str(run_dir)
    plan = planned(directory.manifest, directory.manifest["config"], env, networks)
    arrays, _ = directory.load_policy()
    algorithm = plan.program.algorithm
    shapes = _policy_shapes(plan)
    result.policy = Policy(algorithm, from_named_arrays(shapes, arrays))
    if result.max_spawns:
        arrays, _ = directory.load_policy(ENSEMBLE)
        size = result.population
        stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape), x.dtype), shapes)
        template = jax.eval_shape(EnsembleParams, stacked, jax.ShapeDtypeStruct((size,), np.float32))
        result.ensemble = Policy(Ensemble(algorithm, size), from_named_arrays(template, arrays))
    return result


def evaluate_run(
    run_dir: str | Path,
    *,
    episodes: int = 100,
    seed: int = 0,
    env: Any = None,
    networks: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Score a run's best policy on fresh episodes.

    Returns env, algorithm, seed of the training, episodes, score and its 95 % bootstrap interval, as JSON values.
    """
    import jax

    from tensor_optix.statistics import bootstrap_interval

    if episodes < 1:
        raise ConfigError(f"episodes must be at least 1, got {episodes}")
    result = load_run(run_dir, env, networks)
    plan = make_plan(from_mapping(result.config), env, networks)
    rollouts = jax.jit(plan.program.rollouts, static_argnums=2)
    assert result.policy is not None
    returns = np.asarray(rollouts(result.policy.params, jax.random.key(seed), episodes).returns, np.float64)
    return {
        "env": result.env,
        "algorithm": result.algorithm,
        "seed": result.best.seed,
        "episodes": episodes,
        "score": float(returns.mean()),
        "score_interval": list(bootstrap_interval(returns)),
    }


def planned(manifest: Mapping[str, Any], settings: Mapping[str, Any], env: Any, networks: Any) -> Plan:
    """The plan of a run that is there already. ConfigError unless the networks it was started with are given."""
    before, now = list(manifest.get(NETWORKS, [])), sorted(networks or {})
    if before != now:
        raise ConfigError(
            f"the run was started with networks of your own for {', '.join(before) or 'nothing'}, got some for "
            f"{', '.join(now) or 'nothing'}: give the same again as networks=, from Python"
        )
    return make_plan(from_mapping(settings), env, networks)


def _policy_shapes(plan: Plan) -> Any:
    import jax
    import jax.numpy as jnp

    algorithm = plan.program.algorithm
    hyper = {name: jnp.float32(value) for name, value in plan.members[0].hyper.items()}
    return jax.eval_shape(lambda key: algorithm.policy(algorithm.init(key, hyper)), jax.random.key(0))
