"""Does the online tuner find a known optimum while learning goes on and the evaluations are noisy?

Synthetic scores with one concave objective f of range 1 over the whole cube (mean over the D coordinates, so that each
of four says a quarter as much), noise of a given standard deviation in the same unit, and a drift:

    level  score_t = f(x_t) + drift_t + noise_t             drift: linear, or saturating 3 (1 - exp(-t / 40))
    rate   score_t = S_t + noise_t,  S_t = S_{t-1} + u_t (1 + f(x_t))    u_t: 1, or fading exp(-t / 200)

Starts are uniform in the middle 80 % of the cube; every second hyperparameter is on a log scale. A coordinate is found
if its mean centre over the last 10 cycles lies within 10 % of the range of the optimum. It is at a wrong bound if that
mean lies within 1 % of a bound while the optimum is more than 10 % away from it.

    python -m benchmarks.tuning --tuner spsa --json
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks._report import arguments, machine, parse

TARGET = 0.9
NEAR = 0.1
EVALUATIONS = (100, 200, 400)
DIMS = (1, 2, 4)


@dataclass(frozen=True)
class Case:
    name: str
    optimum: float
    move: float = 0.0  # how far the optimum travels, linearly over the run
    saturating: bool = False  # the drift, or the fading of the rate
    correlation: float = 0.0  # AR(1) coefficient of the noise
    flat: bool = False


CASES = (
    Case("interior", 0.3),
    Case("interior, saturating, AR(1)", 0.7, saturating=True, correlation=0.5),
    Case("at a bound", 1.0, saturating=True),
    Case("moving 0.3 to 0.7", 0.3, move=0.4),
    Case("flat", 0.5, saturating=True, flat=True),
)
NOISES = (0.1, 0.2)
KINDS = ("level", "rate")


def rows(seeds: int = 200, tuner: str = "spsa", first_seed: int = 0, **knobs: Any) -> list[dict[str, Any]]:
    """One row per figure; n counts seeds, and the interval is Wilson's 95 % over seeds. knobs: of the tuner."""
    from tensor_optix.optimizers import TUNERS

    config = TUNERS[tuner](**knobs)
    table: list[dict[str, Any]] = []
    for d in DIMS:
        grid = [(kind, noise, case) for kind in KINDS for noise in NOISES for case in CASES]
        found = {known: _found(_simulate(d, seeds, known, config, first_seed)) for known in (True, False)}
        for i, (kind, noise, case) in enumerate(grid):
            label = f"D={d} {kind}, noise {noise:.0%}, {case.name}"
            result = {key: value[i] for key, value in found[True].items()}
            if case.flat:
                table.append(_share(f"{label}: still within 10 % of the start", result["near"][-1], seeds))
                table.append(_row(f"{label}: rms movement", result["rms"], "of the range", n=seeds))
                continue
            for evaluations, share in zip(EVALUATIONS, result["near"], strict=True):
                table.append(_share(f"{label}: found after {evaluations}", share, seeds))
        searched = [i for i, (_, _, case) in enumerate(grid) if not case.flat]
        for known, name in ((True, "known"), (False, "unknown")):
            share = float(found[known]["near"][searched, -1].mean())
            table.append(_row(f"D={d} all searches, noise scale {name}: found after 400", share, "share", TARGET))
        wrong = float(found[True]["wrong"][searched].mean())
        table.append(_share(f"D={d} at a wrong bound", wrong, seeds * len(searched), reference=0.0))
    return table


def _simulate(d: int, seeds: int, known: bool, tuner: Any, first_seed: int) -> dict[str, Any]:
    """Centres [case, seed, evaluation, D], targets [case, evaluation], starts [case, seed, D] and the flat flags."""
    import jax
    import numpy as np

    grid = [(kind == "rate", noise, case) for kind in KINDS for noise in NOISES for case in CASES]
    columns = np.array(
        [(rate, sd, c.optimum, c.move, c.saturating, c.correlation, c.flat) for rate, sd, c in grid], np.float32
    )
    run = jax.jit(jax.vmap(jax.vmap(functools.partial(_run, tuner, d, known), in_axes=(None, 0)), in_axes=(0, None)))
    key = jax.random.key(d) if first_seed == 0 else jax.random.fold_in(jax.random.key(d), first_seed)
    centres, targets, starts = run(columns, jax.random.split(key, seeds))
    return {
        "centres": np.asarray(centres),
        "targets": np.asarray(targets)[:, 0],
        "starts": np.asarray(starts),
        "flat": columns[:, 6] > 0,
    }


