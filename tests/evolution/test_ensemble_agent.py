"""Several agents as one: how it acts, what it learns, how it is kept."""

import numpy as np
import pytest

from tensor_optix.core.types import HyperparamSet
from tensor_optix.evolution.ensemble_agent import EnsembleAgent
from tensor_optix.evolution.policy_manager import PolicyManager
from tests.evolution_parts import Chooser, Mover, window

OBS = np.zeros(1, np.float32)


def ensemble(*agents, weights=None, **settings):
    pm = PolicyManager(None, **settings)
    for i, agent in enumerate(agents):
        pm.add_agent(agent, 1.0 if weights is None else weights[i])
    return EnsembleAgent(pm, agents[0])


class Votes(Chooser):
    """Has no probabilities to tell, as a learner of values may."""

    action_probs = property()

    def act(self, observation):
        return int(np.argmax(self.logits))


class TestChoices:
    def test_the_mean_of_chances_is_drawn_from(self):
        """Frequencies of 4000 draws: a standard error of 0.8 %."""
        first, second = Chooser(np.log([0.9, 0.1])), Chooser(np.log([0.2, 0.8]), seed=1)
        agent = ensemble(first, second, weights=[3.0, 1.0])
        mean = 0.75 * 0.9 + 0.25 * 0.2
        assert np.mean([agent.act(OBS) == 0 for _ in range(4000)]) == pytest.approx(mean, abs=0.03)
        drawn = agent.act_batch(np.zeros((4000, 1), np.float32))
        assert drawn.shape == (4000,)
        assert drawn.dtype.kind == "i"
        assert np.mean(drawn == 0) == pytest.approx(mean, abs=0.03)

    def test_the_likeliest_of_the_mean_in_an_evaluation(self):
        # Two of three prefer action 0, by little; the mean prefers action 1.
        agent = ensemble(*(Chooser(np.log(p)) for p in ([0.51, 0.49], [0.51, 0.49], [0.01, 0.99])))
        assert agent.act_deterministic(OBS) == 1
        assert agent.act_batch_deterministic(np.zeros((3, 1))).tolist() == [1, 1, 1]
        agent.policy_manager.boost(0, 100.0)
        assert agent.act_deterministic(OBS) == 0
        assert type(agent.act_deterministic(OBS)) is int

    def test_members_without_chances_vote(self):
        agent = ensemble(Votes((1.0, 0.0)), Votes((1.0, 0.0)), Votes((0.0, 1.0)), weights=[1.0, 1.0, 1.5])
        assert agent.act_deterministic(OBS) == 0
        assert agent.act_batch_deterministic(np.zeros((2, 1))).tolist() == [0, 0]
        share = np.mean([agent.act(OBS) == 0 for _ in range(2000)])
        assert share == pytest.approx(2 / 3.5, abs=0.05)

    def test_who_weighs_nothing_is_not_asked(self):
        class Silent(Chooser):
            def action_probs(self, observation):
                raise AssertionError

            act = action_probs

        agent = ensemble(Chooser(), Silent(), weights=[1.0, 0.0])
        assert agent.act(OBS) in (0, 1)
        assert agent.act_deterministic(OBS) in (0, 1)
        nobody = ensemble(Chooser((5.0, 0.0)), Chooser((4.0, 0.0)), weights=[0.0, 0.0])
        assert nobody.act_deterministic(OBS) == 0  # all equal

    def test_different_numbers_of_actions_are_refused(self):
        with pytest.raises(ValueError, match="different numbers of actions"):
            ensemble(Chooser((0.0, 0.0)), Chooser((0.0, 0.0, 0.0))).act_deterministic(OBS)


