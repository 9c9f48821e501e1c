"""What is no agent and no callback is said when it is given."""

import pytest

from tensor_optix import LoopCallback, LoopController, Optimizer, RLOptimizer
from tests.host_parts import Plain, Source


class Dicts(Plain):
    def get_hyperparams(self):
        return {"rate": 0.1}


@pytest.mark.parametrize(
    ("agent", "said"),
    [
        (3, r"agent must be a BaseAgent, got 3, which has no act, .* make_agent\(env\) makes one"),
        (Plain, "got the class Plain: make one of it first"),
        (Dicts(), r"get_hyperparams\(\) of Dicts must return a HyperparamSet, got \{'rate': 0.1\}"),
    ],
)
def test_what_is_no_agent(tmp_path, agent, said):
    with pytest.raises(TypeError, match=said):
        Optimizer(agent, "CartPole-v1", checkpoint_dir=tmp_path)
    with pytest.raises(TypeError, match=said):
        RLOptimizer(agent, Source(), checkpoint_dir=tmp_path)
    with pytest.raises(TypeError, match=said):
        LoopController(agent, pipeline=Source())
    with pytest.raises(TypeError, match=said):
        RLOptimizer(agent_factory=lambda: agent, pipeline=Source(), checkpoint_dir=tmp_path / "runs").run()
    assert not (tmp_path / "runs").exists()


def test_an_agent_need_not_inherit(tmp_path):
    class Duck:
        is_on_policy = True

    for name in ("act", "learn", "get_hyperparams", "set_hyperparams", "save_weights", "load_weights"):
        setattr(Duck, name, vars(Plain)[name])
    Duck.__init__, Duck.save_state, Duck.load_state = Plain.__init__, Plain.save_weights, Plain.load_weights
    assert RLOptimizer(Duck(), Source(), max_episodes=1, checkpoint_dir=tmp_path).run().windows == 1


class Hears(LoopCallback):
    pass


class HasOne:
    def on_dormant(self, episode_id):
        pass


class IsHanded:
    def set_loop(self, loop):
        self.loop = loop


@pytest.mark.parametrize(
    ("callbacks", "said"),
    [
        ([3], "3 is no callback: it has none of on_loop_start, "),
        ([Hears], r"got the class Hears: give Hears\(\)"),
        (Hears(), "callbacks must be a list of callbacks"),
        ("text", "callbacks must be a list of callbacks"),
        ([print], "is no callback"),
    ],
)
def test_what_is_no_callback(tmp_path, callbacks, said):
    with pytest.raises(TypeError, match=said):
        RLOptimizer(Plain(), Source(), callbacks=callbacks, checkpoint_dir=tmp_path)
    with pytest.raises(TypeError, match=said):
        LoopController(Plain(), pipeline=Source(), callbacks=callbacks)


def test_anything_with_a_hook_is_a_callback(tmp_path):
    callbacks = [Hears(), HasOne(), IsHanded()]
    run = RLOptimizer(Plain(), Source(), callbacks=callbacks, max_episodes=1, checkpoint_dir=tmp_path)
    with pytest.raises(TypeError, match="5 is no callback"):
        run.add_callback(5)
    run.run()
    assert callbacks[2].loop is run._controller
    with pytest.raises(TypeError, match="5 is no callback"):
        run._controller.add_callback(5)
