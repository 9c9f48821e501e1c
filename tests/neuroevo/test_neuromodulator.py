"""The signal: factors on bases, others who set the same values, and how it is called."""

from types import SimpleNamespace

import numpy as np
import pytest

from tensor_optix.core import RegimeDetector
from tensor_optix.core.types import EvalMetrics, HyperparamSet
from tensor_optix.neuroevo import NeuronGraph
from tensor_optix.neuroevo.hebbian_hook import HebbianHook
from tensor_optix.neuroevo.neuromodulator import REGIMES, NeuromodulatorSignal

# hebbian_lr, entropy_coef, growth thresholds, pruning thresholds
FACTORS = {"trending": (0.5, 0.5, 1.5, 1.5), "ranging": (2.0, 2.0, 0.5, 0.8), "volatile": (0.3, 1.5, 1.2, 0.3)}
NAMES = (
    "hebbian_lr", "entropy_coef", "grow_gap_threshold", "grow_grad_threshold", "prune_edge_threshold",
    "prune_neuron_threshold",
)  # fmt: skip
BASES = (1e-3, 0.01, 0.15, 0.6, 1e-3, 1e-4)


class Agent:
    default_param_bounds = {"entropy_coef": (0.001, 0.05)}  # noqa: RUF012

    def __init__(self, entropy_coef=0.01):
        self.params = {"learning_rate": np.float32(3e-4), "entropy_coef": np.float32(entropy_coef)}
        self.times_set = 0

    def get_hyperparams(self):
        return HyperparamSet(dict(self.params), 7)

    def set_hyperparams(self, hyperparams):
        self.params = {name: np.float32(x) for name, x in hyperparams.params.items()}
        self.times_set += 1


def controller(**changes):
    settings = dict(zip(NAMES[2:], BASES[2:], strict=True))
    return SimpleNamespace(**{**settings, **changes})


def stack():
    hook = HebbianHook(NeuronGraph())
    agent, control = Agent(), controller()
    return hook, agent, control, NeuromodulatorSignal(hook=hook, agent=agent, controller=control)


def values(hook, agent, control):
    return [hook.hebbian_lr, float(agent.params["entropy_coef"]), *(getattr(control, name) for name in NAMES[2:])]


def metrics(scores):
    return [EvalMetrics(float(score), {}, i) for i, score in enumerate(scores)]


HISTORIES = {
    "trending": metrics(np.arange(12.0)),
    "ranging": metrics(np.concatenate([np.arange(20.0), 19 + 0.01 * np.cos(np.arange(10.0))])),
    "volatile": metrics(np.random.default_rng(0).normal(0, 10, 30)),
}


@pytest.mark.parametrize("order", [REGIMES, REGIMES[::-1], ("volatile", "volatile", "trending")])
def test_everything_is_its_base_times_the_factor(order):
    hook, agent, control, signal = stack()
    assert set(REGIMES) == set(FACTORS)
    for regime in order:
        signal.apply(regime)
        hebb, entropy, grow, prune = FACTORS[regime]
        expected = np.multiply(BASES, (hebb, entropy, grow, grow, prune, prune))
        np.testing.assert_allclose(values(hook, agent, control), expected, rtol=1e-6)
        assert signal.current_regime == regime
        assert agent.params["learning_rate"] == np.float32(3e-4)
    signal.reset_to_base()
    np.testing.assert_allclose(values(hook, agent, control), BASES, rtol=1e-6)
    assert signal.current_regime is None


@pytest.mark.parametrize("regime", REGIMES)
def test_a_step_detects_and_applies(regime):
    hook, *_ = stack()
    signal = NeuromodulatorSignal(hebbian_hook=hook)
    assert signal.step(HISTORIES[regime]) == signal.current_regime == regime
    assert hook.hebbian_lr == pytest.approx(1e-3 * FACTORS[regime][0])


def test_another_detector_is_asked():
    signal = NeuromodulatorSignal(SimpleNamespace(detect=lambda history: history[0]))
    assert signal.step(["volatile"]) == "volatile"
    with pytest.raises(ValueError, match="trending, ranging, volatile, got 'calm'"):
        signal.step(["calm"])
    assert signal.current_regime == "volatile"