class TestContinuous:
    def test_the_weighted_mean(self):
        agent = ensemble(Mover(2.0), Mover(-1.0), weights=[1.0, 2.0])
        for act in (agent.act, agent.act_deterministic):
            np.testing.assert_allclose(act(OBS), [0.0], atol=1e-7)
            assert act(OBS).dtype == np.float32
        for act in (agent.act_batch, agent.act_batch_deterministic):
            np.testing.assert_allclose(act(np.zeros((3, 1))), np.zeros((3, 1)), atol=1e-7)

    def test_plain_numbers(self):
        class Number(Mover):
            def act(self, observation):
                return float(self.logits[0])

            act_deterministic = act

        agent = ensemble(Number(1.0), Number(2.0))
        assert agent.act(OBS) == 1.5

    def test_bounds_reach_members_also_later_ones(self):
        agent = ensemble(Mover(), Mover())
        agent.set_action_bounds(-2.0, 2.0)
        late = Mover()
        agent.policy_manager.add_agent(late)
        agent.act(OBS)
        assert [member.bounds for member in agent.policy_manager.agents] == [(-2.0, 2.0)] * 3

    def test_shapes_that_differ_are_refused(self):
        class Two(Mover):
            def act(self, observation):
                return np.zeros(2, np.float32)

        with pytest.raises(ValueError, match="differ in shape"):
            ensemble(Mover(), Two()).act(OBS)


class TestRefusals:
    def test_choosers_and_movers_do_not_mix(self):
        agent = ensemble(Chooser(), Mover())
        for act in (agent.act, agent.act_deterministic):
            with pytest.raises(TypeError, match=r"Chooser \(discrete\), Mover \(continuous\)"):
                act(OBS)
        with pytest.raises(TypeError, match="one kind of action"):
            agent.act_batch(np.zeros((2, 1)))

    def test_an_agent_with_a_memory(self):
        class Remembers(Chooser):
            def act_recurrent(self):
                pass

        with pytest.raises(TypeError, match="Remembers remembers what it saw"):
            ensemble(Remembers())
        agent = ensemble(Chooser())
        agent.policy_manager.add_agent(Remembers())
        with pytest.raises(TypeError, match="remembers"):
            agent.act(OBS)

    def test_actions_of_another_kind(self):
        class Words(Votes):
            def act(self, observation):
                return "left"

            act_deterministic = act

        with pytest.raises(TypeError, match="Words acted with"):
            ensemble(Words(), Words()).act(OBS)


class TestLearning:
    def test_every_member_learns_from_the_window(self):
        first, second = Chooser(), Chooser()
        agent, data = ensemble(first, second), window((0, 1, 1))
        report = agent.learn(data)
        assert first.windows == second.windows == [data]
        assert report == {"loss": 1.0, "member1/loss": 1.0}
        assert ensemble(Mover(), Mover()).learn(data) == {}  # they report nothing

    def test_it_is_on_policy_if_all_are(self):
        assert ensemble(Chooser(), Chooser()).is_on_policy
        assert not ensemble(Chooser(), Chooser(on_policy=False)).is_on_policy

    def test_members_need_not_say_whether_they_are_on_policy_nor_be_torn_down(self):
        class Bare:
            def act(self, observation):
                return 0

        first, last = Chooser(), Chooser()
        agent = ensemble(first, Bare(), last)
        assert agent.is_on_policy  # as of a `BaseAgent` that says nothing
        agent.teardown()
        assert (first.torn_down, last.torn_down) == (1, 1)

    def test_hyperparameters_are_the_primarys(self):
        first, second = Chooser(), Chooser()
        agent = ensemble(first, second)
        agent.set_hyperparams(HyperparamSet({"gamma": 0.96}))
        assert (first.params["gamma"], second.params["gamma"]) == (0.96, 0.99)
        assert agent.get_hyperparams().params == first.params
        assert agent.default_param_bounds == Chooser.default_param_bounds
        assert agent.default_log_params == ("learning_rate",)
        assert not hasattr(agent, "default_tuned")  # nor has the primary

    def test_the_primary_is_a_member(self):
        pm, agent = PolicyManager(None), Chooser()
        EnsembleAgent(pm, agent)
        assert pm.agents == [agent]

    def test_caches_and_teardown_reach_members(self):
        class Cached(Chooser):
            reset = 0

            def reset_cache(self):
                self.reset += 1

        members = [Cached(), Chooser()]
        agent = ensemble(*members)
        agent.reset_cache()
        agent.teardown()
        assert members[0].reset == 1
        assert [member.torn_down for member in members] == [1, 1]


