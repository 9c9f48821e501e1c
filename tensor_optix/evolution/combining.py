"""One action from several agents: whole numbers are chosen among, others are averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tensor_optix.core.base_agent import BaseAgent


def act(
    agents: Sequence[BaseAgent],
    weights: Sequence[float],
    observation: Any,
    deterministic: bool,
    rng: np.random.Generator,
) -> Any:
    """The ensemble's action for one observation, as an environment takes it.

    A choice among actions: with `deterministic` the likeliest of the weighted mean of the members' `action_probs` (of
    their votes, where a member has none); else a draw from that mean, made by drawing a member and letting it act.
    Anything else: the weighted mean of the members' actions, which lies in a Box if they do.

    Args:
        agents: at least one.
        weights: at least 0 each; all 0 counts as all equal.
        deterministic: members act by `act_deterministic`, where they have it.
        rng: draws members.

    Raises:
        TypeError: some members choose, others give continuous actions; or a member gives neither a number nor floats.
        ValueError: no agents, or members differ in the number or shape of actions.
    """
    agents, shares = _weighing(agents, weights)
    if len(agents) == 1:
        return _method(agents[0], deterministic)(observation)
    if all(_has_probs(agent) for agent in agents):
        if deterministic:
            return int(np.argmax(_mean_probs(agents, shares, observation)))
        return agents[_draw(rng, shares)].act(observation)
    return _merged([np.asarray(_method(agent, deterministic)(observation)) for agent in agents], agents, shares, rng,
                   deterministic)  # fmt: skip


def act_batch(
    agents: Sequence[BaseAgent],
    weights: Sequence[float],
    observations: Any,
    deterministic: bool,
    rng: np.random.Generator,
) -> np.ndarray:
    """As `act` for N observations [N, ...], each drawn on its own: integers [N] or floats [N, ...]."""
    agents, shares = _weighing(agents, weights)
    count = len(observations)
    if deterministic and len(agents) > 1 and all(_has_probs(agent) for agent in agents):
        return np.array([int(np.argmax(_mean_probs(agents, shares, obs))) for obs in observations], np.int64)
    rows = [_rows(agent, observations, deterministic) for agent in agents]
    if len(agents) == 1:
        return rows[0]
    merged = [_merged([row[i] for row in rows], agents, shares, rng, deterministic) for i in range(count)]
    return np.asarray(merged)


def _weighing(agents: Sequence[BaseAgent], weights: Sequence[float]) -> tuple[list[BaseAgent], np.ndarray]:
    """Those that weigh anything, and their shares."""
    if not agents:
        raise ValueError("the ensemble has no agents: add one with add_agent")
    array = np.asarray(weights, np.float64)
    if not array.sum() > 0:
        array = np.ones(len(agents))
    chosen = np.flatnonzero(array).tolist()
    return [agents[i] for i in chosen], array[chosen] / array[chosen].sum()


def _merged(
    actions: Sequence[np.ndarray],
    agents: Sequence[BaseAgent],
    shares: np.ndarray,
    rng: np.random.Generator,
    deterministic: bool,
) -> Any:
    kinds = [_kind(action, agent) for action, agent in zip(actions, agents, strict=True)]
    if len(set(kinds)) > 1:
        named = ", ".join(f"{type(a).__name__} ({kind})" for a, kind in zip(agents, kinds, strict=True))
        raise TypeError(f"an ensemble needs members with one kind of action, got {named}: keep them in two ensembles")
    if kinds[0] == "discrete":
        choices = [int(action.reshape(())) for action in actions]
        if not deterministic:
            return choices[_draw(rng, shares)]
        votes = {choice: shares[np.equal(choices, choice)].sum() for choice in choices}
        return min(votes, key=lambda choice: (-votes[choice], choice))
    if len({action.shape for action in actions}) > 1:
        raise ValueError(f"the members' actions differ in shape: {[list(a.shape) for a in actions]}")
    mean = np.tensordot(shares, np.stack(actions).astype(np.float64), axes=1)
    return mean.astype(actions[0].dtype) if actions[0].ndim else float(mean)


def _kind(action: np.ndarray, agent: BaseAgent) -> str:
    if action.dtype.kind in "iub" and action.size == 1:
        return "discrete"
    if action.dtype.kind == "f":
        return "continuous"
    raise TypeError(
        f"{type(agent).__name__} acted with {action!r}: an ensemble takes one whole number, or floats to be averaged"
    )


def _mean_probs(agents: Sequence[BaseAgent], shares: np.ndarray, observation: Any) -> np.ndarray:
    probs = [np.asarray(agent.action_probs(observation), np.float64) for agent in agents]  # type: ignore[attr-defined]
    if len({p.shape for p in probs}) > 1:
        raise ValueError(f"the members choose among different numbers of actions: {[p.size for p in probs]}")
    return np.tensordot(shares, np.stack(probs), axes=1)


def _has_probs(agent: BaseAgent) -> bool:
    return hasattr(agent, "action_probs")


def _draw(rng: np.random.Generator, shares: np.ndarray) -> int:
    return min(int(np.searchsorted(np.cumsum(shares), rng.random(), side="right")), len(shares) - 1)


def _method(agent: BaseAgent, deterministic: bool) -> Any:
    return getattr(agent, "act_deterministic", agent.act) if deterministic else agent.act


def _rows(agent: BaseAgent, observations: Any, deterministic: bool) -> np.ndarray:
    """The agent's N actions, by its method for many observations if it has one that acts so."""
    name = "act_batch_deterministic" if deterministic else "act_batch"
    if not hasattr(agent, name) and deterministic and not hasattr(agent, "act_deterministic"):
        name = "act_batch"
    if hasattr(agent, name):
        return np.asarray(getattr(agent, name)(observations))
    return np.asarray([_method(agent, deterministic)(obs) for obs in observations])
