"""PPO over PyTorch networks: the update against a plain float64 one, acting, saving, resuming, the whole loop."""

import copy
import json
import math
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest

from tensor_optix import (
    BatchPipeline,
    CheckpointRegistry,
    EpisodeData,
    HyperparamSet,
    LoopController,
    ObsNormalizer,
    RewardNormalizer,
    VectorBatchPipeline,
)
from tensor_optix.algorithms.torch_ppo import TorchPPOAgent
from tensor_optix.algorithms.torch_ppo_continuous import TorchGaussianPPOAgent
from tensor_optix.core.window_returns import Bootstraps, advantages
from tensor_optix.loop.events import LoopCallback

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

KINDS = ("discrete", "gaussian", "squashed")


def mlp(n_in, n_out, seed=0, hidden=16):
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(n_in, hidden), nn.Tanh(), nn.Linear(hidden, n_out))
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.4)
    return net


def make(kind="discrete", n_in=4, net_seed=0, optimizer=None, cls=None, hidden=16, **kwargs):
    """An agent of the kind with D = 2 (or 2 actions) and small networks."""
    params = kwargs.pop("params", {})
    actor = mlp(n_in, 2 if kind == "discrete" else 4, net_seed, hidden)
    critic = mlp(n_in, 1, net_seed + 100, hidden)
    optimizer = optimizer or (lambda ps: torch.optim.Adam(ps, lr=3e-3))
    built = optimizer([*actor.parameters(), *critic.parameters()])
    hyperparams = HyperparamSet({"n_epochs": 2, "minibatch_size": 16, **params}, 0)
    kwargs.setdefault("device", "cpu")
    if kind == "discrete":
        return (cls or TorchPPOAgent)(actor, critic, built, hyperparams, **kwargs)
    agent = TorchGaussianPPOAgent(actor, critic, built, 2, hyperparams, squash=kind == "squashed", **kwargs)
    agent.set_action_bounds([-2.0, 0.0], [2.0, 10.0])
    return agent


class Wander(gym.Env):
    """A walk on a line in 4 numbers; ends by itself or is cut. Actions of either kind."""

    def __init__(self, kind="discrete", broken=False):
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
        box = gym.spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 10.0], np.float32))
        self.action_space = gym.spaces.Discrete(2) if kind == "discrete" else box
        self.broken = broken

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.x = 0, self.np_random.normal(size=4).astype(np.float32)
        return self.x.copy(), {}

    def step(self, action):
        self.t += 1
        self.x = (0.9 * self.x + 0.3 * self.np_random.normal(size=4)).astype(np.float32)
        self.x[0] += 0.1 * float(np.sum(action))
        if self.broken:
            self.x[1] = np.nan
        return self.x.copy(), float(self.x[0]), bool(self.x[2] > 1.0), self.t >= 9, {}


