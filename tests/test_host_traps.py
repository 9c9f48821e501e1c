"""What a host run must not get wrong: a test for each trap, named for what must be true.

Traps that other tests show already:

Loop
elsewhere: a run whose tuner never probes does not converge ->
    tests/loop/test_host.py::TestSixMethods::test_it_converges_without_a_tuner_and_the_best_comes_back
elsewhere: a fall is seen and not rolled back ->
    tests/loop/test_host.py::TestObeying::test_a_collapse_is_rolled_back_with_its_hyperparameters
elsewhere: the first DORMANT ends the run though it was handled ->
    tests/loop/test_host.py::TestObeying::test_a_handled_dormant_goes_on
elsewhere: the training score is the best that validation must beat ->
    tests/loop/test_host.py::TestEvaluation::test_the_validation_decides
elsewhere: acting in an evaluation fills the agent's cache ->
    tests/loop/test_host.py::TestEvaluation::test_acting_in_an_evaluation_leaves_no_trace
elsewhere: a score is credited to the next hyperparameters ->
    tests/loop/test_host.py::TestTuning (the tests of SPSA, and of a tuner of the user's own)
elsewhere: a NaN is the best for ever, or never stops ->
    tests/loop/test_host.py::TestObeying::test_nan_scores_are_never_the_best_and_stop_the_third_time
elsewhere: weights come back without their hyperparameters ->
    tests/loop/test_host.py::TestTuning::test_the_best_policys_hyperparameters_come_back
elsewhere: a failing callback is not told of ->
    tests/loop/test_host.py::TestObeying::test_a_failing_callback_is_reported_once_and_the_run_goes_on
elsewhere: a missing library of a callback is not told of ->
    tests/callbacks/test_records.py::test_a_missing_library_comes_with_the_command
elsewhere: a window beyond the budget ->
    tests/loop/test_host.py::TestObeying::test_the_budget_collects_no_window_too_many
elsewhere: learn() -> None ends the run -> the same: its agent returns nothing
elsewhere: a bonus for novelty counts as score ->
    tests/pipeline/test_rnd.py::test_the_score_is_of_the_tasks_rewards_only

Diagnostics
elsewhere: a learning rate that was halved stays so ->
    tests/core/test_diagnostic_controller.py::test_high_kl_halves_the_learning_rate_and_gives_it_back
elsewhere: a rule halves without end ->
    tests/core/test_diagnostic_controller.py::test_a_cause_that_stays_moves_it_by_a_bounded_factor

Checkpoints
elsewhere: the newest comes back, not the best ->
    tests/loop/test_checkpoint_registry.py::test_the_best_comes_back_after_later_saves
elsewhere: pruning removes the best ->
    tests/loop/test_checkpoint_registry.py::test_pruning_leaves_the_best_and_the_newest
elsewhere: a NumPy scalar cannot be saved ->
    tests/loop/test_checkpoint_registry.py::test_a_snapshot_says_what_was_saved
elsewhere: half a snapshot is left over ->
    tests/loop/test_checkpoint_registry.py::test_an_agent_that_fails_halfway_leaves_the_old_ones
elsewhere: a file cut short ends the run ->
    tests/loop/test_checkpoint_registry.py::test_no_damage_to_the_best_goes_unnoticed
elsewhere: a moved directory loads nothing -> tests/loop/test_checkpoint_registry.py::test_a_moved_directory_loads
elsewhere: a run cannot be gone on with -> tests/test_optimizer.py::TestResume::test_n_and_n_more_are_2n
elsewhere: pickles are written -> tests/test_layers.py::test_no_pickle

Pipelines
elsewhere: truncation is recorded as termination ->
    tests/pipeline/test_batch.py::test_termination_and_truncation_are_kept_apart
elsewhere: truncation cuts the bootstrap -> tests/core/test_window_returns.py::test_against_the_formula
elsewhere: an end leads to the reset's observation ->
    tests/pipeline/test_batch.py::test_final_observations_are_the_terminal_ones
elsewhere: an exception is a termination with reward 0 ->
    tests/pipeline/test_batch.py::test_a_failed_step_cuts_the_episode
elsewhere: environments are not seeded -> tests/pipeline/test_batch.py::test_the_seed_is_used_once
elsewhere: nor are several -> tests/pipeline/test_vector_batch.py::test_environment_i_is_seeded_with_seed_plus_i
elsewhere: one environment's row leads to another's ->
    tests/pipeline/test_vector_batch.py::test_sync_equals_each_environment_alone
elsewhere: a reset is a row -> tests/pipeline/test_vector_batch.py::test_next_step_resets_are_no_rows
elsewhere: lambdas are not sent to processes ->
    tests/pipeline/test_vector_batch.py::test_async_equals_each_environment_alone
elsewhere: a live thread outlives teardown -> tests/pipeline/test_live.py::test_teardown_while_the_buffer_is_full
elsewhere: a slow learner loses items -> tests/pipeline/test_live.py::test_a_source_waits_for_a_slow_learner
elsewhere: a slow learner restarts the stream ->
    tests/pipeline/test_live.py::test_a_slow_learner_is_not_a_silent_source
elsewhere: actions do not reach a live source -> tests/pipeline/test_live.py::test_actions_go_back_to_the_source
elsewhere: a window does not tell what its last row led to ->
    tests/pipeline/test_batch.py::test_final_obs_within_an_episode_is_the_next_windows_first
elsewhere: a window's last row is not learned from ->
    tests/core/test_window_returns.py::test_a_window_of_one_environment_takes_one_final_observation
elsewhere: a window's last row has no bonus ->
    tests/pipeline/test_rnd.py::test_the_bonus_is_that_of_what_an_action_led_to

Agents
elsewhere: FlaxPPO needs a cache of its own -> tests/algorithms/test_flax_ppo.py::test_a_foreign_window_of_lists
elsewhere: TFPPO needs a cache of its own -> tests/algorithms/test_tf_ppo.py::TestLearning::test_data_made_by_others
elsewhere: FlaxPPO is compiled anew, or not at all -> tests/algorithms/test_flax_ppo.py::test_nothing_is_compiled_anew
elsewhere: FlaxPPO does not clip ->
    tests/algorithms/test_flax_ppo.py::test_a_window_is_learned_from_as_by_the_equations
elsewhere: Flax agents cannot be averaged -> tests/adapters/test_flax_agent.py::test_the_mean_of_saved_weights
elsewhere: Flax agents cannot be perturbed -> tests/adapters/test_flax_agent.py::test_noise_on_the_weights
elsewhere: returns leak across episodes, TorchAgent ->
    tests/adapters/test_torch_agent.py::test_one_step_is_that_of_the_formula
elsewhere: returns leak across episodes, FlaxAgent ->
    tests/adapters/test_flax_agent.py::test_one_step_of_plain_gradient_descent
elsewhere: returns leak across episodes, TFAgent ->
    tests/adapters/test_tf_agent.py::test_reinforce_against_the_gradient_written_out

Config
elsewhere: 3e-4 is text -> tests/test_config.py::TestNumbers, test_host_config.py::TestDefaults::test_numbers
elsewhere: unknown settings pass -> tests/test_host_config.py::TestRefusals::test_one_sentence
elsewhere: a seed does not reach the environment ->
    tests/test_building.py::TestSeeds::test_one_seed_is_in_weights_actions_and_environments
elsewhere: nor does one in a file -> tests/test_cli_host.py::TestTrain::test_the_same_seed_is_the_same_run
elsewhere: a live pipeline takes an environment ->
    tests/pipeline/test_live.py::test_a_gymnasium_environment_is_no_live_source
"""

