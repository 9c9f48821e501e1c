"""What a run of the host driver is asked to do: `TrainConfig`, checked as far as it can be without an environment."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tensor_optix.algorithms import host_ppo
from tensor_optix.algorithms.contract import TUNED
from tensor_optix.config_checks import ConfigError, check_shared, is_number, unknown, whole


class HostAgent(NamedTuple):
    """What there is to know of an agent's class without importing it."""

    framework: str
    actions: str  # "discrete" or "continuous"
    module: str
    algorithm: str = "ppo"


# A new agent is one line here, if it is made as the others are.
AGENTS = {
    "TorchPPOAgent": HostAgent("torch", "discrete", "tensor_optix.algorithms.torch_ppo"),
    "TorchGaussianPPOAgent": HostAgent("torch", "continuous", "tensor_optix.algorithms.torch_ppo_continuous"),
    "TFPPOAgent": HostAgent("tf", "discrete", "tensor_optix.algorithms.tf_ppo"),
    "TFGaussianPPOAgent": HostAgent("tf", "continuous", "tensor_optix.algorithms.tf_ppo_continuous"),
    "FlaxPPOAgent": HostAgent("jax", "discrete", "tensor_optix.algorithms.flax_ppo"),
    "FlaxGaussianPPOAgent": HostAgent("jax", "continuous", "tensor_optix.algorithms.flax_ppo_continuous"),
    "FlaxDQNAgent": HostAgent("jax", "discrete", "tensor_optix.algorithms.flax_dqn", "dqn"),
    "FlaxRainbowAgent": HostAgent("jax", "discrete", "tensor_optix.algorithms.flax_rainbow", "rainbow"),
    "FlaxSACAgent": HostAgent("jax", "continuous", "tensor_optix.algorithms.flax_sac", "sac"),
    "FlaxTD3Agent": HostAgent("jax", "continuous", "tensor_optix.algorithms.flax_td3", "td3"),
    "FlaxRecurrentPPOAgent": HostAgent(
        "jax", "discrete", "tensor_optix.algorithms.flax_recurrent_ppo", "recurrent_ppo"
    ),
    "FlaxRecurrentGaussianPPOAgent": HostAgent(
        "jax", "continuous", "tensor_optix.algorithms.flax_recurrent_ppo_continuous", "recurrent_ppo"
    ),
}
FRAMEWORKS = ("torch", "tf", "jax")
PIPELINES = ("BatchPipeline", "VectorBatchPipeline")
MARKS = frozenset({"framework", "pipeline", "window_size", "agent", "optimizer", "max_episodes"})  # of a host run
# Of a window, where nothing else is said; a replay is learned from soon after it is written.
ROWS, ROWS_OFF_POLICY = 2048, 256
# Widths of the hidden layers, where nothing else is said; [64, 64] for all others.
HIDDEN_SIZES = {"rainbow": [128, 128], "sac": [256, 256], "td3": [256, 256], "recurrent_ppo": [64]}
_SEED_LIMIT = 2**31  # seeds of environments are derived by counting on, and must stay below 2**32

# RLOptimizer's settings that are plain data, with their kinds.
OPTIMIZER_SETTINGS = {
    **dict.fromkeys(
        (
            "max_snapshots",
            "max_episodes",
            "base_interval",
            "max_interval_episodes",
            "plateau_threshold",
            "dormant_threshold",
            "score_window",
            "trend_window",
            "min_episodes_before_dormant",
            "min_episodes_before_degradation",
            "score_smoothing",
            "diag_epsilon_patience",
            "diag_min_episodes",
            "min_consecutive_degradations",
            "convergence_patience",
            "n_trials",
            "seed",
        ),
        "whole",
    ),
    **dict.fromkeys(
        (
            "improvement_margin",
            "backoff_factor",
            "degradation_threshold",
            "min_degradation_drop",
            "noise_k",
            "diag_loss_spike_factor",
            "diag_entropy_floor",
            "diag_target_kl",
            "diag_epsilon_reset_value",
            "diag_epsilon_score_threshold",
            "cv_threshold",
            "gap_threshold",
            "target_score",
            "trial_steps_fraction",
            "save_every",
        ),
        "number",
    ),
    **dict.fromkeys(("rollback_on_degradation", "verbose", "diagnostics"), "flag"),
    **dict.fromkeys(("checkpoint_dir", "verbose_log_file"), "text"),
}


