"""What fits an environment: how long a window should be."""

from __future__ import annotations

from typing import Any

# windows per episode length: an on-policy learner wants several whole episodes in one
_EPISODES = {"ppo": 4, "recurrent_ppo": 4, "sac": 1, "td3": 1, "dqn": 1, "rainbow": 1}
_PROBED = 5  # random episodes, where the environment does not tell its length
_PROBE_STEPS = 1000  # at which such an episode is given up
_UNKNOWN = 1000  # steps


def optimal_window_size(env: Any, algorithm: str = "default", min_steps: int = 512, max_steps: int = 8192) -> int:
    """Steps of a window: so many episodes of the environment's time limit as the algorithm wants, within the bounds.

    An environment without a time limit is probed with random actions, at most 5000 steps.
    """
    if not 1 <= min_steps <= max_steps:
        raise ValueError(f"min_steps and max_steps must be 1 <= min <= max, got {min_steps} and {max_steps}")
    episodes = _EPISODES.get(canonical(algorithm), 2)
    return max(min_steps, min(max_steps, int(episodes * _episode_length(env))))


def canonical(algorithm: str) -> str:
    """ "PPO", "TorchGaussianPPOAgent" -> "ppo"; "RecurrentPPO" -> "recurrent_ppo"; an unknown name in lower case."""
    name = algorithm.lower().replace("-", "").replace("_", "").removesuffix("agent")
    for prefix in ("torch", "flax", "tf"):
        name = name.removeprefix(prefix)
    known = {"gaussianppo": "ppo", "recurrentppo": "recurrent_ppo", "rainbowdqn": "rainbow", "tdd": "td3"}
    return known.get(name, name)


def algorithm_of(agent: Any) -> str:
    """The canonical name of an agent's algorithm, from its class."""
    return canonical(type(agent).__name__)


def _episode_length(env: Any) -> float:
    limit = getattr(getattr(env, "spec", None), "max_episode_steps", None) or getattr(env, "_max_episode_steps", None)
    if limit:
        return float(limit)
    if not hasattr(env, "action_space"):
        return _UNKNOWN
    env.action_space.seed(0)
    lengths = []
    for episode in range(_PROBED):
        env.reset(seed=episode)
        lengths.append(0)
        over = False
        while not over and lengths[-1] < _PROBE_STEPS:
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            over = terminated or truncated
            lengths[-1] += 1
    env.reset()
    return sum(lengths) / len(lengths)