import json
import pickle
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from tensor_optix.adapters.jax.flax_evaluator import FlaxEvaluator
from tensor_optix.adapters.pytorch.torch_evaluator import TorchEvaluator
from tensor_optix.adapters.tensorflow.tf_evaluator import TFEvaluator
from tensor_optix.algorithms.flax_ppo import FlaxPPOAgent
from tensor_optix.algorithms.flax_ppo_continuous import FlaxGaussianPPOAgent
from tensor_optix.building import build_agent_from_config
from tensor_optix.config import ConfigError, config_from_dict
from tensor_optix.core.diagnostic_controller import DiagnosticController
from tensor_optix.core.types import EpisodeData, HyperparamSet, LoopState, StopReason
from tensor_optix.loop.checkpoint_registry import CheckpointRegistry
from tensor_optix.loop.durable import RunDirError
from tensor_optix.loop.events import LoopCallback
from tensor_optix.loop.host import LoopController
from tensor_optix.optimizer import Optimizer, RLOptimizer
from tensor_optix.optimizers.spsa import SPSAOptimizer
from tensor_optix.pipeline import BatchPipeline, LivePipeline
from tests.host_parts import Plain, Source, window_of

PPO = {"n_epochs": 1, "minibatch_size": 16, "learning_rate": 1e-3, "entropy_coef": 1e-3}