def test_thresholds_of_growth_are_shares():
    control = controller(grow_grad_threshold=0.7)
    signal = NeuromodulatorSignal(controller=control)
    signal.apply("trending")
    assert control.grow_grad_threshold == 1.0
    signal.apply("trending")
    signal.apply("ranging")
    assert control.grow_grad_threshold == pytest.approx(0.35)


def test_what_is_none_or_missing_is_left_alone():
    control = controller(grow_gap_threshold=None)
    bare = SimpleNamespace(prune_edge_threshold=0.5)
    signal = NeuromodulatorSignal(controller=[control, bare])
    assert "grow_gap_threshold[0]" not in signal.state["base"]
    signal.apply("trending")
    assert control.grow_gap_threshold is None
    assert vars(bare) == {"prune_edge_threshold": 0.75}
    control.grow_gap_threshold = 0.3  # meant for the regime in force
    signal.apply("ranging")
    assert control.grow_gap_threshold == pytest.approx(0.1)
    assert control.prune_edge_threshold == pytest.approx(0.0008)


# Others set the same values


def test_what_others_set_stays_in_its_regime_and_becomes_the_base():
    hook, agent, _, signal = stack()
    hook.hebbian_lr = 2e-3  # before the first regime
    signal.apply("trending")
    assert hook.hebbian_lr == pytest.approx(1e-3)
    hook.hebbian_lr = 4e-3
    agent.set_hyperparams(HyperparamSet({**agent.params, "entropy_coef": 0.02}))
    signal.apply("trending")
    assert hook.hebbian_lr == pytest.approx(4e-3)
    assert agent.params["entropy_coef"] == np.float32(0.02)
    signal.apply("ranging")
    assert hook.hebbian_lr == pytest.approx(16e-3)
    assert agent.params["entropy_coef"] == pytest.approx(0.08)  # beyond the bounds of its tuner
    assert signal.state["base"]["entropy_coef"] == pytest.approx(0.04)
    signal.reset_to_base()
    assert hook.hebbian_lr == pytest.approx(8e-3)


def test_nothing_piles_up_beside_a_tuner():
    """It moves the value by 5 % up and down, as it finds it, before every regime."""
    _, agent, _, signal = stack()
    rng = np.random.default_rng(0)
    for i in range(300):
        agent.params["entropy_coef"] *= np.float32(1.05 if i % 2 else 1 / 1.05)
        signal.apply(str(rng.choice(REGIMES)))
    signal.reset_to_base()
    assert agent.params["entropy_coef"] == pytest.approx(0.01, rel=1e-3)


def test_rounding_is_nobodys_doing():
    """The agent keeps float32: its base stays what it was, to the bit."""
    _, agent, _, signal = stack()
    base = signal.state["base"]["entropy_coef"]
    for i in range(50):
        signal.apply(REGIMES[i % 3])
    assert signal.state["base"]["entropy_coef"] == base
    before = agent.times_set
    signal.apply(signal.current_regime)
    assert agent.times_set == before


def test_a_factor_of_0_can_be_undone():
    hook = HebbianHook(NeuronGraph(), lr=0.5)
    signal = NeuromodulatorSignal(hook=hook, hebbian_lr_scale={"volatile": 0.0})
    signal.apply("volatile")
    assert hook.hebbian_lr == 0.0
    signal.apply("ranging")
    assert hook.hebbian_lr == 1.0
    signal.apply("volatile")
    hook.hebbian_lr = 0.25
    signal.reset_to_base()
    assert hook.hebbian_lr == 0.25


# Settings