class TestFiles:
    def test_all_comes_back(self, tmp_path):
        agent = ensemble(Chooser((1.0, 2.0)), Chooser((3.0, 4.0)), weights=[1.0, 0.25])
        agent.save_weights(str(tmp_path / "saved"))
        other = ensemble(Chooser(), Chooser())
        other.load_weights(str(tmp_path / "saved"))
        assert [a.logits.tolist() for a in other.policy_manager.agents] == [[1.0, 2.0], [3.0, 4.0]]
        assert other.policy_manager.weights == [1.0, 0.25]

    def test_who_joined_since_weighs_nothing_until_weighed(self, tmp_path):
        agent = ensemble(Chooser((5.0, 0.0)), Chooser((5.0, 0.0)))
        agent.save_weights(str(tmp_path / "saved"))
        agent.policy_manager.add_agent(Chooser((0.0, 99.0)), weight=9.0)
        assert agent.act_deterministic(OBS) == 1
        agent.load_weights(str(tmp_path / "saved"))
        assert agent.policy_manager.weights == [1.0, 1.0, 0.0]
        assert agent.act_deterministic(OBS) == 0  # the policy that was saved

    def test_who_left_since_is_missed(self, tmp_path, caplog):
        agent = ensemble(Chooser((5.0, 0.0)), Chooser((5.0, 0.0)))
        agent.save_weights(str(tmp_path / "saved"))
        agent.policy_manager.prune()
        agent.load_weights(str(tmp_path / "saved"))
        assert "1 of the 2 members" in caplog.text

    def test_the_state_continues_bit_by_bit(self, tmp_path):
        def draws(agent):
            return [agent.act(OBS) for _ in range(20)]

        agent = ensemble(Votes((1.0, 0.0)), Votes((0.0, 1.0)))
        draws(agent)
        agent.save_state(str(tmp_path / "saved"))
        rest = draws(agent)
        other = ensemble(Votes(), Votes())
        other.load_state(str(tmp_path / "saved"))
        assert draws(other) == rest
        agent.save_weights(str(tmp_path / "weights"))
        with pytest.raises(ValueError, match="no generator"):
            other.load_state(str(tmp_path / "weights"))

    def test_means_of_several(self, tmp_path):
        agent = ensemble(Chooser((1.0, 2.0)), Chooser((3.0, 4.0)))
        agent.save_weights(str(tmp_path / "a"))
        for member in agent.policy_manager.agents:
            member.logits = member.logits + 2.0
        agent.save_weights(str(tmp_path / "b"))
        agent.average_weights([str(tmp_path / "a"), str(tmp_path / "b")])
        assert [a.logits.tolist() for a in agent.policy_manager.agents] == [[2.0, 3.0], [4.0, 5.0]]
        with pytest.raises(ValueError, match="no paths"):
            agent.average_weights([])

    def test_perturbing_reaches_all(self):
        agent = ensemble(Chooser((1.0, 2.0)), Chooser((1.0, 2.0)))
        agent.perturb_weights(0.1)
        assert all((member.logits != [1.0, 2.0]).all() for member in agent.policy_manager.agents)

    @pytest.mark.parametrize("content", ["", "{}", '{"format": 9}', '{"format": 1, "primary": 0, "members": [1]}'])
    def test_damage_is_told(self, tmp_path, content):
        agent = ensemble(Chooser())
        with pytest.raises(FileNotFoundError, match=r"ensemble\.json"):
            agent.load_weights(str(tmp_path))
        (tmp_path / "ensemble.json").write_text(content)
        with pytest.raises(ValueError, match="cannot be read"):
            agent.load_weights(str(tmp_path))

    def test_another_ensembles_files(self, tmp_path):
        first, second = ensemble(Chooser()), ensemble(Chooser())
        first.save_weights(str(tmp_path / "saved"))
        second.policy_manager.members[0].uid = 7
        with pytest.raises(ValueError, match="none of this ensemble's members"):
            second.load_weights(str(tmp_path / "saved"))
