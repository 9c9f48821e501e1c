"""Asking an agent for the actions of several environments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tensor_optix.pipeline.conversion import act_batch_function, act_function, as_action

# (observations of all environments, the environments that will step, of all whether an episode begins)
# -> (what is recorded, what is sent) for each that will step
Choose = Callable[[Sequence[np.ndarray], Sequence[int], Sequence[bool]], list[tuple[Any, Any]]]


class Memory:
    """What a recurrent agent remembers of the environments of one pipeline; another pipeline has its own.

    Such an agent has `act_recurrent(observations [N, ...], hidden, starts [N] bool, deterministic) -> (N actions,
    hidden [N, C])`: what is remembered after the actions from what was before them. None is as good as zeros, and the
    agent forgets a row where an episode starts.
    """

    def __init__(self) -> None:
        self.before: np.ndarray | None = None  # [N, C], before the newest actions
        self._hidden: np.ndarray | None = None  # [N, C]
        self._owner: Any = None  # the agent that remembers; None: the next one that acts

    def of(self, agent: Any) -> np.ndarray | None:
        """[N, C]; None if `agent` remembers nothing."""
        return self._hidden if self._owner is None or self._owner is agent else None

    def act(
        self, agent: Any, deterministic: bool, obs: Sequence[np.ndarray], live: Sequence[int], begins: Sequence[bool]
    ) -> Any:
        """N actions; environments that will not step remember what they did."""
        self.before = before = self.of(agent)
        actions, after = agent.act_recurrent(np.stack(obs), before, np.asarray(begins, bool), deterministic)
        if len(live) < len(obs):
            waits = np.ones(len(obs), bool)
            waits[list(live)] = False
            after = np.where(waits[:, None], np.zeros_like(after) if before is None else before, after)
        self._hidden, self._owner = after, agent
        return actions

    def state(self) -> Any:
        """An array or None."""
        return None if self._hidden is None else np.array(self._hidden)

    def load(self, state: Any) -> None:
        """Put back what `state` gave, for the next agent that acts."""
        self._hidden, self._owner = None if state is None else np.asarray(state, np.float32), None


def is_recurrent(agent: Any) -> bool:
    """It remembers what it saw; see `Memory`."""
    return hasattr(agent, "act_recurrent")


def choose_alone(
    agent: Any,
    deterministic: bool,
    memory: Memory,
    space: Any,
    obs: Sequence[np.ndarray],
    live: Sequence[int],
    begins: Sequence[bool],
) -> list:
    """The pairs of `Choose`, from the agent's method for one observation."""
    if is_recurrent(agent):
        return choose(agent, deterministic, memory, space, obs, live, begins)
    act = act_function(agent, deterministic)
    return [as_action(act(obs[i]), space) for i in live]


def choose(
    agent: Any,
    deterministic: bool,
    memory: Memory,
    space: Any,
    obs: Sequence[np.ndarray],
    live: Sequence[int],
    begins: Sequence[bool],
) -> list:
    """The pairs of `Choose`; an agent's method for many observations is given all [N, ...], so shapes stay constant."""
    if is_recurrent(agent):
        actions = memory.act(agent, deterministic, obs, live, begins)
    else:
        batch = act_batch_function(agent, deterministic)
        if batch is None:
            return choose_alone(agent, deterministic, memory, space, obs, live, begins)
        actions = batch(np.stack(obs))
    if hasattr(actions, "__array__"):
        actions = np.asarray(actions)
        if actions.ndim == 1 and actions.dtype.kind in "iu":
            actions = actions.tolist()  # Python's own numbers are the fast ones one by one
    if len(actions) != len(obs):
        raise ValueError(f"act_batch gave {len(actions)} actions for {len(obs)} environments")
    return [as_action(actions[i], space) for i in live]