def windows(agent, kind="discrete", n=1, size=32, vector=True):
    if vector:
        pipeline = VectorBatchPipeline([lambda: Wander(kind)] * 3, agent, window_size=size // 2, seed=3)
    else:
        pipeline = BatchPipeline(Wander(kind), agent, window_size=size, seed=3)
    source = pipeline.episodes()
    return [next(source) for _ in range(n)]


def foreign(kind="discrete", n=12, seed=0, **fields):
    """Plain lists, no metadata, no final observation."""
    rng = np.random.default_rng(seed)
    actions = rng.integers(2, size=n).tolist() if kind == "discrete" else rng.uniform([-1, 1], [1, 9], (n, 2)).tolist()
    terminated = [t % 5 == 4 for t in range(n)]
    return EpisodeData(
        rng.normal(size=(n, 4)).tolist(), actions, rng.normal(size=n).tolist(), terminated, [False] * n, [{}] * n, 0,
        **fields,
    )  # fmt: skip


def weights(agent):
    return {
        f"{name}.{leaf}": value.clone().numpy()
        for name, net in (("actor", agent._actor), ("critic", agent._critic))
        for leaf, value in net.state_dict().items()
    }


def same(a, b):
    assert a.keys() == b.keys()
    return all(np.array_equal(a[k], b[k]) for k in a)


# -- an independent log-probability, in float64 and from the definition ---------------------------------------


def forward64(net, x):
    """A Linear-Tanh-Linear network in float64, from its leaves."""
    leaves = [p.detach().double().requires_grad_() for p in net.parameters()]
    hidden = torch.tanh(torch.as_tensor(np.asarray(x), dtype=torch.float64) @ leaves[0].T + leaves[1])
    return hidden @ leaves[2].T + leaves[3], leaves


def log_prob64(kind, out, actions):
    """log p and entropy [N] of recorded actions; for continuous kinds the density in unit range."""
    if kind == "discrete":
        p = torch.exp(out) / torch.exp(out).sum(1, keepdim=True)
        return torch.log(p[torch.arange(len(p)), torch.as_tensor(np.asarray(actions))]), -(p * torch.log(p)).sum(1)
    low, high = np.array([-2.0, 0.0]), np.array([2.0, 10.0])
    u = torch.as_tensor((np.asarray(actions, np.float64) - low) / (high - low) * 2 - 1)
    mean, std = out[:, :2], torch.exp(out[:, 2:].clamp(-5, 2))
    normal = torch.distributions.Normal(mean, std)
    entropy = normal.entropy().sum(1)
    if kind == "gaussian":
        return normal.log_prob(u).sum(1), entropy
    u = u.clamp(-1 + 1e-6, 1 - 1e-6)
    return (normal.log_prob(torch.atanh(u)) - torch.log(1 - u**2)).sum(1), entropy


@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_before_any_update_the_ratio_is_one(kind, vector):
    agent = make(kind, params={"n_epochs": 1, "minibatch_size": 1000, "entropy_coef": 0.0})
    data = windows(agent, kind, vector=vector)[0]
    out, _ = forward64(agent._actor, data.observations)
    expected, _ = log_prob64(kind, out, data.actions)
    rows = np.arange(len(data.rewards))
    from tensor_optix.algorithms.host_ppo import Rows

    column = np.zeros(len(rows), np.float32)
    batch = agent._batch(data, agent._prepared(data.observations), Rows(rows, column, column, 0.0))
    ratio = np.exp(expected.detach().numpy() - batch.log_probs.numpy())
    assert np.abs(ratio - 1).max() < (1e-3 if kind == "squashed" else 1e-5)  # atanh of float32 actions near the edge
    result = agent.learn(data)
    assert abs(result["approx_kl"]) < 1e-9
    assert abs(result["policy_loss"]) < 1e-5  # minus the mean of normalised advantages
    assert result["n_updates"] == 1.0
    assert set(result) == {"policy_loss", "value_loss", "entropy", "approx_kl", "explained_var", "n_updates"}


def plain_update(agent, kind, data, params, rate):
    """One step of gradient descent on the PPO loss in float64, from the formulas; new leaves, and the losses."""
    values, value_leaves = forward64(agent._critic, data.observations)
    values = values[:, 0]
    ends = Bootstraps.of(data)
    outside = forward64(agent._critic, ends.observations)[0][:, 0].detach().numpy() if len(ends.rows) else np.zeros(0)
    gains, targets = advantages(data, values.detach().numpy(), ends, outside, params["gamma"], params["gae_lambda"])
    use = np.flatnonzero(ends.usable)
    a = gains[use].astype(np.float64)
    a = torch.as_tensor((a - a.mean()) / (a.std() + 1e-8))
    out, leaves = forward64(agent._actor, data.observations)
    log_prob, entropy = log_prob64(kind, out, data.actions)
    ratio = torch.exp(log_prob[use] - torch.as_tensor(np.asarray(data.log_probs, np.float64)[use]))
    clip = params["clip_ratio"]
    policy = -torch.min(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a).mean()
    value = 0.5 * ((values[use] - torch.as_tensor(targets[use].astype(np.float64))) ** 2).mean()
    loss = policy + params["vf_coef"] * value - params["entropy_coef"] * entropy[use].mean()
    gradients = torch.autograd.grad(loss, leaves + value_leaves)
    norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
    scale = min(1.0, params["max_grad_norm"] / (norm + 1e-6))
    new = [(p - rate * scale * g).detach().numpy() for p, g in zip(leaves + value_leaves, gradients, strict=True)]
    assert (ratio < 1 - clip).any()
    assert (ratio > 1 + clip).any()
    assert norm > params["max_grad_norm"]
    named = {"policy_loss": policy, "value_loss": value, "entropy": entropy[use].mean()}
    return new, {name: part.item() for name, part in named.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_one_update_is_that_of_the_plain_formulas(kind):
    params = {
        "n_epochs": 1, "minibatch_size": 1000, "entropy_coef": 0.3, "vf_coef": 0.7, "gamma": 0.9, "gae_lambda": 0.8,
        "clip_ratio": 0.15, "max_grad_norm": 0.4, "learning_rate": 0.5,
    }  # fmt: skip
    agent = make(kind, params=params, optimizer=lambda ps: torch.optim.SGD(ps, lr=0.1))
    data = foreign(kind)  # the last row leads nowhere known: it is not learned from
    out, _ = forward64(agent._actor, data.observations)
    noise = np.random.default_rng(1).normal(0, 0.4, len(data.rewards))
    data.log_probs = (log_prob64(kind, out, data.actions)[0].detach().numpy() + noise).tolist()
    expected, losses = plain_update(agent, kind, data, params, rate=0.5)
    before = [p.detach().numpy().copy() for p in agent._networks.trained]
    result = agent.learn(data)
    for name, value in losses.items():
        assert result[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    for p, old, new in zip(agent._networks.trained, before, expected, strict=True):
        assert np.abs(new - old).max() > 1e-3  # every leaf moves
        np.testing.assert_allclose(p.detach().numpy(), new, atol=2e-5)


def test_minibatches_are_steps_and_a_single_row_is_no_fault():
    agent = make(params={"n_epochs": 3, "minibatch_size": 1})
    result = agent.learn(foreign(n=6, final_obs=np.zeros(4)))
    assert result["n_updates"] == 18.0
    assert all(math.isfinite(v) for v in result.values())
    agent = make(params={"n_epochs": 1, "gamma": 0.0})
    value = float(agent._values(np.zeros((1, 4), np.float32))[0])
    alone = EpisodeData([[0.0] * 4], [1], [2.0], [True], [False], [{}], 0)
    assert agent.learn(alone)["policy_loss"] == pytest.approx(value - 2.0)  # the advantage as it is: it teaches


def test_rows_keep_their_order_however_they_are_cut_into_minibatches():
    """With a learning rate of 0 the parts over all minibatches are those of the whole window."""
    whole, parts = make(params={"learning_rate": 0.0}), make(params={"learning_rate": 0.0})
    data = windows(whole, n=1)[0]
    whole.set_hyperparams(HyperparamSet({"minibatch_size": 1000}))
    parts.set_hyperparams(HyperparamSet({"minibatch_size": 12}))
    data.log_probs = np.linspace(-2, 0, len(data.rewards))
    a, b = whole.learn(data), parts.learn(data)
    assert b["n_updates"] > a["n_updates"]
    for name in ("value_loss", "entropy", "approx_kl", "explained_var"):
        assert a[name] == pytest.approx(b[name], rel=1e-5)


# -- acting ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_seeds(kind):
    obs = np.random.default_rng(0).normal(size=(64, 4))
    first, again, other = (make(kind, seed=s) for s in (1, 1, 2))
    a, b, c = (agent.act_batch(obs) for agent in (first, again, other))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    first.act_deterministic(obs[0])
    first.act_batch_deterministic(obs)
    assert np.array_equal(first.act_batch(obs), again.act_batch(obs))  # the deterministic ones drew nothing


def test_kinds_of_actions():
    obs = np.zeros((5, 4), np.float64)
    discrete, gaussian = make(), make("gaussian")
    assert type(discrete.act(obs[0])) is int
    assert type(discrete.act_deterministic(obs[0].tolist())) is int
    assert discrete.act_batch(obs).shape == (5,)
    assert gaussian.act(obs[0]).shape == (2,)
    assert gaussian.act(obs[0]).dtype == np.float32
    assert gaussian.act_batch_deterministic(obs).shape == (5, 2)


def test_actions_come_as_often_as_their_probabilities_say():
    agent, obs = make(seed=5), np.array([0.3, -1.0, 0.5, 2.0])
    probs = agent.action_probs(obs)
    assert probs.dtype == np.float32
    assert probs.sum() == pytest.approx(1.0, abs=1e-6)
    out, _ = forward64(agent._actor, obs[None])
    np.testing.assert_allclose(probs, torch.softmax(out, 1)[0].detach().numpy(), atol=1e-6)
    n = 20_000
    share = (agent.act_batch(np.tile(obs, (n, 1))) == 1).mean()
    assert abs(share - probs[1]) < 5 * math.sqrt(probs[0] * probs[1] / n)  # 5 sigma: false alarm below 1e-6
    assert agent.act_deterministic(obs) == int(probs.argmax())


@pytest.mark.parametrize("kind", ["gaussian", "squashed"])
def test_gaussian_samples_follow_the_density_that_learning_uses(kind):
    """Mean and spread of many samples, by integrals of exp(log_prob) over unit range; the density integrates to 1."""
    agent, obs, n = make(kind, seed=7), np.array([0.1, 0.2, -0.3, 0.4]), 40_000
    grid = np.linspace(-1 + 1e-5, 1 - 1e-5, 8001) if kind == "squashed" else np.linspace(-12, 12, 8001)
    outputs = torch.as_tensor(agent._outputs(np.tile(obs, (len(grid), 1))))
    samples = agent._bounds.to_unit(agent.act_batch(np.tile(obs, (n, 1))))
    densities = []
    for d in range(2):  # the dimensions are independent: the other is held fixed, and normalised away below
        points = np.zeros((len(grid), 2))
        points[:, d] = grid
        targets = torch.as_tensor(
            agent._distribution.targets(agent._bounds.to_action(points), 2 * agent._bounds.low.size)
        )
        log_prob, _ = agent._distribution.log_prob_and_entropy(outputs, targets)
        density = np.exp(log_prob.double().numpy())
        mass = np.trapezoid(density, grid)
        densities.append(density[np.abs(grid).argmin()] / mass)
        mean = np.trapezoid(density * grid, grid) / mass
        spread = math.sqrt(np.trapezoid(density * (grid - mean) ** 2, grid) / mass)
        assert abs(samples[:, d].mean() - mean) < 5 * spread / math.sqrt(n)
        assert samples[:, d].std() == pytest.approx(spread, rel=0.03)
    joint = math.exp(float(agent._distribution.log_prob_and_entropy(
        outputs[:1], torch.as_tensor(agent._distribution.targets(agent._bounds.to_action(np.zeros((1, 2))), 4))
    )[0][0]))  # fmt: skip
    assert joint == pytest.approx(densities[0] * densities[1], rel=1e-2)  # so each one's integral is 1


def test_bounds():
    agent = make("gaussian")
    u = np.random.default_rng(0).normal(size=(50, 2)) * 2
    action = agent._bounds.to_action(u)
    assert (np.abs(action[:, 0]) > 2).any()  # not clipped
    np.testing.assert_allclose(agent._bounds.to_unit(action), u, atol=1e-5)
    np.testing.assert_allclose(agent._bounds.to_action(np.array([[-1.0, 1.0]])), [[-2.0, 10.0]])
    agent.set_action_bounds([-np.inf, 0.0], [5.0, 10.0])
    np.testing.assert_allclose(agent._bounds.to_action(np.array([[0.25, 0.0]])), [[0.25, 5.0]])
    with pytest.raises(ValueError, match="must have 2 numbers"):
        agent.set_action_bounds([-1.0], [1.0])
    with pytest.raises(ValueError, match="below its high"):
        agent.set_action_bounds([1.0, 0.0], [1.0, 1.0])
    squashed = make("squashed")
    actions = squashed.act_batch(np.random.default_rng(0).normal(size=(500, 4)) * 50)
    assert (actions >= [-2.0, 0.0]).all()
    assert (actions <= [2.0, 10.0]).all()


def test_networks_of_the_wrong_width_are_named():
    actor, critic = mlp(4, 3), mlp(4, 2)
    optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters()])
    agent = TorchGaussianPPOAgent(actor, critic, optimizer, 2, HyperparamSet({}), device="cpu")
    with pytest.raises(ValueError, match=r"actor must give 4 numbers.*got 3"):
        agent.act(np.zeros(4))
    agent = make()
    agent._networks.modules["critic"] = critic
    with pytest.raises(ValueError, match="one value for each of 12"):
        agent.learn(foreign())


@pytest.mark.parametrize("kind", KINDS)
def test_nan_is_acted_on_and_reported(kind):
    agent = make(kind)
    obs = np.full((3, 4), np.nan)
    obs[1] = 0.0
    actions = agent.act_batch(obs)
    middle = 0 if kind == "discrete" else [0.0, 5.0]
    assert np.array_equal(actions[0], middle)
    assert np.array_equal(agent.act_deterministic(obs[2]), middle)
    assert np.isfinite(actions).all()
    if kind == "discrete":
        assert agent._distribution.mode(np.array([[1.0, math.nan], [0.0, 1.0]])).tolist() == [0, 1]
    data = foreign(kind)
    data.observations[3][0] = math.nan
    assert not all(math.isfinite(v) for v in agent.learn(data).values())


def test_ruled_out_actions_are_no_nan():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp(4, 3)

        def forward(self, x):
            return self.net(x) + torch.tensor([0.0, -math.inf, 0.0])

    actor, critic = Masked(), mlp(4, 1)
    optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters()])
    agent = TorchPPOAgent(actor, critic, optimizer, HyperparamSet({}), device="cpu")
    assert set(agent.act_batch(np.random.default_rng(0).normal(size=(200, 4)))) == {0, 2}
    data = foreign()
    data.actions = [2 * a for a in data.actions]
    assert all(math.isfinite(v) for v in agent.learn(data).values())
    assert all(torch.isfinite(p).all() for p in actor.parameters())


