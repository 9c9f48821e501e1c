"""What fits an environment: `make_agent` for an agent by name or by the environment alone, and how long a window is."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tensor_optix.config_checks import unknown
from tensor_optix.core.base_agent import BaseAgent
from tensor_optix.core.types import HyperparamSet
from tensor_optix.default_networks import ACTOR_GAIN, CRITIC_GAIN, keras_mlp, torch_mlp
from tensor_optix.host_config import AGENTS, FRAMEWORKS, HIDDEN_SIZES, fitting_agents

# windows per episode length: an on-policy learner wants several whole episodes in one
_EPISODES = {"ppo": 4, "recurrent_ppo": 4, "sac": 1, "td3": 1, "dqn": 1, "rainbow": 1}
_PROBED = 5  # random episodes, where the environment does not tell its length
_PROBE_STEPS = 1000  # at which such an episode is given up
_UNKNOWN = 1000  # steps
_ADAM_EPS = 1e-5


class Spaces(NamedTuple):
    """What an agent must fit."""

    obs_shape: tuple[int, ...]
    n_actions: int  # 0: the actions are continuous
    low: np.ndarray  # [D], of continuous actions
    high: np.ndarray

    @property
    def actions(self) -> str:
        """ "discrete" or "continuous"."""
        return "discrete" if self.n_actions else "continuous"


class UnsupportedSpaceError(NotImplementedError):
    """No agent takes such a space; the message is one sentence."""


def make_agent(
    algorithm_or_env: Any,
    env: Any = None,
    framework: str = "jax",
    deterministic: bool = False,
    hidden_sizes: Sequence[int] | None = None,
    hyperparams: Mapping[str, Any] | HyperparamSet | None = None,
    device: str = "auto",
    neuroevo: bool = False,
    graph_in: int | None = None,
    graph_hidden: int = 8,
    graph_out: int | None = None,
    hebbian_lr: float = 1e-3,
    hebbian_decay: float = 1e-4,
    grow_cooldown: int = 20,
    *,
    seed: int = 0,
) -> BaseAgent:
    """An agent with fresh weights that fits an environment: `make_agent("SAC", env)` or `make_agent(env)`.

    Args:
        algorithm_or_env: "PPO", "RecurrentPPO", "DQN", "Rainbow", "SAC" or "TD3" in any case, or the name of an
            agent's class, whose framework then counts. Or the environment: then it is PPO for a choice among actions
            and SAC for continuous ones (TD3 with `deterministic`).
        env: a Gymnasium environment (also a vector of them) or its id. Only its spaces are read.
        framework: "jax", "torch" or "tf".
        deterministic: the policy must have no randomness of its own.
        hidden_sizes: widths of the hidden layers; by default those that the algorithm is used with.
        hyperparams: any of the agent's, over its defaults.
        device: for PyTorch, "auto" or a device's name. JAX and TensorFlow use the device that they find.
        neuroevo: the policy is a growing graph of neurons (`GraphAgent`), which learns by PPO whatever the algorithm
            that is named; `Optimizer` calls what makes it grow. In JAX, for observations that are vectors.
        graph_in: neurons that take the observation in; by default as many as it has numbers, at most 16. Fewer than
            these are a linear layer behind the inputs.
        graph_hidden: GRU neurons at the start.
        graph_out: output neurons, one for each action and the value's.
        hebbian_lr, hebbian_decay: of the `HebbianHook`.
        grow_cooldown: evaluations between two growths.
        seed: of weights, acting and drawing.

    Raises:
        ValueError: an unknown algorithm or framework, or an algorithm that does not fit the environment's actions; the
            message names what does. An option of the graph without neuroevo=True.
        TypeError: an option of the graph is no number.
        NotImplementedError: spaces that no agent takes, an algorithm that the framework has no agent for yet.
        ImportError: the framework is missing; the message has the command.
    """
    if env is None and not (isinstance(algorithm_or_env, str) and _is_algorithm(algorithm_or_env)):
        name, env = None, algorithm_or_env
    else:
        name = algorithm_or_env
    if env is None:
        raise TypeError(f"make_agent({name!r}) has no environment to fit: make_agent({name!r}, env)")
    algorithm, framework = _named(name, framework)
    options = {
        "graph_in": graph_in, "graph_hidden": graph_hidden, "graph_out": graph_out, "hebbian_lr": hebbian_lr,
        "hebbian_decay": hebbian_decay, "grow_cooldown": grow_cooldown,
    }  # fmt: skip
    if not neuroevo:
        _check_no_graph(options)
    spaces, what = _spaces_of(env)
    if neuroevo:
        if deterministic or hidden_sizes is not None:
            raise ValueError(
                "neuroevo=True has no deterministic policy and no hidden_sizes: leave them out, graph_hidden says how "
                "many neurons to start with"
            )
        return _graph_agent(framework, spaces, hyperparams, device, seed, options)
    fitting = fitting_agents(framework, spaces.actions)
    algorithm = algorithm or _by_actions(spaces.actions, deterministic)
    _check_fit(algorithm, framework, spaces.actions, what, deterministic)
    params = hyperparams.params if isinstance(hyperparams, HyperparamSet) else dict(hyperparams or {})
    widths = tuple(hidden_sizes if hidden_sizes is not None else HIDDEN_SIZES.get(algorithm, (64, 64)))
    return built_agent(fitting[algorithm], spaces, params, widths, seed, device, what)


def _check_no_graph(options: Mapping[str, Any]) -> None:
    """ValueError unless the options of the graph are left out, or as if they were."""
    defaults = inspect.signature(make_agent).parameters
    given = [f"{name}={value!r}" for name, value in options.items() if value != defaults[name].default]
    if given:
        raise ValueError(
            f"without neuroevo=True there is no graph, got {', '.join(given)}: expected neuroevo=True with it, or "
            "neither"
        )


def _graph_agent(
    framework: str,
    spaces: Spaces,
    hyperparams: Mapping[str, Any] | HyperparamSet | None,
    device: str,
    seed: int,
    options: Mapping[str, Any],
) -> BaseAgent:
    """That of `graph_agents`, if it takes such spaces."""
    from tensor_optix.graph_agents import graph_agent

    if framework != "jax" or len(spaces.obs_shape) != 1:
        raise UnsupportedSpaceError(
            f"neuroevo=True makes an agent in JAX for observations that are vectors, got framework {framework!r} "
            f"and observations {list(spaces.obs_shape)}"
        )
    width = spaces.n_actions or len(spaces.low)
    agent = graph_agent(
        spaces.obs_shape[0], width, not spaces.n_actions, hyperparams, device=device, seed=seed, **options
    )
    if not spaces.n_actions:
        agent.set_action_bounds(spaces.low, spaces.high)
    return agent


def built_agent(
    name: str,
    spaces: Spaces,
    params: Mapping[str, Any],
    hidden_sizes: Sequence[int],
    seed: int,
    device: str = "auto",
    env: str = "the environment",
) -> Any:
    """The agent of class `name` for `spaces`, with default networks. UnsupportedSpaceError for images without a CNN."""
    framework = AGENTS[name].framework
    if framework != "jax":
        agent = _network_agent(name, framework, spaces, params, hidden_sizes, seed, device, env)
    elif device != "auto" and device != _jax_platform():
        raise ValueError(f"device must be 'auto' or what JAX found, {_jax_platform()!r}, got {device!r}")
    else:
        kind = getattr(importlib.import_module(AGENTS[name].module), name)
        width = spaces.n_actions or len(spaces.low)
        agent = kind(spaces.obs_shape, width, HyperparamSet(dict(params)), hidden_sizes=tuple(hidden_sizes), seed=seed)
    if not spaces.n_actions:
        agent.set_action_bounds(spaces.low, spaces.high)
    return agent


def spaces_of(env: Any, what: str) -> Spaces:
    """Those of one environment, or of one in a vector. UnsupportedSpaceError, one sentence, if no agent takes them."""
    observation = getattr(env, "single_observation_space", None) or env.observation_space
    action = getattr(env, "single_action_space", None) or env.action_space
    shape = getattr(observation, "shape", None)
    if not hasattr(observation, "low") or shape is None or len(shape) not in (1, 3):
        raise UnsupportedSpaceError(
            f"{what} has observations of {observation}, and agents made by name take a 1-D Box (or, in JAX, images "
            "[H, W, C]): put gymnasium.wrappers.FlattenObservation around it"
        )
    if hasattr(action, "n") and getattr(action, "shape", None) == () and int(action.start) == 0:
        return Spaces(tuple(shape), int(action.n), np.zeros(0), np.zeros(0))
    vector = hasattr(action, "low") and len(action.shape) == 1 and np.issubdtype(action.dtype, np.floating)
    if not vector:
        raise UnsupportedSpaceError(
            f"{what} has actions of {action}, and agents made by name take Discrete(n) counted from 0 or a Box [n] of "
            f"floats, not {type(action).__name__}: put a wrapper that translates around it "
            "(gymnasium.wrappers.TransformAction)"
        )
    return Spaces(tuple(shape), 0, np.asarray(action.low), np.asarray(action.high))


# -- which agent -------------------------------------------------------------------------------------------------


def _is_algorithm(name: str) -> bool:
    return name in AGENTS or canonical(name) in _EPISODES


def _named(name: Any, framework: str) -> tuple[str | None, str]:
    """Algorithm (None: to be found) and framework. ValueError for unknown names and contradictions."""
    if framework not in FRAMEWORKS:
        raise ValueError(unknown("framework", str(framework), FRAMEWORKS))
    if name is None:
        return None, framework
    algorithms = sorted({agent.algorithm for agent in AGENTS.values()})
    if not isinstance(name, str):
        raise TypeError(f"the algorithm must be a name such as 'PPO', got {name!r}: make_agent(algorithm, env)")
    if not _is_algorithm(name):
        near = unknown("algorithm", name.lower(), algorithms)
        raise ValueError(near.replace(repr(name.lower()), repr(name), 1))
    own = next((each for each in ("torch", "flax", "tf") if name.lower().startswith(each)), None)
    own = "jax" if own == "flax" else own
    if own is not None and framework not in ("jax", own):
        raise ValueError(f"{name} is an agent of framework {own!r}, got framework {framework!r}: give only one")
    return canonical(name), own or framework


def _by_actions(actions: str, deterministic: bool) -> str:
    if actions == "discrete":
        return "dqn" if deterministic else "ppo"
    return "td3" if deterministic else "sac"


def _check_fit(algorithm: str, framework: str, actions: str, env: str, deterministic: bool) -> None:
    """ValueError or NotImplementedError unless there is such an agent for such actions."""
    fitting = fitting_agents(framework, actions)
    anywhere = {a.actions for a in AGENTS.values() if a.algorithm == algorithm}
    if anywhere and actions not in anywhere:
        raise ValueError(
            f"{algorithm} needs {' or '.join(anywhere)} actions, and {env} has {actions} ones: take "
            f"{', '.join(fitting)}"
        )
    if algorithm not in fitting:
        where = sorted(a.framework for a in AGENTS.values() if (a.algorithm, a.actions) == (algorithm, actions))
        elsewhere = f", but in {', '.join(map(repr, where))}" if where else ""
        raise NotImplementedError(
            f"there is no agent for {algorithm} in framework {framework!r} yet{elsewhere}: for {actions} actions "
            f"framework {framework!r} has {', '.join(fitting)}"
        )
    if deterministic and algorithm not in ("td3", "dqn"):
        fits = "dqn" if actions == "discrete" else "td3"
        raise ValueError(f"the policy of {algorithm} is random, and deterministic=True asks for another: take {fits}")


def _spaces_of(env: Any) -> tuple[Spaces, str]:
    """The spaces and a name of an environment or an id."""
    import gymnasium

    if isinstance(env, str):
        try:
            own = gymnasium.make(env)
        except (gymnasium.error.Error, ImportError) as error:
            raise ValueError(
                f"{env!r} is neither an algorithm nor an environment that Gymnasium can make: "
                f"{' '.join(str(error).split())}"
            ) from None
        try:
            return spaces_of(own, env), env
        finally:
            own.close()
    if not hasattr(env, "observation_space") and not hasattr(env, "single_observation_space"):
        raise TypeError(f"env must be a Gymnasium environment or its id, got {env!r}")
    name = getattr(getattr(env, "spec", None), "id", None) or type(getattr(env, "unwrapped", env)).__name__
    return spaces_of(env, name), name


# -- agents of PyTorch and TensorFlow ----------------------------------------------------------------------------


def _network_agent(
    name: str,
    framework: str,
    spaces: Spaces,
    params: Mapping[str, Any],
    hidden_sizes: Sequence[int],
    seed: int,
    device: str,
    env: str,
) -> Any:
    """With networks and Adam of the framework."""
    if len(spaces.obs_shape) != 1:
        raise UnsupportedSpaceError(
            f"{env} shows images of shape {list(spaces.obs_shape)}, which {name} needs a network of your own for (its "
            "default one takes a 1-D Box): make the agent in Python, or take framework: jax, whose agents have one"
        )
    n_in = spaces.obs_shape[0]
    n_out = spaces.n_actions or 2 * len(spaces.low)  # of a Gaussian: means and logarithms of standard deviations
    sizes = ((n_out, ACTOR_GAIN), (1, CRITIC_GAIN))
    rate = params.get("learning_rate", 3e-4)
    optimizer: Any
    options: dict[str, Any] = {"seed": seed}
    if framework == "torch":
        torch = _required("torch", "PyTorch", "torch", name)
        networks = [torch_mlp(n_in, n, hidden_sizes, gain, (seed, i)) for i, (n, gain) in enumerate(sizes)]
        optimizer = torch.optim.Adam([p for net in networks for p in net.parameters()], lr=rate, eps=_ADAM_EPS)
        options["device"] = device
    else:
        keras = _required("tensorflow", "TensorFlow", "tensorflow", name).keras
        networks = [keras_mlp(n_in, n, hidden_sizes, gain, (seed, i)) for i, (n, gain) in enumerate(sizes)]
        optimizer = keras.optimizers.Adam(rate, epsilon=_ADAM_EPS)
    kind = getattr(importlib.import_module(AGENTS[name].module), name)
    shape = () if spaces.n_actions else (len(spaces.low),)
    return kind(*networks, optimizer, *shape, HyperparamSet(dict(params)), **options)


def _required(module: str, product: str, extra: str, agent: str) -> Any:
    """The framework; ImportError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'{agent} needs {product}: pip install "tensor-optix[{extra}]"') from error


def _jax_platform() -> str:
    import jax

    from tensor_optix.loop import runtime

    runtime.start()
    return str(jax.default_backend())


# -- windows -----------------------------------------------------------------------------------------------------


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
    recurrent = dict.fromkeys(("recurrentppo", "recurrentgaussianppo"), "recurrent_ppo")
    known = {"gaussianppo": "ppo", **recurrent, "rainbowdqn": "rainbow", "tdd": "td3"}
    return known.get(name, name)


def algorithm_of(agent: Any) -> str:
    """The canonical name of an agent's algorithm, from its class."""
    return getattr(agent, "algorithm", None) or canonical(type(agent).__name__)


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