def test_factors_can_be_given():
    hook, agent, control, _ = stack()
    signal = NeuromodulatorSignal(
        None,
        hook,
        agent,
        control,
        hebbian_lr_scale={"trending": 3.0},
        entropy_scale=1,
        grow_gap_scale={"trending": 1.1, "ranging": 1.2, "volatile": 1.3},
        prune_threshold_scale=0.5,
    )
    signal.apply("trending")
    expected = np.multiply(BASES, (3.0, 1.0, 1.1, 1.1, 0.5, 0.5))
    np.testing.assert_allclose(values(hook, agent, control), expected, rtol=1e-6)
    signal.apply("ranging")
    expected = np.multiply(BASES, (2.0, 1.0, 1.2, 1.2, 0.5, 0.5))
    np.testing.assert_allclose(values(hook, agent, control), expected, rtol=1e-6)


def test_the_state_is_for_printing():
    hook, agent, control, signal = stack()
    signal.apply("ranging")
    state = signal.state
    assert state["regime"] == "ranging"
    assert [state[name] for name in NAMES] == pytest.approx(values(hook, agent, control))
    assert [state["base"][name] for name in NAMES] == pytest.approx(BASES)
    assert [state["factors"][name] for name in NAMES] == [2.0, 2.0, 0.5, 0.5, 0.8, 0.8]
    assert "hebbian_lr" in str(state)


def test_what_is_refused():
    hook, agent, control, _ = stack()
    for both in ({"hebbian_hook": hook, "hook": hook}, {"topology_controller": control, "controller": control}):
        with pytest.raises(ValueError, match="two names of one argument"):
            NeuromodulatorSignal(**both)
    with pytest.raises(ValueError, match=r"entropy_scale has factors for .*, got one for 'calm'"):
        NeuromodulatorSignal(agent=agent, entropy_scale={"calm": 1.0})
    for bad in (-1.0, float("nan"), {"trending": float("inf")}):
        with pytest.raises(ValueError, match="grow_gap_scale must be numbers of at least 0"):
            NeuromodulatorSignal(grow_gap_scale=bad)
    with pytest.raises(ValueError, match="one of trending, ranging, volatile"):
        NeuromodulatorSignal().apply("calm")
    agent.params.pop("entropy_coef")
    for bad in ({"hook": control}, {"agent": agent}, {"controller": hook}):
        with pytest.raises(TypeError, match=r"entropy_coef|hebbian_lr|prune_edge_threshold"):
            NeuromodulatorSignal(**bad)


# As documented


def test_the_example_with_a_step(capsys):
    hook, agent, tc, _ = stack()
    metrics_history = HISTORIES["volatile"]

    signal = NeuromodulatorSignal(
        detector=RegimeDetector(),
        hebbian_hook=hook,  # modulates hebbian_lr
        agent=agent,  # modulates entropy_coef
        topology_controller=tc,  # modulates grow/prune thresholds
    )

    # In your training loop, after each episode:
    regime = signal.step(metrics_history)
    # "trending"  → dopamine ↑    — consolidate, lower plasticity, exploit
    # "ranging"   → acetylcholine ↑ — plateau, raise plasticity, grow topology
    # "volatile"  → norepinephrine ↑ — dampen Hebbian, boost exploration
    print(signal.state)

    assert regime == "volatile"
    assert hook.hebbian_lr < 1e-3
    assert agent.params["entropy_coef"] > 0.01
    assert "'regime': 'volatile'" in capsys.readouterr().out


def test_the_example_with_a_regime():
    hook, agent, controller, _ = stack()
    metrics_history = HISTORIES["trending"]

    detector = RegimeDetector()
    mod = NeuromodulatorSignal(hook=hook, agent=agent, controller=controller)

    regime = detector.detect(metrics_history)  # "trending" | "ranging" | "volatile"
    mod.apply(regime)

    # trending  -> lower entropy coefficient, reduce hebbian_lr (consolidate)
    assert agent.params["entropy_coef"] < 0.01
    assert hook.hebbian_lr < 1e-3
    # volatile  -> raise entropy coefficient, raise grow thresholds (explore)
    mod.apply("volatile")
    assert agent.params["entropy_coef"] > 0.01
    assert controller.grow_gap_threshold > 0.15
    assert controller.grow_grad_threshold > 0.6
    # ranging   -> raise hebbian_lr (local plasticity)
    mod.apply("ranging")
    assert hook.hebbian_lr > 1e-3
