"""REINFORCE over a PyTorch policy: the gradient against float64 sums by hand, episodes apart, saving, own losses."""

import copy
import math

import numpy as np
import pytest

from tensor_optix import BatchPipeline, CheckpointRegistry, EpisodeData, EpisodeEvaluator, HyperparamSet, LoopController
from tensor_optix.adapters.pytorch.torch_agent import TorchAgent
from tensor_optix.adapters.pytorch.torch_evaluator import TorchEvaluator

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402


def make(seed=0, optimizer=None, params=None, net_seed=0, **kwargs):
    torch.manual_seed(net_seed)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    built = (optimizer or (lambda ps: torch.optim.Adam(ps, lr=0.01)))(model.parameters())
    return TorchAgent(model, built, HyperparamSet(params or {}), device="cpu", seed=seed, **kwargs)


def window(n=10, seed=0, ends=(3,), **fields):
    rng = np.random.default_rng(seed)
    return EpisodeData(
        rng.normal(size=(n, 3)), rng.integers(2, size=n), rng.normal(size=n).tolist(), [t in ends for t in range(n)],
        [False] * n, [{}] * n, 0, **fields,
    )  # fmt: skip


def leaves(agent):
    return [p.detach().numpy().copy() for p in agent._model.parameters()]


def returns_by_hand(data, gamma, starts=(0,)):
    out = []
    for t in range(len(data.rewards)):
        total, weight = 0.0, 1.0
        for k in range(t, len(data.rewards)):
            if k > t and k in starts:
                break
            total, weight = total + weight * data.rewards[k], weight * gamma
            if data.terminated[k] or data.truncated[k]:
                break
        out.append(total)
    return np.array(out)


@pytest.mark.parametrize("baseline", [False, True])
def test_one_step_is_that_of_the_formula(baseline):
    """Theta moves by -rate * gradient of -mean(log pi * w), w the normalised return less the value."""
    agent = make(optimizer=lambda ps: torch.optim.SGD(ps, lr=0.5), params={"gamma": 0.8})
    data = window(metadata={"segment_starts": [0, 6]})
    returns = returns_by_hand(data, 0.8, starts=(0, 6))
    data.values = returns + np.random.default_rng(5).normal(size=10) if baseline else None
    w = returns - data.values if baseline else returns
    w = (w - w.mean()) / (w.std() + 1e-8)
    a, b, c, d = (p.detach().double().requires_grad_() for p in agent._model.parameters())
    logits = torch.tanh(torch.as_tensor(data.observations) @ a.T + b) @ c.T + d
    log_pi = (logits - torch.log(torch.exp(logits).sum(1, keepdim=True)))[
        torch.arange(10), torch.as_tensor(data.actions)
    ]
    loss = -(log_pi * torch.as_tensor(w)).mean()
    gradients = torch.autograd.grad(loss, [a, b, c, d])
    result = agent.learn(data)
    for new, old, gradient in zip(leaves(agent), (a, b, c, d), gradients, strict=True):
        np.testing.assert_allclose(new, old.detach().numpy() - 0.5 * gradient.numpy(), atol=1e-6)
    assert result["loss"] == pytest.approx(loss.item(), abs=1e-6)
    assert result["grad_norm"] == pytest.approx(math.sqrt(sum(float((g**2).sum()) for g in gradients)), rel=1e-5)
    assert result["baseline_type"] == ("value" if baseline else "none")
    explained = 1 - np.var(returns - data.values) / np.var(returns) if baseline else 0.0
    assert result["explained_variance"] == pytest.approx(explained)


def test_gradients_are_clipped_where_that_is_asked_for():
    plain = make(optimizer=lambda ps: torch.optim.SGD(ps, lr=1.0))
    agent = make(optimizer=lambda ps: torch.optim.SGD(ps, lr=1.0), params={"max_grad_norm": 0.01})
    before = leaves(agent)
    assert agent.learn(window())["grad_norm"] == plain.learn(window())["grad_norm"] > 0.01
    moved = math.sqrt(sum(float(((new - old) ** 2).sum()) for new, old in zip(leaves(agent), before, strict=True)))
    assert moved == pytest.approx(0.01, rel=1e-3)


