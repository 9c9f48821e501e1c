"""The documented ways to train graphs of neurons: agents, growth, brains, plasticity, and all of it in one line."""

import itertools

import gymnasium as gym
import numpy as np
import pytest

from tensor_optix import BatchPipeline, EpisodeData, EvalMetrics, HyperparamSet, LoopCallback, RLOptimizer
from tensor_optix.neuroevo import BrainNetwork, GraphAgent, HebbianHook, NeuronGraph, TopologyController
from tests.host_parts import stop_after

SMALL = HyperparamSet({"n_epochs": 1, "minibatch_size": 64})


class Windows(BatchPipeline):
    """Ends after two windows: of a run that nobody stops."""

    def episodes(self):
        return itertools.islice(super().episodes(), 2)


class OldEnv:
    """Five steps, with what `env.step` gave before `terminated` and `truncated`. Fills a window while it goes."""

    def __init__(self, inputs):
        self.inputs, self.rng = inputs, np.random.default_rng(0)
        self.window = EpisodeData([], [], [], [], [], [], episode_id=0)

    def reset(self):
        self.obs = self.rng.normal(size=self.inputs).astype(np.float32)
        return self.obs

    def step(self, action):
        window = self.window
        reward, done = float(action), len(window.rewards) == 4
        row = (self.obs, action, reward, done, False, {})
        fields = ("observations", "actions", "rewards", "terminated", "truncated", "infos")
        for name, value in zip(fields, row, strict=True):
            getattr(window, name).append(value)
        return self.reset(), reward, done, {}


def graph_of(inputs=4, hidden=2, outputs=3, **options):
    """Fully connected from layer to layer; `options` are those of hidden neurons."""
    graph, rng = NeuronGraph(), np.random.default_rng(0)
    layers = [
        [graph.add_neuron("input", "linear") for _ in range(inputs)],
        [graph.add_neuron("hidden", "tanh", **options) for _ in range(hidden)],
        [graph.add_neuron("output", "linear") for _ in range(outputs)],
    ]
    for before, after in itertools.pairwise(layers):
        for u, v in itertools.product(before, after):
            graph.add_edge(u, v, abs(rng.normal()))
    return graph


def run_of(agent, windows=2, **settings):
    """On CartPole, whose observations have four numbers; with a score after each window."""
    pipeline = BatchPipeline(env=gym.make("CartPole-v1"), agent=agent, window_size=256, seed=0)
    opt = RLOptimizer(agent=agent, pipeline=pipeline, checkpoint_score_fn=lambda agent: 0.0, **settings)
    stop_after(opt, windows)
    return opt


class TestAgents:
    def test_a_graph_and_its_agent(self):
        from tensor_optix.neuroevo import GraphAgent, GRUNeuron, LSTMNeuron, NeuronGraph

        graph = NeuronGraph()

        for _ in range(4):
            graph.add_neuron(role="input", activation="linear")
        for _ in range(8):
            graph.add_neuron(role="hidden", activation="tanh")
        graph.add_neuron(role="hidden", neuron=GRUNeuron())
        graph.add_neuron(role="hidden", neuron=LSTMNeuron())
        for _ in range(2):  # the outputs of both actions, of which the document says nothing
            graph.add_neuron(role="output", activation="linear")
        graph.add_neuron(role="output", activation="linear")  # last output neuron is the value head
        src_id, dst_id = graph.input_ids[0], graph.output_ids[0]

        graph.add_edge(src_id, dst_id, weight=0.0, delay=0)  # feedforward (d=0)
        graph.add_edge(src_id, dst_id, weight=0.0, delay=1)  # recurrent (d>=1, reads from history buffer)

        agent = GraphAgent(graph, obs_dim=4, n_actions=2)
        assert agent.act(np.zeros(4)) in (0, 1)

    def test_trainable_recurrent_neurons(self):
        from tensor_optix.neuroevo import RecurrentGraphAgent, TrainableGRUNeuron, TrainableLSTMNeuron

        graph = NeuronGraph()
        # ... input and output neurons ...
        inputs = [graph.add_neuron(role="input") for _ in range(4)]
        outputs = [graph.add_neuron(role="output", activation="linear") for _ in range(3)]
        graph.add_neuron(role="hidden", neuron=TrainableGRUNeuron())
        graph.add_neuron(role="hidden", neuron=TrainableLSTMNeuron())
        for u, v in (*itertools.product(inputs, graph.hidden_ids), *itertools.product(graph.hidden_ids, outputs)):
            graph.add_edge(u, v, 0.3)

        agent = RecurrentGraphAgent(
            graph, obs_dim=4, n_actions=2,
            hyperparams=HyperparamSet(params={"chunk_len": 64}),
        )  # fmt: skip
        # Falls back to standard shuffled-minibatch PPO if no recurrent neurons are present
        assert agent.is_recurrent
        assert agent.get_hyperparams().params["chunk_len"] == 64
        assert agent.act(np.zeros(4)) in (0, 1)
        assert not RecurrentGraphAgent(graph_of(), obs_dim=4, n_actions=2).is_recurrent


