"""One update of DQN, SAC and TD3 written again, plainly, in PyTorch's float64."""

import math

import numpy as np
import torch

ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "silu": torch.nn.functional.silu}


def leaves(tree):
    """A nested dict or tuple of arrays as one of float64 tensors that want gradients."""
    if isinstance(tree, dict):
        return {name: leaves(value) for name, value in tree.items()}
    if isinstance(tree, tuple | list):
        return tuple(leaves(value) for value in tree)
    return torch.tensor(np.asarray(tree, np.float64), requires_grad=True)


def listed(tree):
    """Leaves in the order of JAX: dicts by sorted key."""
    if isinstance(tree, dict):
        return [leaf for name in sorted(tree) for leaf in listed(tree[name])]
    if isinstance(tree, tuple | list):
        return [leaf for value in tree for leaf in listed(value)]
    return [tree]


def mlp(tree, x, activation="relu"):
    for i in sorted(tree["hidden"]):
        layer = tree["hidden"][i]
        x = ACTIVATIONS[activation](x @ layer["kernel"] + layer["bias"])
    return x @ tree["head"]["kernel"] + tree["head"]["bias"]


def critic(tree, obs, action):
    return mlp(tree["mlp"], torch.cat([obs, action], -1))[:, 0]


def after_adam(tree, loss, rate, eps, max_norm=None):
    """Parameters after Adam's first step, as NumPy arrays in JAX's order."""
    values = listed(tree)
    grads = torch.autograd.grad(loss, values)
    if max_norm is not None:
        norm = math.sqrt(sum(float((g**2).sum()) for g in grads))
        grads = [g * min(1.0, max_norm / norm) for g in grads]
    # The first step's bias-corrected moments are the gradient and its square.
    return [(v - rate * g / (g.abs() + eps)).detach().numpy() for v, g in zip(values, grads, strict=True)]


def squashed(actor, obs, noise):
    """Action and log-probability of SAC's policy, by the change of variables as it stands in the paper."""
    mean, log_std = mlp(actor, obs).chunk(2, -1)
    log_std = log_std.clamp(-5.0, 2.0)
    raw = mean + log_std.exp() * noise
    normal = -0.5 * noise**2 - 0.5 * math.log(2 * math.pi) - log_std
    return torch.tanh(raw), (normal - torch.log(1 - torch.tanh(raw) ** 2)).sum(-1)


def dqn(online, target, batch, hyper, double):
    """Online parameters after one update, and temporal-difference errors."""
    online, target = leaves(online), leaves(target)
    with torch.no_grad():
        following = mlp(target, batch["next_obs"])
        best = (mlp(online, batch["next_obs"]) if double else following).argmax(-1)
        wanted = batch["reward"] + batch["discount"] * following.gather(1, best[:, None])[:, 0]
    value = mlp(online, batch["obs"]).gather(1, batch["action"].long()[:, None])[:, 0]
    loss = (batch["weight"] * torch.nn.functional.huber_loss(value, wanted, reduction="none")).mean()
    after = after_adam(online, loss, hyper["learning_rate"], hyper["adam_eps"], hyper["max_grad_norm"])
    return after, (value - wanted).detach().numpy()


def sac(actor, critics, target, log_alpha, batch, noise, hyper, action_dim):
    """Actor, critics and log_alpha after one update."""
    actor, critics, target = leaves(actor), leaves(critics), leaves(target)
    rate, eps, alpha = hyper["learning_rate"], hyper["adam_eps"], math.exp(log_alpha)
    with torch.no_grad():
        action, log_prob = squashed(actor, batch["next_obs"], noise[0])
        lower = torch.minimum(*(critic(one, batch["next_obs"], action) for one in target))
        wanted = batch["reward"] + batch["discount"] * (lower - alpha * log_prob)
    errors = [critic(one, batch["obs"], batch["action"]) - wanted for one in critics]
    critics_after = after_adam(critics, sum((batch["weight"] * e**2).mean() for e in errors), rate, eps)
    new = rebuilt(critics, critics_after)
    action, log_prob = squashed(actor, batch["obs"], noise[1])
    lower = torch.minimum(*(critic(one, batch["obs"], action) for one in new))
    actor_after = after_adam(actor, (batch["weight"] * (alpha * log_prob - lower)).mean(), rate, eps)
    tuned = torch.tensor([log_alpha], dtype=torch.float64, requires_grad=True)
    loss = -(tuned * (log_prob + hyper["target_entropy"] * action_dim).detach()).mean()
    return actor_after, critics_after, after_adam((tuned,), loss, rate, eps)[0]


def td3(actor, critics, target_actor, target_critics, batch, noise, hyper):
    """Actor and critics after one update of both."""
    actor, critics = leaves(actor), leaves(critics)
    target_actor, target_critics = leaves(target_actor), leaves(target_critics)
    rate, eps, clip = hyper["learning_rate"], hyper["adam_eps"], hyper["target_noise_clip"]
    with torch.no_grad():
        smoothing = (hyper["target_noise"] * noise).clamp(-clip, clip)
        action = (torch.tanh(mlp(target_actor, batch["next_obs"])) + smoothing).clamp(-1, 1)
        lower = torch.minimum(*(critic(one, batch["next_obs"], action) for one in target_critics))
        wanted = batch["reward"] + batch["discount"] * lower
    errors = [critic(one, batch["obs"], batch["action"]) - wanted for one in critics]
    critics_after = after_adam(critics, sum((batch["weight"] * e**2).mean() for e in errors), rate, eps)
    first = rebuilt(critics, critics_after)[0]
    loss = -(batch["weight"] * critic(first, batch["obs"], torch.tanh(mlp(actor, batch["obs"])))).mean()
    return after_adam(actor, loss, rate, eps), critics_after


def rebuilt(tree, values):
    """`values` in JAX's order in the form of `tree`."""
    left = iter(values)

    def build(part):
        if isinstance(part, dict):
            return {name: build(part[name]) for name in sorted(part)}
        if isinstance(part, tuple | list):
            return tuple(build(each) for each in part)
        return torch.tensor(next(left))

    return build(tree)