def torch_ppo(kind="discrete", n_in=1, log_std=0.0, rate=1e-3):
    """TorchPPOAgent over 2 actions or TorchGaussianPPOAgent over 1, one layer each, weights by a seed."""
    torch = pytest.importorskip("torch")
    from tensor_optix.algorithms.torch_ppo import TorchPPOAgent
    from tensor_optix.algorithms.torch_ppo_continuous import TorchGaussianPPOAgent

    actor, critic = torch.nn.Linear(n_in, 2), torch.nn.Linear(n_in, 1)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for leaf in (*actor.parameters(), *critic.parameters()):
            leaf.copy_(torch.as_tensor(0.3 * rng.normal(size=tuple(leaf.shape))))
        if kind == "gaussian":
            actor.weight[1], actor.bias[1] = 0.0, log_std
    optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=rate)
    shape, cls = ((), TorchPPOAgent) if kind == "discrete" else ((1,), TorchGaussianPPOAgent)
    hyperparams = HyperparamSet({**PPO, "learning_rate": rate})
    return cls(actor, critic, optimizer, *shape, hyperparams, device="cpu", seed=0)


def flax_ppo(kind="discrete", n_in=1):
    cls, width = (FlaxPPOAgent, 2) if kind == "discrete" else (FlaxGaussianPPOAgent, 1)
    return cls(n_in, width, HyperparamSet(dict(PPO)), hidden_sizes=(4,), seed=0)


AGENTS = {"torch": torch_ppo, "flax": flax_ppo}


def foreign(kind="discrete", n=12, scale=1.0, n_in=1):
    """A window that somebody else collected: lists, and nothing beyond what a window must have."""
    rng = np.random.default_rng(1)
    actions = rng.integers(2, size=n).tolist() if kind == "discrete" else rng.normal(size=(n, 1)).tolist()
    ends = [t % 5 == 4 for t in range(n)]
    rewards = (scale * rng.normal(size=n)).tolist()
    return EpisodeData(rng.normal(size=(n, n_in)).tolist(), actions, rewards, ends, [False] * n, [{}] * n, 0)


def saved_bytes(agent, path):
    """Everything that `save_weights` writes."""
    agent.save_weights(str(path))
    return {p.name: p.read_bytes() for p in sorted(Path(path).iterdir())}