class TestGrowth:
    @pytest.mark.slow
    def test_quickstart(self):
        import gymnasium as gym

        from tensor_optix import LoopController  # your existing loop
        from tensor_optix.neuroevo import GraphAgent, NeuronGraph, TopologyController

        # Build a minimal graph: 4 inputs, 2 hidden, 3 outputs (2 actions + 1 value)
        g = NeuronGraph()
        for _ in range(4):
            g.add_neuron(role="input", activation="linear")
        for _ in range(2):
            g.add_neuron(role="hidden", activation="tanh")
        for _ in range(3):
            g.add_neuron(role="output", activation="linear")
        for inp in g.input_ids:
            for hid in g.hidden_ids:
                g.add_edge(inp, hid, weight=0.1, delay=0)
        for hid in g.hidden_ids:
            for out in g.output_ids:
                g.add_edge(hid, out, weight=0.1, delay=0)

        agent = GraphAgent(graph=g, obs_dim=4, n_actions=2)
        ctrl = TopologyController(g, grow_op="insert_edge", grow_cooldown=20)
        pipeline = Windows(env=gym.make("CartPole-v1"), agent=agent, window_size=256, seed=0)

        # Plug into any tensor-optix LoopController
        loop = LoopController(agent=agent, pipeline=pipeline, callbacks=[ctrl])
        loop.run()

        assert loop.result.windows == 2
        assert loop.result.callback_failures == []
        assert ctrl.stats["score_buffer"] == 2

    def test_a_controller_for_a_graph(self):
        from tensor_optix.neuroevo import TopologyController

        graph = graph_of()
        opt = run_of(GraphAgent(graph, obs_dim=4, n_actions=2, hyperparams=SMALL))

        controller = TopologyController.for_graph(
            graph=graph,
            scheduler=opt._scheduler,
            grow_grad_threshold=0.7,         # fraction of hidden neurons with |grad| > eps required to grow
            prune_neuron_threshold=1e-4,     # importance score below this -> prune candidate
            prune_edge_threshold=1e-3,       # |weight| below this for prune_edge_patience episodes -> prune
            merge_similarity_threshold=0.95, # Pearson correlation threshold for merge
        )  # fmt: skip
        opt.add_callback(controller)
        opt.run()

        assert opt.result.callback_failures == []
        assert controller.stats["score_buffer"] == 2
        assert controller.stats["grad_util"] == 1.0

    def test_a_brain_of_three_regions(self):
        from tensor_optix.neuroevo import BrainNetwork, TopologyController

        sensory_graph, memory_graph, executive_graph = graph_of(4), graph_of(2, outputs=2), graph_of(2)

        brain = BrainNetwork()
        brain.add_region("sensory", sensory_graph)
        brain.add_region("memory", memory_graph)
        brain.add_region("executive", executive_graph)

        brain.add_pathway("sensory", "memory", n_connections=8, delay=1)
        brain.add_pathway("memory", "executive", n_connections=8, delay=0)
        opt = run_of(Padded(brain))

        controller = TopologyController.for_brain(brain, scheduler=opt._scheduler)

        assert controller.graph is brain
        assert controller.stats["n_regions"] == 3
        assert brain({"sensory": np.ones(4)}).shape == (3,)


