"""make_agent(neuroevo=True), and Optimizer, which calls what the agent brings along."""

import copy

import gymnasium as gym
import numpy as np
import pytest

from tensor_optix import BatchPipeline, CheckpointRegistry, LoopController, Optimizer, make_agent
from tensor_optix.core.types import HyperparamSet
from tensor_optix.loop.events import LoopCallback
from tensor_optix.neuroevo import GraphAgent, GRUNeuron, HebbianHook, Neuron, TopologyController, split_neuron
from tests.algorithms.test_flax_ppo import CHOICES, DIMS, HIGH, LOW, OBS
from tests.algorithms.test_flax_recurrent_ppo_state import Seeded
from tests.runs import assert_same_bits

SMALL = {"graph_hidden": 2, "hyperparams": {"n_epochs": 1, "minibatch_size": 16}}


def env_of(kind="discrete", obs=None):
    env = Seeded(kind, 0)
    if obs is not None:
        env.observation_space = gym.spaces.Box(-1, 1, obs if isinstance(obs, tuple) else (obs,), np.float32)
    return env


def made(*arguments, kind="discrete", obs=None, **options):
    return make_agent(*arguments, env_of(kind, obs), neuroevo=True, **{**SMALL, **options})


def weights(agent):
    return {handle.name: np.array(handle.data) for handle in agent.graph.parameters()}


# -- what is made -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [("SAC",), ("PPO",), ("ppo",), ()])
@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_any_name_or_none(name, kind):
    """The name is of what the environment would get otherwise; what learns is a graph, by PPO."""
    agent = made(*name, kind=kind)
    assert type(agent) is GraphAgent
    assert agent.is_on_policy
    assert agent.continuous == (kind == "continuous")
    assert (agent.obs_dim, agent.n_actions) == (OBS, CHOICES if kind == "discrete" else DIMS)
    assert [type(each) for each in agent.callbacks] == [HebbianHook, TopologyController]
    assert agent.callbacks[0].graphs == [agent.graph]
    assert agent.callbacks[1].graph is agent.graph


def test_actions_are_those_of_the_environment():
    discrete, continuous = made(kind="discrete"), made(kind="continuous")
    obs = np.zeros((200, OBS), np.float32)
    starts = np.ones(200, bool)
    actions, _ = discrete.act_recurrent(obs, None, starts)
    assert np.bincount(actions, minlength=CHOICES).min() > 40  # nearly uniform
    actions, _ = continuous.act_recurrent(obs, None, starts)
    assert actions.shape == (200, DIMS)
    np.testing.assert_allclose(actions.mean(axis=0), np.mean([LOW, HIGH], axis=0), atol=1.0)


def classes(agent):
    return [type(agent.graph.get_neuron(name)) for name in agent.graph.hidden_ids]


def test_the_graph_by_default():
    agent = make_agent("PPO", env_of(), neuroevo=True)
    assert classes(agent) == [GRUNeuron] * 8
    assert len(agent.graph.input_ids) == OBS
    assert len(agent.graph.output_ids) == CHOICES + 1
    assert agent.graph.n_edges() == OBS * 8 + 8 * (CHOICES + 1)
    hook, controller = agent.callbacks
    assert (hook.hebbian_lr, hook.weight_decay, controller.grow_cooldown) == (1e-3, 1e-4, 20)


@pytest.mark.parametrize(("obs", "graph_in", "layer"), [(20, None, 16), (16, None, 0), (20, 20, 0), (3, 1, 1)])
def test_wide_observations_go_through_a_linear_layer(obs, graph_in, layer):
    agent = made(obs=obs, graph_in=graph_in)
    assert len(agent.graph.input_ids) == obs
    linear = [name for name in agent.graph.hidden_ids if type(agent.graph.get_neuron(name)) is Neuron]
    assert len(linear) == layer
    assert {agent.graph.get_neuron(name).activation for name in linear} <= {"linear"}
    assert len(agent.graph.hidden_ids) == layer + 2
    assert agent.graph.forward(np.ones(obs)).shape == (CHOICES + 1,)