# -- windows ---------------------------------------------------------------------------------------------------


def test_a_window_without_usable_rows_changes_nothing():
    agent = make(reward_normalizer=RewardNormalizer(), obs_normalizer=ObsNormalizer((4,)))
    before, moments = weights(agent), copy.deepcopy(agent._reward_normalizer.state_dict())
    lonely = foreign(n=1)
    assert agent.learn(lonely) == {}
    assert agent.learn(EpisodeData([], [], [], [], [], [], 0)) == {}
    assert same(before, weights(agent))
    assert same(moments, agent._reward_normalizer.state_dict())
    assert agent._obs_normalizer.rms.count < 1


def test_log_probs_that_are_given_are_used_and_checked():
    a, b, c = (make() for _ in range(3))
    out, _ = forward64(a._actor, foreign().observations)
    own = log_prob64("discrete", out, foreign().actions)[0].detach().numpy()
    plain = a.learn(foreign())
    assert b.learn(foreign(log_probs=own))["approx_kl"] == pytest.approx(plain["approx_kl"], abs=1e-5)
    assert c.learn(foreign(log_probs=own - 1.0))["approx_kl"] > plain["approx_kl"] + 0.1
    with pytest.raises(ValueError, match="one number for each of 12 rows, got 3"):
        a.learn(foreign(log_probs=[0.0] * 3))