def _run(tuner: Any, d: int, known: bool, column: Any, key: Any) -> tuple[Any, Any, Any]:
    """One seed of one case. Centres [evaluation, D], optimum [evaluation], start [D]."""
    import jax
    import jax.numpy as jnp

    from tensor_optix.core.search_space import from_unit, search_space, to_unit

    rate, sd, optimum, move, saturating, correlation, flat = column
    space = search_space({f"p{i}": (0.95, 0.999) if i % 2 == 0 else ("log", 1e-4, 3e-3) for i in range(d)})
    key_start, key_tuner, key_noise = jax.random.split(key, 3)
    start = jax.random.uniform(key_start, (d,), jnp.float32, 0.1, 0.9)
    last = EVALUATIONS[-1]
    radius = jnp.maximum(optimum, 1 - optimum)

    def period(carry: Any, inputs: Any) -> tuple[Any, Any]:
        state, total, noise = carry
        t, white = inputs
        state, x = tuner.suggest(state)
        x = to_unit(space, from_unit(space, x, {}))  # what the learner sees are values, not the cube
        target = optimum + move * t / last
        f = -(1 - flat) * jnp.mean(jnp.square((x - target) / radius))
        total = total + jnp.where(saturating > 0, jnp.exp(-t / 200), 1) * (1 + f)
        drift = jnp.where(saturating > 0, 3 * (1 - jnp.exp(-t / 40)), 5 * t / last)
        noise = correlation * noise + jnp.sqrt(1 - correlation**2) * white
        score = jnp.where(rate > 0, total, f + drift) + sd * noise
        state = tuner.observe(state, score, sd * jnp.float32(known), jnp.bool_(True))
        return (state, total, noise), (tuner.centre(state), target)

    state = tuner.init(space, start, key_tuner)
    inputs = (jnp.arange(last, dtype=jnp.float32), jax.random.normal(key_noise, (last,), jnp.float32))
    _, (centres, targets) = jax.lax.scan(period, (state, jnp.float32(0), jnp.float32(0)), inputs)
    return centres, targets, start


def _found(runs: dict[str, Any]) -> dict[str, Any]:
    """near [case, len(EVALUATIONS)], rms [case] and wrong [case]: shares over seeds and coordinates."""
    import numpy as np

    near = []
    for end in EVALUATIONS:
        final = runs["centres"][:, :, end - 40 : end].mean(axis=2)  # [case, seed, D]
        target = runs["targets"][:, end - 40 : end].mean(axis=1)[:, None, None]
        goal = np.where(runs["flat"][:, None, None], runs["starts"], target)
        near.append((np.abs(final - goal) <= NEAR).mean(axis=(1, 2)))
    rms = np.sqrt(np.square(final - goal).mean(axis=(1, 2)))
    wrong = ((final < 0.01) & (goal > NEAR)) | ((final > 0.99) & (goal < 1 - NEAR))
    return {"near": np.stack(near, axis=1), "rms": rms, "wrong": wrong.mean(axis=(1, 2))}


def _share(name: str, share: float, n: int, reference: float = TARGET) -> dict[str, Any]:
    low, high = _wilson(float(share), n)
    return _row(name, float(share), "share", reference, n=n, low=low, high=high)


def _row(name: str, value: float, unit: str, reference: float | None = None, **rest: Any) -> dict[str, Any]:
    row = {"name": name, "value": float(value), "unit": unit, "reference": reference, "ratio": None}
    row["ratio"] = float(value) / reference if reference else None
    return row | {"n": None, "low": None, "high": None} | rest


def _wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval (1927) of a share over n trials."""
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def main(show: Callable[[str], None] = print) -> None:
    parser = arguments(__doc__ or "", timeout_s=1800.0)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first-seed", type=int, default=0, help="another number: other seeds, none in common")
    parser.add_argument("--tuner", default="spsa", choices=("spsa", "momentum", "backoff", "pbt", "adaptive"))
    args = parse(parser)
    table = rows(args.seeds, args.tuner, args.first_seed)
    for row in table:
        interval = "" if row["low"] is None else f"  [{row['low']:.2f}, {row['high']:.2f}]"
        show(f"  {row['name']:70}  {row['value']:.3f} {row['unit']}{interval}")
    if args.json:
        show(json.dumps({"benchmark": "tuning", "tuner": args.tuner, "machine": machine(), "rows": table}))


if __name__ == "__main__":
    main()