def test_options_arrive():
    agent = made(
        "PPO", graph_hidden=5, graph_out=CHOICES + 1, hebbian_lr=0.02, hebbian_decay=0.03, grow_cooldown=7,
        hyperparams=HyperparamSet({"learning_rate": 0.5}),
    )  # fmt: skip
    hook, controller = agent.callbacks
    assert len(agent.graph.hidden_ids) == 5
    assert (hook.hebbian_lr, hook.weight_decay, controller.grow_cooldown) == (0.02, 0.03, 7)
    assert agent.get_hyperparams().params["learning_rate"] == 0.5


def test_a_seed():
    one, same, other = (made(seed=seed) for seed in (1, 1, 2))
    assert_same_bits(weights(one), weights(same))
    assert weights(one)["edge:e0"] != weights(other)["edge:e0"]
    obs = np.zeros((50, OBS), np.float32)
    actions = [each.act_recurrent(obs, None, np.ones(50, bool))[0] for each in (one, same, other)]
    np.testing.assert_array_equal(actions[0], actions[1])
    assert not np.array_equal(actions[0], actions[2])


BAD = [
    ({"graph_out": 3}, ValueError, "graph_out must be 4, one for each of 3 actions and the value's, got 3"),
    ({"graph_in": 0}, ValueError, "graph_in must be from 1 to the 3 numbers.*got 0"),
    ({"graph_in": 4}, ValueError, "graph_in must be from 1 to the 3 numbers.*got 4"),
    ({"graph_hidden": 0}, ValueError, "graph_hidden at least 1, got None and 0"),
    ({"hebbian_lr": -1.0}, ValueError, "hebbian_lr must be a number of at least 0"),
    ({"grow_cooldown": -1}, ValueError, "grow_cooldown must be .*0.*got -1"),
    ({"graph_hidden": 8.0}, TypeError, "graph_hidden must be a whole number, got 8.0"),
    ({"graph_hidden": "8"}, TypeError, "graph_hidden must be a whole number, got '8'"),
    ({"graph_hidden": True}, TypeError, "graph_hidden must be a whole number, got True"),
    ({"graph_hidden": None}, TypeError, "graph_hidden must be a whole number, got None"),
    ({"graph_in": 2.5}, TypeError, "graph_in must be a whole number or None, got 2.5"),
    ({"graph_out": "4"}, TypeError, "graph_out must be a whole number or None, got '4'"),
    ({"grow_cooldown": 2.5}, TypeError, "grow_cooldown must be a whole number, got 2.5"),
    ({"hebbian_lr": "fast"}, TypeError, "hebbian_lr must be a number, got 'fast'"),
    ({"hebbian_decay": None}, TypeError, "hebbian_decay must be a number, got None"),
    ({"hyperparams": 3}, TypeError, "hyperparams must be a HyperparamSet or a mapping.*got 3"),
    ({"device": "quantum"}, ValueError, "device must be 'auto'"),
    ({"hyperparams": {"learning_rate": -1.0}}, ValueError, "learning_rate"),
    ({"obs": (4, 4, 3)}, NotImplementedError, r"vectors, got framework 'jax' and observations \["),
    ({"framework": "torch"}, NotImplementedError, "makes an agent in JAX.*got framework 'torch'"),
    ({"framework": "tf"}, NotImplementedError, "makes an agent in JAX.*got framework 'tf'"),
    ({"framework": "caffe"}, ValueError, "unknown framework 'caffe'"),
    ({"deterministic": True}, ValueError, "deterministic"),
]


@pytest.mark.parametrize(("options", "error", "said"), BAD, ids=[str(row[0]) for row in BAD])
def test_what_does_not_fit_is_refused(options, error, said):
    with pytest.raises(error, match=said) as caught:
        made("PPO", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"graph_hidden": 4}, "got graph_hidden=4: expected neuroevo=True"),
        ({"graph_in": 2, "grow_cooldown": 3}, "got graph_in=2, grow_cooldown=3: expected neuroevo=True"),
        ({"graph_out": 4}, "got graph_out=4"),
        ({"hebbian_lr": 0.1, "hebbian_decay": 0.0}, "got hebbian_lr=0.1, hebbian_decay=0.0"),
    ],
)
def test_options_of_the_graph_need_a_graph(options, said):
    for names in (("PPO",), ()):
        with pytest.raises(ValueError, match=f"^without neuroevo=True there is no graph, {said}"):
            make_agent(*names, env_of(), **options)