class Scored(gym.Env):
    """Episodes of one step, whose reward is the action."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (1,), np.float32), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), float(action), True, False, {}


class TestLoop:
    @pytest.mark.parametrize("size", [200, 700, 2048])
    def test_a_perfect_policy_scores_the_same_in_windows_of_every_size(self, tmp_path, size):
        def collect(i):  # episodes of 500 steps, a reward of 1 each
            return window_of([1.0] * size, ends=[t for t in range(size) if (i * size + t + 1) % 500 == 0], episode_id=i)

        registry = CheckpointRegistry(tmp_path)
        loop = LoopController(Plain(), pipeline=Source(collect), checkpoint_registry=registry, max_episodes=60)
        assert {m.primary_score for m in loop.run().history} == {500.0}

    @pytest.mark.parametrize("evaluator", [FlaxEvaluator, TorchEvaluator, TFEvaluator])
    def test_evaluators_tell_a_perfect_policy_from_a_random_one(self, evaluator):
        def score(length):
            return evaluator().score(window_of([1.0] * 2048, ends=range(length - 1, 2048, length)), {}).primary_score

        assert (score(22), score(500)) == (22.0, 500.0)

    @pytest.mark.parametrize("settings", [{}, {"min_degradation_drop": 1e-4}])
    def test_a_tiny_loss_below_a_best_of_zero_is_no_degradation(self, tmp_path, settings):
        told, falls = [0.0, *-1e-9 * (np.ones(60) if settings else np.random.default_rng(0).random(60))], []

        class Falls(LoopCallback):
            def on_degradation(self, episode_id, eval_metrics):
                falls.append(episode_id)

        scores = iter(told)
        RLOptimizer(
            Plain(), Source(), checkpoint_dir=tmp_path, callbacks=[Falls()], rollback_on_degradation=True,
            max_episodes=60, checkpoint_score_fn=lambda agent: next(scores), **settings,
        ).run()  # fmt: skip
        assert falls == []

    @pytest.mark.parametrize("why", ["stop", "target", "dormant"])
    def test_no_window_is_collected_after_the_last_one(self, tmp_path, why):
        class Stops(LoopCallback):
            def on_episode_end(self, episode_id, eval_metrics):
                if why == "stop" and episode_id == 4:
                    loop.stop()

        source, target = Source(), {"target_score": 1.0} if why == "target" else {}
        registry = CheckpointRegistry(tmp_path)
        loop = LoopController(
            Plain(), pipeline=source, checkpoint_registry=registry, callbacks=[Stops()], max_episodes=500, **target
        )
        result = loop.run()
        reasons = {"stop": StopReason.INTERRUPTED, "target": StopReason.TARGET, "dormant": StopReason.CONVERGED}
        assert result.stop_reason == reasons[why]
        assert source.collected == result.windows < 500

    def test_a_live_stream_without_an_item_ends_the_run(self, tmp_path):
        class Silent:
            def stream(self):
                return iter(())

        opt = RLOptimizer(Plain(), LivePipeline(Silent()), checkpoint_dir=tmp_path)
        result = opt.run()
        assert (result.stop_reason, result.windows, opt.best_snapshot) == (StopReason.EXHAUSTED, 0, None)

    def test_factories_alone_can_be_asked_and_stopped_before_the_run(self, tmp_path):
        opt = RLOptimizer(agent_factory=Plain, pipeline_factory=Source, checkpoint_dir=tmp_path)
        assert (opt.best_snapshot, opt.state, opt.result) == (None, LoopState.ACTIVE, None)
        opt.stop()
        assert opt.run().windows == 0
        assert isinstance(opt.agent, Plain)

    def test_validation_may_act_deterministically_while_training_explores(self, tmp_path):
        class Both(Plain):
            def act_deterministic(self, observation):
                return 1

        pipelines = [BatchPipeline(Scored(), window_size=8, deterministic=flag) for flag in (False, True)]
        registry = CheckpointRegistry(tmp_path)
        loop = LoopController(
            Both(), pipeline=pipelines[0], val_pipeline=pipelines[1], checkpoint_registry=registry, max_episodes=2
        )
        for metrics in loop.run().history:
            assert (metrics.primary_score, metrics.metrics["train_score"]) == (1.0, 0.0)


class TestDiagnostics:
    def test_losses_that_a_ppo_reports_are_watched(self):
        controller, agent = DiagnosticController(target_kl=1e9), torch_ppo()
        for i in range(8):
            controller.step(i, agent, agent.learn(foreign()))
        assert controller.firings == []
        controller.step(8, agent, agent.learn(foreign(scale=30.0)))
        assert [f.rule for f in controller.firings] == ["loss-spike"]
        assert agent.get_hyperparams().params["learning_rate"] == 5e-4

    @pytest.mark.parametrize("entropy", [-1.5, 0.02])  # of a density: 0 means nothing special
    def test_a_gaussian_policy_keeps_its_entropy_coefficient(self, entropy):
        log_std = entropy - 0.5 * np.log(2 * np.pi * np.e)
        controller, agent = DiagnosticController(), torch_ppo("gaussian", log_std=log_std, rate=0.0)
        for i in range(20):
            diagnostics = agent.learn(foreign("gaussian"))
            assert diagnostics["entropy"] == pytest.approx(entropy, abs=1e-4)
            controller.step(i, agent, {"entropy": diagnostics["entropy"]})
        assert agent.get_hyperparams().params["entropy_coef"] == 1e-3


class TestCheckpoints:
    def test_a_reopened_registry_ranks_by_the_score_that_decided(self, tmp_path):
        told = iter([3.0, 7.0, 5.0])  # while the training score only rises
        train = Source(lambda i: window_of([float(i)], ends=(0,), episode_id=i))
        agent = Plain()
        LoopController(
            agent, pipeline=train, checkpoint_registry=CheckpointRegistry(tmp_path), max_episodes=3,
            checkpoint_score_fn=lambda agent: next(told),
        ).run()  # fmt: skip
        other = Plain()
        snapshot = CheckpointRegistry(tmp_path).load_best(other)
        assert (snapshot.eval_metrics.primary_score, snapshot.episode_id) == (7.0, 1)
        assert other.weight == agent.weight == 2.0

    @pytest.mark.parametrize("framework", AGENTS)
    def test_a_pickle_among_an_agents_files_is_never_run(self, tmp_path, framework):
        class Trap:
            def __reduce__(self):
                return (open, (str(tmp_path / "ran"), "w"))

        agent, directory = AGENTS[framework](), tmp_path / "agent"
        files = saved_bytes(agent, directory)
        assert files
        for name, content in files.items():
            (directory / name).write_bytes(pickle.dumps(Trap(), protocol=2))
            with pytest.raises((ValueError, RunDirError)):
                agent.load_weights(str(directory))
            (directory / name).write_bytes(content)
        assert not (tmp_path / "ran").exists()


class TestPipelines:
    @pytest.mark.parametrize("n_envs", [1, 2])
    def test_a_seed_of_the_optimizer_reaches_the_environments(self, tmp_path, n_envs):
        def first(seed):
            opt = Optimizer(Plain(), "CartPole-v1", n_envs, window_size=8, checkpoint_dir=tmp_path, seed=seed)
            opt.pipeline.set_agent(opt.agent)
            rows = np.asarray(next(opt.pipeline.episodes()).observations)
            opt.pipeline.teardown()
            return rows

        np.testing.assert_array_equal(first(3), first(3))
        assert not np.array_equal(first(3)[0], first(4)[0])


class TestAgents:
    @pytest.mark.parametrize("framework", AGENTS)
    def test_actions_use_the_range_of_the_environment(self, framework):
        agent = AGENTS[framework]("gaussian", n_in=3)
        pipeline = BatchPipeline(env_id="Pendulum-v1", agent=agent, window_size=64, seed=0)
        actions = next(pipeline.episodes()).actions
        pipeline.teardown()
        assert 1.3 < np.std(actions) < 2.7  # a spread of 1 in unit range is one of 2 here
        assert np.abs(actions).max() > 2.0  # recorded as it was drawn; the environment gets it clipped

    @pytest.mark.parametrize("kind", ["discrete", "gaussian"])
    def test_a_window_that_somebody_else_collected_is_learned_from(self, tmp_path, kind):
        agent = torch_ppo(kind)
        before = saved_bytes(agent, tmp_path / "before")
        assert np.isfinite(list(agent.learn(foreign(kind)).values())).all()
        assert saved_bytes(agent, tmp_path / "after")["actor.safetensors"] != before["actor.safetensors"]

    @pytest.mark.parametrize("framework", AGENTS)
    def test_acting_elsewhere_does_not_change_what_a_window_teaches(self, framework):
        one, other, fresh = (AGENTS[framework](n_in=4) for _ in range(3))
        data = next(BatchPipeline(gym.make("CartPole-v1"), one, 16, seed=0).episodes())
        for i in range(30):  # of an evaluation, say
            other.act(np.full(4, 0.1 * i))
        for agent in (one, other):
            agent.set_hyperparams(HyperparamSet({**PPO, "learning_rate": 0.1}))
            agent.learn(data)
        obs = np.asarray(data.observations)[3]
        probs = [agent.action_probs(obs) for agent in (one, other, fresh)]
        np.testing.assert_allclose(probs[0], probs[1], atol=1e-5)
        assert np.abs(probs[0] - probs[2]).max() > 0.01

    @pytest.mark.parametrize("framework", AGENTS)
    def test_hyperparameters_that_are_set_again_change_nothing(self, tmp_path, framework):
        agents = [AGENTS[framework]() for _ in range(2)]
        for i in range(3):  # the optimizer's moments go on, too
            for agent in agents:
                agent.learn(foreign(scale=1.0 + i))
            agents[0].set_hyperparams(agents[0].get_hyperparams())
        one, other = (saved_bytes(agent, tmp_path / str(i)) for i, agent in enumerate(agents))
        networks = [name for name in one if name.endswith(".safetensors")]
        assert networks
        assert all(one[name] == other[name] for name in networks)

    def test_reinforce_learns_on_the_device_of_its_model(self):
        torch = pytest.importorskip("torch")
        from tensor_optix.adapters.pytorch.torch_agent import TorchAgent

        # A device whose tensors hold nothing: all that is computed must be on it, and only the result cannot be read.
        model, seen = torch.nn.Linear(1, 2, device="meta"), []
        model.register_forward_hook(lambda module, args, out: seen.append(args[0].device.type))
        agent = TorchAgent(model, torch.optim.SGD(model.parameters(), lr=0.1), HyperparamSet({}), device="meta")
        with pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta"):
            agent.learn(foreign())
        assert set(seen) == {"meta"}


class TestConfig:
    @pytest.mark.parametrize("kind", ["DQN", "RainbowDQN", "SAC", "TD3", "PPO", "GaussianPPO", "RecurrentPPO"])
    @pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
    def test_the_agent_that_is_named_is_built_or_refused(self, env, kind):
        values = {"env": env, "algorithm": f"Torch{kind}Agent", "hidden_sizes": [4]}
        try:
            said = type(build_agent_from_config(config_from_dict(values))).__name__
        except ConfigError as error:
            said = str(error)
        assert f"Torch{kind}Agent" in said

    def test_the_short_form_takes_a_tuner_and_answers_as_the_long_one(self, tmp_path):
        agent, tuner, told = Plain(rate=0.5), SPSAOptimizer({"rate": (0.0, 1.0)}), []

        class Watch(LoopCallback):
            def on_episode_end(self, episode_id, eval_metrics):
                told.append(agent.params["rate"])
                if eval_metrics is not None:
                    opt.stop()

        opt = Optimizer(agent, Scored(), window_size=8, checkpoint_dir=tmp_path, optimizer=tuner)
        assert (opt.best_snapshot, opt.state) == (None, LoopState.ACTIVE)
        opt.add_callback(Watch())
        result = opt.run()
        assert (result.stop_reason, len(result.history)) == (StopReason.INTERRUPTED, 1)
        assert told[0] != 0.5
        assert opt.best_snapshot is result.best_snapshot is not None
        assert json.loads((opt.run_dir / "manifest.json").read_text())["status"] == "interrupted"