def test_normalizers_see_a_window_after_it_was_learned_from():
    agent = make(obs_normalizer=ObsNormalizer((4,)), reward_normalizer=RewardNormalizer())
    data = windows(agent, n=1)[0]
    assert agent._obs_normalizer.rms.count < 1  # frozen while acting
    twin = make()
    first = agent.learn(data)
    assert agent._obs_normalizer.rms.count == pytest.approx(len(data.rewards), abs=1e-3)
    np.testing.assert_allclose(agent._obs_normalizer.rms.mean, data.observations.mean(0), atol=1e-3)
    scaled = copy.copy(data)
    scaled.rewards = agent._reward_normalizer.normalize(data.rewards)
    assert twin.learn(scaled)["value_loss"] == pytest.approx(first["value_loss"], rel=1e-4)
    assert agent._outputs(data.observations)[0] != pytest.approx(
        agent._networks.forward("actor", data.observations)[0]
    )  # acting normalises from now on


# -- hyperparameters -------------------------------------------------------------------------------------------


def test_hyperparameters():
    agent = make(params={"tag": "x", "n_extra": 3, "flag": True}, optimizer=lambda ps: torch.optim.Adam(ps, lr=2e-3))
    params = agent.get_hyperparams().params
    assert params["learning_rate"] == 2e-3  # none was given: the optimizer's own
    assert params["gae_lambda"] == 0.95
    params["gamma"] = 0.0
    assert agent.get_hyperparams().params["gamma"] == 0.99  # a copy went out
    agent.learn(foreign())
    moments = copy.deepcopy(agent._networks.optimizer.state_dict()["state"])
    agent.set_hyperparams(
        HyperparamSet({"learning_rate": 1e-4, "n_epochs": 3.6, "n_extra": 4.4, "flag": 0.0, "minibatch_size": 8}, 7)
    )
    now = agent.get_hyperparams()
    assert (now.episode_id, now.params["n_epochs"], now.params["n_extra"]) == (7, 4, 4)
    assert now.params["flag"] is False
    assert now.params["tag"] == "x"
    assert agent._networks.optimizer.param_groups[0]["lr"] == 1e-4
    kept = agent._networks.optimizer.state_dict()["state"]
    assert kept.keys() == moments.keys() != set()
    for key, state in kept.items():
        assert all(torch.equal(state[name], moments[key][name]) for name in state)
    with pytest.raises(ValueError, match="gamma must be from 0 to 1, got 2"):
        agent.set_hyperparams(HyperparamSet({"gamma": 2.0}))
    assert agent.get_hyperparams().params["gamma"] == 0.99
    assert agent.default_param_bounds["gamma"] == (0.95, 0.999)
    assert "learning_rate" in agent.default_log_params
    assert agent.is_on_policy