class Rules(NamedTuple):
    """What there is to know of an algorithm's hyperparameters."""

    complete: Callable[[Mapping[str, Any]], dict[str, Any]]  # fills in defaults and refuses bad values
    names: Collection[str]  # that may be given
    counts: Collection[str]  # that are whole numbers
    bounds: Mapping[str, tuple[float, float]]  # of those that may be tuned online
    log: Collection[str]  # that are tuned by their logarithm
    tuned: Collection[str]  # unless the caller says otherwise


@dataclass
class TrainConfig:
    """One run of the host driver. Everything in it is plain data; None is filled in where nothing else is said.

    `max_episodes` and `target_score` may stand in `optimizer` too; those outside win.
    """

    env: str  # a Gymnasium id
    algorithm: str = "ppo"  # a name, for which the agent is found that fits the actions; or an agent's class
    framework: str | None = None  # "torch", "tf" or "jax"; None: the class's, or "jax"
    deterministic: bool = False  # the policy must have no randomness of its own: TD3's has none
    hidden_sizes: list[int] | None = None  # of actor and critic; None: as wide as the algorithm is used with
    pipeline: str | None = None  # None: VectorBatchPipeline for several environments, else BatchPipeline
    window_size: int | None = None  # steps of each environment; None: 2048 of all together, 256 with a replay
    n_envs: int = 1
    seed: int = 0  # of weights, actions, environments and the tuner
    agent: dict[str, Any] = field(default_factory=dict)  # starting values of the hyperparameters
    optimizer: dict[str, Any] = field(default_factory=dict)  # settings of RLOptimizer
    max_episodes: int | None = None  # budget in windows; None: until learning is over
    target_score: float | None = None  # stop where the score stays at or above it
    tune: bool | list[str] = True  # tune hyperparameters online: the learning rate, those named here, or none
    stop: bool = True  # stop at convergence; False: use the whole budget

    def __post_init__(self) -> None:
        check_shared(self)
        self.framework = _framework(self.algorithm, self.framework)
        if self.algorithm not in AGENTS:
            self.algorithm = self.algorithm.lower()
        if self.deterministic not in (False, True) or (self.deterministic and self.plain_algorithm != "td3"):
            raise ConfigError(
                f"deterministic must be false, got {self.deterministic!r}: the policies of {self.algorithm} are random "
                "while they learn; a policy without randomness of its own has algorithm: td3"
            )
        self._check_sizes()
        rules = rules_of(self)
        self.agent = _hyperparams(self.agent, rules)
        self.optimizer = _settings(self.optimizer)
        for name in ("max_episodes", "target_score"):
            inside = self.optimizer.pop(name, None)
            if getattr(self, name) is None:
                setattr(self, name, inside)
        if self.max_episodes is not None:
            self.max_episodes = whole("max_episodes", self.max_episodes)
        if isinstance(self.tune, list):
            for name in self.tune:
                if name not in rules.bounds:
                    raise ConfigError(unknown("tunable hyperparameter", name, rules.bounds))
        if not self.stop and self.max_episodes is None:
            raise ConfigError("stop: false goes on to the end of a budget, and there is none: set max_episodes")

    @property
    def plain_algorithm(self) -> str:
        """Its name where an agent's class was given: "ppo", "sac", ..."""
        return AGENTS[self.algorithm].algorithm if self.algorithm in AGENTS else self.algorithm

    @property
    def rows_per_window(self) -> int:
        """Steps of all environments together."""
        assert self.window_size is not None
        return self.window_size * self.n_envs

    def _check_sizes(self) -> None:
        if self.hidden_sizes is None:
            self.hidden_sizes = list(HIDDEN_SIZES.get(self.plain_algorithm, [64, 64]))
        if not isinstance(self.hidden_sizes, list | tuple) or not self.hidden_sizes:
            raise ConfigError(
                f"hidden_sizes must be a list of whole numbers such as [64, 64], got {self.hidden_sizes!r}"
            )
        self.hidden_sizes = [whole("each of hidden_sizes", size) for size in self.hidden_sizes]
        self.n_envs = whole("n_envs", self.n_envs)
        self.seed = whole("seed", self.seed, 0)
        if self.seed >= _SEED_LIMIT:
            raise ConfigError(f"seed must be below 2**31, got {self.seed}")
        self.pipeline = _pipeline(self.pipeline, self.n_envs)
        if self.window_size is None:
            rows = ROWS if self.plain_algorithm in ("ppo", "recurrent_ppo") else ROWS_OFF_POLICY
            self.window_size = max(1, rows // self.n_envs)
        self.window_size = whole("window_size", self.window_size)


def is_agent_class(algorithm: Any) -> bool:
    """The name of a host agent's class, also of one that does not exist."""
    return isinstance(algorithm, str) and algorithm.lower().endswith("agent")


def agent_for(config: TrainConfig, actions: str) -> str:
    """The class of the agent for "discrete" or "continuous" actions. ConfigError if another one was asked for."""
    assert config.framework is not None
    fitting = fitting_agents(config.framework, actions)
    name = fitting.get(config.plain_algorithm)
    if name is None or (config.algorithm in AGENTS and config.algorithm != name):
        other = {"discrete": "continuous", "continuous": "discrete"}[actions]
        instead = " or ".join([name] if name else fitting.values())
        raise ConfigError(
            f"{config.algorithm} needs {other} actions, and {config.env} has {actions} ones: use {instead}"
        )
    return name


def fitting_agents(framework: str, actions: str) -> dict[str, str]:
    """Algorithm -> class of the agents of a framework for "discrete" or "continuous" actions."""
    return {a.algorithm: name for name, a in AGENTS.items() if (a.framework, a.actions) == (framework, actions)}


def rules_of(config: TrainConfig) -> Rules:
    """Those of the configuration's algorithm and framework."""
    if config.plain_algorithm == "ppo":
        return _ppo_rules(host_ppo.complete, host_ppo.DEFAULTS, config.framework)
    asked = config.plain_algorithm, config.framework
    name = next(name for name, a in AGENTS.items() if (a.algorithm, a.framework) == asked)
    kind = getattr(importlib.import_module(AGENTS[name].module), name)
    if config.plain_algorithm == "recurrent_ppo":
        return _ppo_rules(kind.complete, kind.defaults, config.framework)
    from tensor_optix.algorithms.host_off_policy import ALIASES, COUNTS

    counts = [given for given in kind.table.names if ALIASES.get(given, given) in COUNTS]
    bounds, log, tuned = kind.default_param_bounds, kind.default_log_params, kind.default_tuned
    return Rules(kind.table.complete, kind.table.names, counts, bounds, log, tuned)


def _ppo_rules(
    complete: Callable[[Mapping[str, Any]], dict[str, Any]], defaults: Mapping[str, float], framework: str | None
) -> Rules:
    names = [*defaults, *(["adam_eps"] if framework == "jax" else [])]
    counts = [name for name, value in defaults.items() if isinstance(value, int)]
    return Rules(complete, names, counts, host_ppo.PARAM_BOUNDS, host_ppo.LOG_PARAMS, TUNED)


def windows_for(config: TrainConfig, steps: int) -> int:
    """Windows that take at least `steps` environment steps."""
    if steps < 1:
        raise ConfigError(f"--steps must be at least 1, got {steps}")
    return -(-steps // config.rows_per_window)


def _framework(algorithm: Any, framework: Any) -> str:
    """The framework that is meant. ConfigError for an unknown name or a contradiction."""
    plain = {agent.algorithm for agent in AGENTS.values()}
    if not isinstance(algorithm, str):
        raise ConfigError(f"algorithm must be a name, got {algorithm!r}")
    if algorithm not in AGENTS and algorithm.lower() not in plain:
        raise ConfigError(unknown("algorithm of the host driver", algorithm, [*sorted(plain), *AGENTS]))
    if framework is not None and framework not in FRAMEWORKS:
        raise ConfigError(unknown("framework", str(framework), FRAMEWORKS))
    if algorithm in AGENTS:
        own = AGENTS[algorithm].framework
        if framework not in (None, own):
            raise ConfigError(
                f"{algorithm} is an agent of framework {own!r}, got framework {framework!r}: give only one"
            )
        return own
    found = framework or "jax"
    algorithms = sorted({agent.algorithm for agent in AGENTS.values() if agent.framework == found})
    if algorithm.lower() not in algorithms:
        raise ConfigError(
            f"there is no agent for {algorithm} in framework {found!r} yet, only for {', '.join(algorithms)}: "
            "take framework: jax"
        )
    return found


def _pipeline(pipeline: Any, n_envs: int) -> str:
    if pipeline is None:
        return PIPELINES[n_envs > 1]
    if pipeline == "LivePipeline":
        raise ConfigError(
            "LivePipeline reads a source that is a Python object, which a configuration cannot hold: "
            "make it in Python, RLOptimizer(agent, LivePipeline(source)).run()"
        )
    if pipeline not in PIPELINES:
        raise ConfigError(unknown("pipeline", str(pipeline), PIPELINES))
    if pipeline == "BatchPipeline" and n_envs > 1:
        raise ConfigError(f"BatchPipeline has one environment, got n_envs={n_envs}: use VectorBatchPipeline")
    return str(pipeline)


def _hyperparams(given: Any, rules: Rules) -> dict[str, Any]:
    """Those of the agent, complete."""
    for name, value in _mapping("agent", given).items():
        if name not in rules.names:
            raise ConfigError(unknown("hyperparameter", str(name), rules.names))
        if not is_number(value):
            raise ConfigError(f"hyperparameter {name!r} must be a finite number, got {value!r}")
        if name in rules.counts:
            whole(f"hyperparameter {name!r}", value, 0)
    if "adam_eps" in given and not 0 < given["adam_eps"] <= 1:
        raise ConfigError(f"hyperparameter adam_eps must be above 0 and at most 1, got {given['adam_eps']!r}")
    try:
        return rules.complete(given)
    except ValueError as error:
        raise ConfigError(f"hyperparameter {error}") from None


def _settings(given: Any) -> dict[str, Any]:
    """RLOptimizer's keyword arguments; None is as good as not given."""
    result = {}
    for name, value in _mapping("optimizer", given).items():
        if name not in OPTIMIZER_SETTINGS:
            raise ConfigError(unknown("optimizer setting", str(name), OPTIMIZER_SETTINGS))
        if value is not None:
            result[name] = _of_kind(f"optimizer setting {name}", value, OPTIMIZER_SETTINGS[name])
    return result


def _of_kind(name: str, value: Any, kind: str) -> Any:
    if kind == "whole":
        return whole(name, value, 0)
    if kind == "number" and not is_number(value):
        raise ConfigError(f"{name} must be a finite number, got {value!r}")
    if kind == "flag" and not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, got {value!r}")
    if kind == "text" and not isinstance(value, str):
        raise ConfigError(f"{name} must be a path, got {value!r}")
    return value


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{name} must be a mapping of names to values, got {value!r}")
    return value


__all__ = ["AGENTS", "OPTIMIZER_SETTINGS", "HostAgent", "TrainConfig", "agent_for", "is_agent_class", "windows_for"]
