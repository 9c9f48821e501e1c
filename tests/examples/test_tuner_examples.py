"""The documented calls of the hyperparameter tuners, each in a run of a few windows."""

import numpy as np
import pytest

from tensor_optix import BaseAgent, BatchPipeline, HyperparamSet, RLOptimizer
from tests.host_parts import Plain, Source, stop_after, window_of


def waves():
    """Windows of ten episodes of one step each, with scores that go up and down."""
    return Source(lambda i: window_of([float(np.sin(2.0 * i))] * 10, ends=range(10), episode_id=i))


def test_backoff_for_one_parameter_at_a_time():
    agent, pipeline = Plain(learning_rate=1e-3, clip_ratio=0.2), waves()
    from tensor_optix.optimizers.backoff_optimizer import BackoffOptimizer

    opt = RLOptimizer(
        agent=agent,
        pipeline=pipeline,
        optimizer=BackoffOptimizer(param_bounds={
            "learning_rate": (1e-5, 1e-2),
            "clip_ratio":    (0.05, 0.4),
        }),
    )  # fmt: skip
    stop_after(opt, 10)
    opt.run()
    rates = {seen["learning_rate"] for seen in agent.seen}
    clips = {seen["clip_ratio"] for seen in agent.seen}
    assert len(rates) > 2
    assert len(clips) > 2
    first = agent.seen[0]
    assert (first["learning_rate"] != 1e-3) != (first["clip_ratio"] != 0.2)  # one of them is probed


def test_spsa_and_adaptive():
    agent, pipeline = Plain(learning_rate=1e-3, clip_ratio=0.2), waves()
    from tensor_optix.optimizers import AdaptiveOptimizer, SPSAOptimizer

    # SPSA: Rademacher perturbation vector, two-episode gradient estimate
    optimizer = SPSAOptimizer(
        param_bounds={"learning_rate": (1e-4, 3e-3), "clip_ratio": (0.1, 0.3)},
        log_params={"learning_rate"},   # log-space normalisation for params spanning orders of magnitude
    )  # fmt: skip
    assert optimizer.space.dim == 2

    # AdaptiveOptimizer: routes between SPSA, Momentum, Backoff, and PBT
    # based on lag-1 autocorrelation of the score stream and relative performance gap
    optimizer = AdaptiveOptimizer(param_bounds={"learning_rate": (1e-4, 3e-3), "clip_ratio": (0.1, 0.3)})

    opt = RLOptimizer(agent=agent, pipeline=pipeline, optimizer=optimizer)
    stop_after(opt, 10)
    opt.run()
    assert len({seen["clip_ratio"] for seen in agent.seen}) > 2
    assert all(1e-4 <= seen["learning_rate"] <= 3e-3 for seen in agent.seen)


def test_a_controller_of_ones_own():
    from tensor_optix.optimizers import SPSAOptimizer

    class HVACAgent(BaseAgent):
        """Custom control agent  -  tensor-optix owns the loop, you own the policy."""

        def act(self, obs): ...
        def learn(self, episode_data): ...
        def get_hyperparams(self): ...
        def set_hyperparams(self, hp): ...
        def save_weights(self, path): ...
        def load_weights(self, path): ...

    assert HVACAgent().get_hyperparams() is None  # the documented skeleton; below, one that does something
    agent = Plain(setpoint_gain=1.0, integral_coef=0.1, comfort_weight=2.0)
    opt = RLOptimizer(
        agent=agent,
        pipeline=BatchPipeline(env_id="CartPole-v1", agent=agent, window_size=96),  # 96 = 8h @ 5min steps
        optimizer=SPSAOptimizer(param_bounds={
            "setpoint_gain":  (0.1, 2.0),
            "integral_coef":  (0.01, 0.5),
            "comfort_weight": (0.5, 5.0),
        }),
        checkpoint_score_fn=lambda a: -abs(a.params["setpoint_gain"] - 0.7),  # week-long holdout eval
        verbose=True,
    )  # fmt: skip
    stop_after(opt, 6)
    opt.run()
    assert len({seen["setpoint_gain"] for seen in agent.seen}) > 2


@pytest.mark.parametrize("name", ["MomentumOptimizer", "PBTOptimizer"])
def test_the_others(name):
    from tensor_optix import optimizers

    agent = Plain(learning_rate=1e-3, n_epochs=4, normalize=True)
    optimizer = getattr(optimizers, name)({"learning_rate": (1e-4, 3e-3), "n_epochs": (1, 10)}, {"learning_rate"})
    opt = RLOptimizer(agent=agent, pipeline=waves(), optimizer=optimizer)
    stop_after(opt, 14)
    opt.run()
    assert len({seen["learning_rate"] for seen in agent.seen}) > 2
    assert len({seen["n_epochs"] for seen in agent.seen}) > 1
    assert all(type(seen["n_epochs"]) is int and seen["normalize"] is True for seen in agent.seen)


def test_addresses():
    from tensor_optix.optimizers import AdaptiveOptimizer, BackoffOptimizer, MomentumOptimizer, PBTOptimizer
    from tensor_optix.optimizers.adaptive_optimizer import AdaptiveOptimizer as SameAdaptive
    from tensor_optix.optimizers.backoff_optimizer import BackoffOptimizer as SameBackoff
    from tensor_optix.optimizers.momentum_optimizer import MomentumOptimizer as SameMomentum
    from tensor_optix.optimizers.pbt_optimizer import PBTOptimizer as SamePBT

    assert (SameAdaptive, SameBackoff, SameMomentum, SamePBT) == (
        AdaptiveOptimizer,
        BackoffOptimizer,
        MomentumOptimizer,
        PBTOptimizer,
    )
    assert AdaptiveOptimizer({"x": (0.0, 1.0)}).suggest(HyperparamSet({"x": 0.5}), []).params["x"] != 0.5