def test_parameter_groups_keep_their_proportion():
    actor, critic = mlp(4, 2), mlp(4, 1)
    optimizer = torch.optim.Adam(
        [{"params": actor.parameters(), "lr": 1e-3}, {"params": critic.parameters(), "lr": 3e-3}]
    )
    agent = TorchPPOAgent(actor, critic, optimizer, HyperparamSet({}), device="cpu")
    agent.set_hyperparams(HyperparamSet({"learning_rate": 1e-4}))
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-4, 3e-4])


def test_bad_arguments():
    actor, critic = mlp(4, 2), mlp(4, 1)
    both = torch.optim.Adam([*actor.parameters(), *critic.parameters()])
    with pytest.raises(ValueError, match=r"trains no parameter of critic.*list\(critic.parameters\(\)\)"):
        TorchPPOAgent(actor, critic, torch.optim.Adam(actor.parameters()), HyperparamSet({}))
    with pytest.raises(TypeError, match="actor must be a torch"):
        TorchPPOAgent(lambda x: x, critic, both, HyperparamSet({}))
    with pytest.raises(TypeError, match="must be a HyperparamSet"):
        TorchPPOAgent(actor, critic, both, {"gamma": 0.9})
    with pytest.raises(ValueError, match="device must be"):
        TorchPPOAgent(actor, critic, both, HyperparamSet({}), device="abacus")
    with pytest.raises(ValueError, match="n_threads must be at least 1"):
        TorchPPOAgent(actor, critic, both, HyperparamSet({}), n_threads=0)
    with pytest.raises(ValueError, match="action_dim must be at least 1"):
        TorchGaussianPPOAgent(actor, critic, both, 0, HyperparamSet({}))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="torch finds no CUDA"):
            TorchPPOAgent(actor, critic, both, HyperparamSet({}), device="cuda")