class Padded(GraphAgent):
    """Only the first region sees the environment; what the others are shown is nothing."""

    def __init__(self, brain):
        super().__init__(brain, obs_dim=len(brain.input_ids), n_actions=2, hyperparams=SMALL)

    def _observations(self, obs):
        obs = np.asarray(obs, np.float32)
        return super()._observations(np.pad(obs, ((0, 0), (0, self.obs_dim - obs.shape[1]))))


class TestBrain:
    @pytest.mark.parametrize("built", [True, False])
    def test_four_regions(self, built, capsys, caplog):
        from tensor_optix.neuroevo import BrainNetwork, NeuronGraph

        sensory = NeuronGraph()  # build each region ...
        memory = NeuronGraph()
        executive = NeuronGraph()
        motor = NeuronGraph()
        if built:
            sensory, memory, executive, motor = (graph_of(4, outputs=n) for n in (2, 2, 2, 3))

        brain = BrainNetwork(name="agent_brain", output_regions=["motor"])
        brain.add_region("sensory", sensory)
        brain.add_region("memory", memory)
        brain.add_region("executive", executive)
        brain.add_region("motor", motor)

        # Sparse learnable pathways between regions (zero-weight at init — function preserving)
        brain.add_pathway("sensory", "memory", n_connections=8, delay=1)
        brain.add_pathway("memory", "executive", n_connections=4, delay=2)
        brain.add_pathway("executive", "motor", n_connections=16, delay=0)
        obs_tensor = np.ones(4 if built else 0, np.float32)

        out = brain({"sensory": obs_tensor})  # only motor region outputs
        print(brain.summary())

        assert out.shape == (3 if built else 0,)
        assert f"'inter_region_edges': {8 + 4 + 16 if built else 0}" in capsys.readouterr().out
        assert len(caplog.records) == (0 if built else 3)  # of pathways that are thinner than was asked for


class TestPlasticity:
    def test_by_hand(self):
        graph = graph_of()
        agent = GraphAgent(graph, obs_dim=4, n_actions=2, hyperparams=SMALL)
        env, episode = OldEnv(4), range(5)
        episode_data, obs = env.window, env.reset()
        before = [edge.weight for edge in graph.all_edges()]

        from tensor_optix.neuroevo import HebbianHook

        hook = HebbianHook(graph, hebbian_lr=1e-3, weight_decay=1e-4)

        for step in episode:  # noqa: B007
            action = agent.act(obs)
            hook.record()
            obs, reward, done, _ = env.step(action)

        agent.learn(episode_data)
        learned = [edge.weight for edge in graph.all_edges()]
        assert hook.n_steps_recorded == 5
        hook.apply()
        hook.reset()

        assert (step, done, reward) == (4, True, float(action))
        assert learned != before
        assert all(a != b for a, b in zip(learned, [edge.weight for edge in graph.all_edges()], strict=True))
        assert hook.n_steps_recorded == 0

    @pytest.mark.slow
    def test_of_a_brain(self):
        brain, training_loop, done = BrainNetwork(), range(1), False
        brain.add_region("sensory", graph_of(4, outputs=2))
        brain.add_region("motor", graph_of(2))
        brain.add_pathway("sensory", "motor")
        agent = GraphAgent(brain, obs_dim=6, n_actions=2, hyperparams=SMALL)
        env = OldEnv(6)
        episode_data = env.window

        from tensor_optix.neuroevo import HebbianHook

        # Attach to a single graph or all regions of a BrainNetwork
        hook = HebbianHook.from_brain(brain, hebbian_lr=1e-3, weight_decay=1e-4)

        for episode in training_loop:  # noqa: B007
            obs = env.reset()
            while not done:
                action = agent.act(obs)
                hook.record()  # snapshot co-activations after each forward pass
                obs, reward, done, _ = env.step(action)

            agent.learn(episode_data)  # PPO gradient update
            learned = [[edge.weight for edge in graph.all_edges()] for graph in brain.regions.values()]
            assert hook.n_steps_recorded == 5
            hook.apply_and_reset()  # Hebbian update + clear accumulators

        assert (episode, reward) == (0, float(action))
        after = [[edge.weight for edge in graph.all_edges()] for graph in brain.regions.values()]
        assert all(a != b for x, y in zip(learned, after, strict=True) for a, b in zip(x, y, strict=True))