def test_defaults_and_checks():
    agent = make(params={"note": "x"})
    assert agent.get_hyperparams().params == {"learning_rate": 0.01, "gamma": 0.99, "note": "x"}
    with pytest.raises(ValueError, match="max_grad_norm must be"):
        agent.set_hyperparams(HyperparamSet({"max_grad_norm": -1.0}))
    agent.set_hyperparams(HyperparamSet({"learning_rate": 0.02}))
    assert agent._networks.optimizer.param_groups[0]["lr"] == 0.02
    with pytest.raises(ValueError, match="values must be one number for each of 10 rows, got 2"):
        agent.learn(window(values=[0.0, 1.0]))
    assert agent.learn(EpisodeData([], [], [], [], [], [], 0)) == {}
    assert math.isfinite(agent.learn(window(n=1))["loss"])
    assert TorchEvaluator is EpisodeEvaluator


def test_a_loss_of_one_s_own():
    modes = []

    def loss(model, data):
        modes.append(model.training)
        return model(torch.as_tensor(np.asarray(data.observations, np.float32))).square().mean()

    agent = make(compute_loss_fn=loss)
    first = agent.learn(window())["loss"]
    for _ in range(20):
        last = agent.learn(window())
    assert last["loss"] < first
    assert set(last) == {"loss", "grad_norm", "baseline_type", "explained_variance"}
    assert all(modes)
    assert not agent._model.training
    with pytest.raises(TypeError, match="scalar tensor with gradients"):
        make(compute_loss_fn=lambda model, data: 1.0).learn(window())


def test_acting():
    obs = np.random.default_rng(0).normal(size=(200, 3))
    a, b, c = make(seed=1), make(seed=1), make(seed=2)
    acted = a.act_batch(obs)
    assert np.array_equal(acted, b.act_batch(obs))
    assert not np.array_equal(acted, c.act_batch(obs))
    assert type(a.act(obs[0])) is int
    probs = a.action_probs(obs[0])
    assert a.act_deterministic(obs[0]) == int(probs.argmax())
    share = (a.act_batch(np.tile(obs[0], (20_000, 1))) == 1).mean()
    assert abs(share - probs[1]) < 5 * math.sqrt(probs[0] * probs[1] / 20_000)  # 5 sigma
    assert a.act(np.full(3, np.nan)) == 0
    bad = window()
    bad.observations[2] = np.nan
    assert not math.isfinite(a.learn(bad)["loss"])


def test_saving_and_resuming(tmp_path):
    agent = make()
    agent.learn(window())
    agent.save_state(str(tmp_path / "s"))
    fresh = make(net_seed=4, seed=9)
    fresh.load_state(str(tmp_path / "s"))
    obs = np.random.default_rng(1).normal(size=(50, 3))
    for seed in (1, 2):
        assert np.array_equal(agent.act_batch(obs), fresh.act_batch(obs))
        assert agent.learn(window(seed=seed)) == fresh.learn(window(seed=seed))
    assert all(map(np.array_equal, leaves(agent), leaves(fresh)))
    state = copy.deepcopy(agent._networks.optimizer.state_dict()["state"])
    agent.perturb_weights(0.1)
    assert not any(map(np.array_equal, leaves(agent), leaves(fresh)))
    assert torch.equal(state[0]["exp_avg"], agent._networks.optimizer.state_dict()["state"][0]["exp_avg"])
    agent.save_weights(str(tmp_path / "w"))
    assert {file.name for file in (tmp_path / "w").iterdir()} == {"model.safetensors", "optimizer.pt", "agent.json"}
    agent.average_weights([str(tmp_path / "s"), str(tmp_path / "w")])
    agent.teardown()


def test_a_policy_is_learned_in_the_loop(tmp_path):
    """Reward 1 for action 1: deterministic choice after a few windows."""
    import gymnasium as gym

    class Bandit(gym.Env):
        observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)
        action_space = gym.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return np.ones(3, np.float32), {}

        def step(self, action):
            return np.ones(3, np.float32), float(action), True, False, {}

    agent = make()
    result = LoopController(
        agent=agent, pipeline=BatchPipeline(Bandit(), agent, window_size=32), evaluator=TorchEvaluator(),
        checkpoint_registry=CheckpointRegistry(tmp_path), max_episodes=40,
    ).run()  # fmt: skip
    assert result.best_snapshot is not None
    assert result.notes == []
    assert agent.action_probs(np.ones(3))[1] > 0.8