def test_options_as_they_are_by_default_need_none():
    agent = make_agent("PPO", env_of(), hidden_sizes=(4,), graph_hidden=8, graph_in=None, hebbian_lr=1e-3)
    assert not isinstance(agent, GraphAgent)


def test_numbers_of_numpy_are_numbers():
    agent = made(graph_hidden=np.int64(3), graph_in=np.int32(OBS), hebbian_lr=np.float32(0.5), grow_cooldown=np.int8(2))
    assert len(agent.graph.hidden_ids) == 3


def test_names_that_are_none_are_refused():
    with pytest.raises(ValueError, match="unknown algorithm 'nonsense'"):
        made("nonsense")
    with pytest.raises(NotImplementedError, match="got framework 'torch'"):
        made("TorchPPOAgent")
    with pytest.raises(TypeError, match="has no environment to fit"):
        make_agent("PPO", neuroevo=True)


# -- a run ------------------------------------------------------------------------------------------------------------


def run_of(folder, agent, windows=3, callbacks=None, kind="discrete", **settings):
    """A score after each window, the first of which is the best."""
    opt = Optimizer(
        agent, Seeded(kind, 0), window_size=24, max_episodes=windows, callbacks=callbacks, checkpoint_dir=folder,
        checkpoint_score_fn=lambda agent: -float(agent.graph.n_neurons()), **settings,
    )  # fmt: skip
    opt.run()
    assert opt.result.callback_failures == []
    assert opt.result.windows == windows
    return opt


@pytest.mark.parametrize("kind", ["discrete", pytest.param("continuous", marks=pytest.mark.slow)])
def test_the_hook_is_applied_and_the_controller_told(tmp_path, kind):
    """Where PPO changes nothing the Hebbian rule is what does."""
    still = {**SMALL["hyperparams"], "learning_rate": 0.0}
    moved = {}
    for lr in (0.0, 0.1):
        agent = made(kind=kind, hyperparams=still, hebbian_lr=lr, hebbian_decay=0.0)
        before = weights(agent)
        opt = run_of(tmp_path / str(lr), agent, kind=kind, optimizer=Untuned())
        after = weights(agent)
        moved[lr] = {name for name in before if not np.array_equal(before[name], after[name])}
        controller = agent.callbacks[1]
        assert controller.stats["score_buffer"] == len(opt.result.history) == 3
        assert controller.stats["grad_util"] == 1.0
    assert moved[0.0] == set()
    edges = {handle.name for handle in agent.graph.parameters() if handle.field == "edge"}
    assert moved[0.1] <= edges
    assert len(moved[0.1]) > len(edges) / 2


class Untuned:
    """A tuner that leaves everything as it is."""

    def suggest(self, hyperparams, history):
        return hyperparams

    def on_improvement(self, metrics):
        pass

    def on_plateau(self, history):
        pass


def test_callbacks_that_are_handed_over_too_are_called_once(tmp_path):
    runs = {}
    for name in ("agent's own", "handed over", "one of them", "added"):
        agent = made(hebbian_lr=0.1)
        calls = []
        hook = agent.callbacks[0]
        agent.callbacks[0].on_episode_end = lambda *args, hook=hook, calls=calls: (
            calls.append(args), HebbianHook.on_episode_end(hook, *args)
        )  # fmt: skip
        given = {"handed over": list(agent.callbacks), "one of them": agent.callbacks[1:]}.get(name)
        if name == "added":
            opt = Optimizer(
                agent, Seeded("discrete", 0), window_size=24, max_episodes=3, checkpoint_dir=tmp_path / name,
                checkpoint_score_fn=lambda agent: -float(agent.graph.n_neurons()),
            )  # fmt: skip
            for callback in agent.callbacks:
                opt.add_callback(callback)
            opt.run()
        else:
            run_of(tmp_path / name, agent, callbacks=given)
        assert len(calls) == 3
        assert agent.callbacks[1].stats["score_buffer"] == 3
        runs[name] = weights(agent)
    for name in ("handed over", "one of them", "added"):
        assert_same_bits(runs[name], runs["agent's own"])