def whole_stack():
    graph = graph_of()
    agent = GraphAgent(graph, obs_dim=4, n_actions=2, hyperparams=SMALL)
    return agent, HebbianHook(graph), TopologyController(graph)


def history_of(scores):
    return [EvalMetrics(float(score), {}, i) for i, score in enumerate(scores)]


RISING, NOISE = np.arange(12.0), np.random.default_rng(0).normal(0, 10, 30)


class TestNeuromodulation:
    def test_a_regime_is_applied(self):
        agent, hook, controller = whole_stack()
        metrics_history = history_of(RISING)

        from tensor_optix.core import RegimeDetector
        from tensor_optix.neuroevo import NeuromodulatorSignal

        detector = RegimeDetector()
        mod = NeuromodulatorSignal(hook=hook, agent=agent, controller=controller)

        regime = detector.detect(metrics_history)  # "trending" | "ranging" | "volatile"
        mod.apply(regime)
        # trending  -> lower entropy coefficient, reduce hebbian_lr (consolidate)
        assert regime == "trending"
        assert agent.get_hyperparams().params["entropy_coef"] == pytest.approx(0.005)
        assert hook.hebbian_lr == pytest.approx(5e-4)
        # volatile  -> raise entropy coefficient, raise grow thresholds (explore)
        mod.apply("volatile")
        assert agent.get_hyperparams().params["entropy_coef"] == pytest.approx(0.015)
        assert controller.grow_grad_threshold == pytest.approx(0.84)
        # ranging   -> raise hebbian_lr (local plasticity)
        mod.apply("ranging")
        assert hook.hebbian_lr == pytest.approx(2e-3)

    def test_a_signal_with_a_detector(self, capsys):
        agent, hook, tc = whole_stack()
        metrics_history = history_of(NOISE)

        from tensor_optix.core.regime_detector import RegimeDetector
        from tensor_optix.neuroevo import NeuromodulatorSignal

        signal = NeuromodulatorSignal(
            detector=RegimeDetector(),
            hebbian_hook=hook,          # modulates hebbian_lr
            agent=agent,                # modulates entropy_coef
            topology_controller=tc,     # modulates grow/prune thresholds
        )  # fmt: skip

        # In your training loop, after each episode:
        regime = signal.step(metrics_history)
        # "trending"  → dopamine ↑    — consolidate, lower plasticity, exploit
        # "ranging"   → acetylcholine ↑ — plateau, raise plasticity, grow topology
        # "volatile"  → norepinephrine ↑ — dampen Hebbian, boost exploration
        print(signal.state)

        assert regime == "volatile"
        assert hook.hebbian_lr == pytest.approx(3e-4)
        assert "'regime': 'volatile'" in capsys.readouterr().out

    @pytest.mark.slow
    def test_all_compose(self):
        """Dale-typed neurons in the regions of a brain, Hebbian in all of them, one signal for everything."""
        from tensor_optix.neuroevo import NeuromodulatorSignal

        brain = BrainNetwork(output_regions=["motor"])
        brain.add_region("sensory", graph_of(4, outputs=2, cell_type="excitatory"))
        brain.add_region("motor", graph_of(2, cell_type="inhibitory"))
        brain.add_pathway("sensory", "motor", n_connections=4, delay=1)
        brain.enforce_dale()
        agent, hook = Padded(brain), HebbianHook.from_brain(brain)
        opt = run_of(agent, callbacks=[hook])
        controller = TopologyController.for_brain(brain, scheduler=opt.scheduler, grow_op="split_neuron")
        opt.add_callback(controller)
        signal = NeuromodulatorSignal(hebbian_hook=hook, agent=agent, topology_controller=controller)

        class Signalling(LoopCallback):
            def on_episode_end(self, episode_id, eval_metrics):
                signal.apply("volatile")
                assert controller.grow()

        opt.add_callback(Signalling())
        opt.run()
        assert opt.result.callback_failures == []
        assert controller.stats["grow_count"] == 4  # two regions, two windows
        assert hook.hebbian_lr == pytest.approx(3e-4)
        sensory = brain.get_region("sensory")
        assert min(edge.weight for name in sensory.hidden_ids for edge in sensory.edges_from(name)) >= 0.0