def test_without_torch_the_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r'TorchPPOAgent needs PyTorch: pip install "tensor-optix\[torch\]"'):
        TorchPPOAgent(None, None, None, HyperparamSet({}))


def test_importing_the_agents_imports_no_torch():
    code = (
        "import sys; import tensor_optix.algorithms.torch_ppo, tensor_optix.algorithms.torch_ppo_continuous;"
        "import tensor_optix.adapters.pytorch.torch_agent, tensor_optix.adapters.pytorch.torch_evaluator;"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "False"


def test_threads_are_the_networks_own_and_the_process_s_outside():
    seen = []

    class Watching(nn.Sequential):
        def forward(self, x):
            seen.append(torch.get_num_threads())
            return super().forward(x)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for n_threads, expected in ((None, 1), (3, 3)):
            seen.clear()
            actor, critic = Watching(*mlp(4, 2)), mlp(4, 1)
            optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters()])
            agent = TorchPPOAgent(actor, critic, optimizer, HyperparamSet({}), device="cpu", n_threads=n_threads)
            agent.act(np.zeros(4))
            agent.learn(foreign())
            assert set(seen) == {expected}
            assert torch.get_num_threads() == 2
        agent._networks.modules["critic"] = mlp(4, 2)
        with pytest.raises(ValueError, match="one value"):
            agent.learn(foreign())
        assert torch.get_num_threads() == 2  # also after an error
    finally:
        torch.set_num_threads(before)


def test_dropout_is_off_so_acting_and_learning_are_the_same_forward():
    actor = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 2))
    critic = mlp(4, 1)
    optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters()])
    params = HyperparamSet({"n_epochs": 1, "minibatch_size": 1000})
    agent = TorchPPOAgent(actor, critic, optimizer, params, device="cpu")
    assert abs(agent.learn(foreign())["approx_kl"]) < 1e-9


# -- files -----------------------------------------------------------------------------------------------------


def furnished(kind="gaussian", **kwargs):
    parts = {"obs_normalizer": ObsNormalizer((4,)), "reward_normalizer": RewardNormalizer()}
    return make(kind, **parts, **kwargs)


def everything(agent):
    """All that a rollback brings back, as arrays."""
    found = weights(agent)
    for key, state in agent._networks.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{key}.{name}": value.numpy().copy() for name, value in state.items()}
    for name, part in agent._parts.items():
        found |= {f"{name}.{key}": np.array(value) for key, value in part.state_dict().items()}
    params = agent.get_hyperparams()
    return found | {
        "hyperparams": np.array(json.dumps(params.params, sort_keys=True)),
        "id": np.array(params.episode_id),
    }


def test_loading_brings_everything_back(tmp_path):
    agent = furnished()
    for data in windows(agent, "gaussian", n=2):
        agent.learn(data)
    agent.set_hyperparams(HyperparamSet({"learning_rate": 1.7e-4, "extra": 2}, 5))
    agent.save_weights(str(tmp_path / "w"))
    before = everything(agent)
    for data in windows(agent, "gaussian", n=2):
        agent.learn(data)
    agent.set_hyperparams(HyperparamSet({"learning_rate": 1e-3, "extra": 9}, 6))
    agent.set_action_bounds([-1, -1], [1, 1])
    assert not same(before, everything(agent))
    agent.load_weights(str(tmp_path / "w"))
    assert same(before, everything(agent))
    assert agent._networks.optimizer.param_groups[0]["lr"] == 1.7e-4
    assert [id(p) for p in agent._networks.trained] == [
        id(p) for net in (agent._actor, agent._critic) for p in net.parameters()
    ]
    fresh = furnished(net_seed=9)
    fresh.load_weights(str(tmp_path / "w"))
    assert same(before, everything(fresh))
    names = {"actor.safetensors", "critic.safetensors", "optimizer.pt", "agent.json"}
    assert {file.name for file in (tmp_path / "w").iterdir()} == names
    from safetensors.numpy import load_file

    assert np.array_equal(load_file(tmp_path / "w" / "actor.safetensors")["0.weight"], before["actor.0.weight"])