def test_the_best_graph_comes_back_after_growth(tmp_path):
    """The first window's is the best, as the score has it; two more neurons have come since."""
    agent = made(grow_cooldown=0)
    controller = agent.callbacks[1]
    controller.grow_op, sizes = "split_neuron", []

    class Grow(LoopCallback):
        def on_episode_end(self, episode_id, eval_metrics):
            sizes.append(agent.graph.n_neurons())
            assert controller.grow()

    run_of(tmp_path, agent, windows=3, callbacks=[Grow()])
    first = OBS + 2 + CHOICES + 1
    assert sizes == [first, first + 1, first + 2]
    assert agent.graph.n_neurons() == first
    assert agent.act(np.zeros(OBS)) in range(CHOICES)


def test_an_agent_that_was_trained_can_be_copied_and_trained_again(tmp_path):
    agent = made()
    run_of(tmp_path / "first", agent, windows=2)
    twin = copy.deepcopy(agent)
    assert twin.graph is not agent.graph
    assert twin.callbacks[1].graph is twin.graph
    assert twin.callbacks[0].graphs == [twin.graph]
    split_neuron(twin.graph, twin.graph.hidden_ids[0])
    assert twin.graph.n_neurons() == agent.graph.n_neurons() + 1
    run_of(tmp_path / "again", agent, windows=2)
    assert agent.callbacks[1].stats["score_buffer"] == 4
    assert twin.callbacks[1].stats["score_buffer"] == 2


@pytest.mark.parametrize("handed", ["none", "all", "one", "added", "added within the run"])
def test_a_loop_of_ones_own_calls_them_once_too(tmp_path, handed):
    agent = made(hebbian_lr=0.1)
    hook, controller = agent.callbacks
    calls = []
    hook.on_episode_end = lambda *args: (calls.append(args), HebbianHook.on_episode_end(hook, *args))
    given = {"all": list(agent.callbacks), "one": [hook]}.get(handed, [])
    env = Seeded("discrete", 0)

    class Adds:
        def on_loop_start(self):
            loop.add_callback(hook)

    given = [*given, Adds()] if handed == "added within the run" else given
    loop = LoopController(
        agent, pipeline=BatchPipeline(env, agent, 24), callbacks=given, max_episodes=3,
        checkpoint_registry=CheckpointRegistry(tmp_path), checkpoint_score_fn=lambda agent: 0.0,
    )  # fmt: skip
    if handed == "added":
        for callback in agent.callbacks:
            loop.add_callback(callback)
    assert loop.run().callback_failures == []
    assert len(calls) == 3
    assert controller.stats["score_buffer"] == 3


@pytest.mark.slow
def test_several_environments(tmp_path):
    agent = made("PPO")
    opt = Optimizer(
        agent, lambda: Seeded("discrete", 0), n_envs=3, window_size=24, max_episodes=3, checkpoint_dir=tmp_path,
        checkpoint_score_fn=lambda agent: 0.0,
    )  # fmt: skip
    assert opt.run().callback_failures == []
    assert agent.callbacks[1].stats["score_buffer"] == 3


@pytest.mark.slow
def test_a_wide_environment(tmp_path):
    """As many numbers and joints as a humanoid has."""

    class Wide(gym.Env):
        observation_space = gym.spaces.Box(-np.inf, np.inf, (348,), np.float64)
        action_space = gym.spaces.Box(-0.4, 0.4, (17,), np.float32)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.t = 0
            return self.np_random.normal(size=348), {}

        def step(self, action):
            self.t += 1
            return self.np_random.normal(size=348), float(np.sum(action)), False, self.t == 20, {}

    env = Wide()
    agent = make_agent("SAC", env, neuroevo=True)
    assert agent.graph.n_neurons() == 348 + 16 + 8 + 18
    opt = Optimizer(agent, env, window_size=200, max_episodes=2, checkpoint_dir=tmp_path)
    assert opt.run().callback_failures == []
    assert agent.callbacks[1].stats["score_buffer"] == 2