def test_topology_aware_adam():
    from tensor_optix.neuroevo import TopologyAwareAdam, split_neuron

    graph = graph_of()

    optimizer = TopologyAwareAdam(graph.parameters(), lr=3e-4)
    split_neuron(graph, graph.hidden_ids[0])
    new_params = graph.parameters()
    optimizer.notify_topology_change(new_params)  # call after any topology mutation

    for param in graph.parameters():
        param.grad = np.ones(param.shape)
    before = graph.effective_weight(graph.all_edges()[-1].edge_id)
    optimizer.step()
    assert graph.effective_weight(graph.all_edges()[-1].edge_id) == pytest.approx(before - 3e-4, abs=1e-7)


def test_compiled_forward():
    graph = graph_of()
    src_id, dst_id = graph.hidden_ids[0], graph.output_ids[0]
    graph.forward(np.ones(4))
    before = graph.forward(np.ones(4))

    graph.compile_forward()  # one-time call; re-call after any topology mutation

    np.testing.assert_array_equal(graph.forward(np.ones(4)), before)

    graph.add_edge(src_id, dst_id, weight=0.0, delay=1)
    graph.invalidate_compile()

    np.testing.assert_array_equal(graph.forward(np.ones(4)), before)


def made(env_id):
    """The environment, or where its extra is not installed a small one with continuous actions."""
    try:
        return gym.make(env_id)
    except gym.error.DependencyNotInstalled:
        return gym.make("Pendulum-v1")


class TestOneLine:
    def test_agents_by_name(self):
        from tensor_optix import make_agent

        env = made("LunarLanderContinuous-v3")

        # Neuroevo path: NeuronGraph + GraphAgent with Hebbian + TopologyController
        agent = make_agent("SAC", env, neuroevo=True)
        assert isinstance(agent, GraphAgent)
        assert [type(callback) for callback in agent.callbacks] == [HebbianHook, TopologyController]
        assert len(agent.graph.hidden_ids) == 8

        agent = make_agent("PPO", env, neuroevo=True, graph_hidden=16, hebbian_lr=1e-3)
        assert len(agent.graph.hidden_ids) == 16
        assert agent.callbacks[0].hebbian_lr == 1e-3
        assert agent.act(env.reset(seed=0)[0]).shape == env.action_space.shape

    @pytest.mark.slow
    def test_an_optimizer(self):
        from tensor_optix import Optimizer, make_agent

        env = made("HumanoidStandup-v5")
        agent = make_agent("SAC", env, neuroevo=True)
        opt = Optimizer(agent, env)
        stop_after(opt, 1)
        opt.run()
        assert opt.result.callback_failures == []

        agent = make_agent("PPO", "CartPole-v1", neuroevo=True)  # of the environment that follows

        # Vectorized: 8 parallel envs
        opt = Optimizer(agent, lambda: gym.make("CartPole-v1"), n_envs=8)
        stop_after(opt, 1)
        opt.run()
        assert opt.result.callback_failures == []
        assert agent.callbacks[1].stats["score_buffer"] == 1