@pytest.mark.parametrize("name", ["actor.safetensors", "critic.safetensors", "optimizer.pt", "agent.json"])
@pytest.mark.parametrize("harm", ["gone", "cut", "other"])
def test_a_load_that_fails_changes_nothing(tmp_path, name, harm):
    saver = furnished(net_seed=4)
    saver.learn(foreign("gaussian"))
    saver.save_weights(str(tmp_path))
    file = tmp_path / name
    if harm == "gone":
        file.unlink()
    elif harm == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        file.write_bytes(b"{}" * 50)
    agent = furnished(net_seed=1)
    agent.learn(foreign("gaussian", seed=3))
    before = everything(agent)
    with pytest.raises((ValueError, FileNotFoundError), match=name):
        agent.load_weights(str(tmp_path))
    assert same(before, everything(agent))


def test_another_network_is_refused_by_leaf_and_shapes(tmp_path):
    make(hidden=16).save_weights(str(tmp_path))
    agent = make(hidden=24)
    before = everything(agent)
    with pytest.raises(
        ValueError, match=r"leaf '0.weight' in .*actor.* has shape \[16, 4\], the network's has \[24, 4\]"
    ):
        agent.load_weights(str(tmp_path))
    with pytest.raises(ValueError, match="shape"):
        agent.average_weights([str(tmp_path)])
    assert same(before, everything(agent))
    with pytest.raises(ValueError, match=r"agent.json.*obs_normalizer"):
        make(obs_normalizer=ObsNormalizer((4,))).load_weights(str(tmp_path))


def test_only_safe_files_are_read(tmp_path):
    agent = make()
    agent.save_weights(str(tmp_path))
    ran = tmp_path / "ran"

    class Trap:
        def __reduce__(self):
            return (open, (str(ran), "w"))

    torch.save({"param_groups": [], "state": Trap()}, tmp_path / "optimizer.pt")
    with pytest.raises(ValueError, match="no optimizer state"):
        agent.load_weights(str(tmp_path))
    assert not ran.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_learning_is_bit_identical(tmp_path, kind):
    agent, obs = furnished(kind), np.random.default_rng(2).normal(size=(16, 4))
    data = windows(agent, kind, n=4)
    for window in data[:2]:
        agent.learn(window)
    agent.perturb_weights(0.01)
    agent.act_batch(obs)
    agent.save_state(str(tmp_path / "s"))
    fresh = furnished(kind, net_seed=8, seed=77)
    fresh.load_state(str(tmp_path / "s"))
    for one in (agent, fresh):
        one.acted = [one.act_batch(obs)]
        one.results = [one.learn(window) for window in data[2:]]
        one.perturb_weights(0.01)
        one.acted.append(one.act_batch(obs))
    assert agent.results == fresh.results
    assert np.array_equal(agent.acted, fresh.acted)
    assert same(everything(agent), everything(fresh))
    agent.save_weights(str(tmp_path / "w"))
    with pytest.raises(ValueError, match="no generators"):
        fresh.load_state(str(tmp_path / "w"))


def test_average_and_perturb(tmp_path):
    agents = [furnished(net_seed=s) for s in (1, 2, 3)]
    for i, agent in enumerate(agents):
        agent._obs_normalizer.update(np.full((2, 4), float(i)))
        agent.save_weights(str(tmp_path / str(i)))
    target = furnished(net_seed=5)
    target.learn(foreign("gaussian"))
    moments = {k: v for k, v in everything(target).items() if k.startswith("optimizer")}
    target.average_weights([str(tmp_path / str(i)) for i in range(3)])
    for leaf, value in weights(target).items():
        expected = np.mean([weights(agent)[leaf].astype(np.float64) for agent in agents], axis=0)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert np.array_equal(target._obs_normalizer.rms.mean, agents[0]._obs_normalizer.rms.mean)
    with pytest.raises(ValueError, match="at least one"):
        target.average_weights([])
    before = weights(target)
    target.perturb_weights(0.1)
    noise = np.concatenate([(weights(target)[k] / before[k] - 1).ravel() for k in before])
    assert abs(noise.mean()) < 5 * 0.1 / math.sqrt(noise.size)
    assert noise.std() == pytest.approx(0.1, rel=0.2)
    assert same(moments, {k: v for k, v in everything(target).items() if k.startswith("optimizer")})
    with pytest.raises(ValueError, match="noise_scale"):
        target.perturb_weights(-1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_onnx_is_the_policy(tmp_path, kind):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    agent = furnished(kind)
    agent.learn(foreign(kind))
    path = tmp_path / "policy.onnx"
    agent.export_onnx(str(path))
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    obs = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    (given,) = session.run(None, {"observation": obs})
    if kind == "discrete":
        np.testing.assert_allclose(given, agent._outputs(obs), atol=1e-5)
    else:
        np.testing.assert_allclose(agent._bounds.to_action(given), agent.act_batch_deterministic(obs), atol=1e-4)


def test_without_onnx_the_command_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r'pip install "tensor-optix\[onnx\]"'):
        make().export_onnx(str(tmp_path / "p.onnx"))


# -- in the loop -----------------------------------------------------------------------------------------------


def test_teardown_may_be_called_twice_and_leaves_a_working_agent():
    agent = make()
    agent.learn(foreign())
    agent.teardown()
    agent.teardown()
    assert agent.act(np.zeros(4)) in (0, 1)
    assert math.isfinite(agent.learn(foreign())["value_loss"])


def test_a_subclass_adds_to_the_diagnostics():
    class Trading(TorchPPOAgent):
        def learn(self, episode_data):
            diagnostics = super().learn(episode_data)
            with torch.no_grad():
                probs = torch.softmax(self._actor(torch.as_tensor(episode_data.observations[:256])), -1)
            diagnostics["p_flat"] = float(probs.mean(0)[0])
            assert self._critic is not None
            return diagnostics

    agent = make(cls=Trading)
    assert 0 < agent.learn(foreign())["p_flat"] < 1


def test_a_loop_with_checkpoints(tmp_path):
    agent = furnished("discrete")
    pipeline = BatchPipeline(Wander(), agent, window_size=64, seed=0)
    registry = CheckpointRegistry(tmp_path)
    result = LoopController(agent=agent, pipeline=pipeline, checkpoint_registry=registry, max_episodes=4).run()
    assert result.windows == 4
    assert result.best_snapshot is not None
    assert result.notes == []
    assert all(math.isfinite(m.metrics["policy_loss"]) for m in result.history)
    best = furnished("discrete", net_seed=3)
    registry.load(best, result.best_snapshot.snapshot_id)
    assert same(weights(best), weights(agent))


def test_a_nan_is_rolled_back(tmp_path):
    """The environment turns bad in the third window: weights, moments and normalisers come back clean."""
    agent, env = furnished("discrete"), Wander()
    rolled = []

    class Break(LoopCallback):
        def on_episode_end(self, episode_id, eval_metrics):
            env.broken = episode_id == 1

    learn = agent.learn

    def and_look(data):
        diagnostics = learn(data)
        rolled.append(all(np.isfinite(v).all() for k, v in everything(agent).items() if k[:2] not in ("hy", "id")))
        return diagnostics

    agent.learn = and_look

    pipeline = BatchPipeline(env, agent, window_size=64, seed=0)
    LoopController(
        agent=agent, pipeline=pipeline, checkpoint_registry=CheckpointRegistry(tmp_path), max_episodes=5,
        rollback_on_degradation=True, callbacks=[Break()],
    ).run()  # fmt: skip
    assert rolled[:3] == [True, True, False]
    assert rolled[3:] == [True, True]
    assert all(np.isfinite(v).all() for v in weights(agent).values())


@pytest.mark.slow
def test_cartpole_is_learned():
    """100k steps at most, deterministic mean return of 20 episodes at least 475; one seed."""
    torch.manual_seed(0)
    actor = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
    critic = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=1e-3)
    params = {"entropy_coef": 0.0, "gamma": 0.98, "gae_lambda": 0.8, "n_epochs": 20, "minibatch_size": 256}
    agent = TorchPPOAgent(actor, critic, optimizer, HyperparamSet(params), device="cpu")
    pipeline = VectorBatchPipeline([lambda: gym.make("CartPole-v1")] * 8, agent, window_size=32, seed=0)
    best, source = 0.0, pipeline.episodes()
    for window in range(100_000 // 256):
        agent.learn(next(source))
        share = 1.0 - (window + 1) * 256 / 100_000
        agent.set_hyperparams(HyperparamSet({"learning_rate": 1e-3 * share, "clip_ratio": 0.2 * share}))
        if window % 40 == 39:
            best = max(best, evaluated(agent))
            if best >= 475:
                break
    assert best >= 475


def evaluated(agent, episodes=20):
    env, returns = gym.make("CartPole-v1"), []
    for seed in range(episodes):
        obs, total, over = env.reset(seed=1000 + seed)[0], 0.0, False
        while not over:
            obs, reward, terminated, truncated, _ = env.step(agent.act_deterministic(obs))
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    return float(np.mean(returns))
