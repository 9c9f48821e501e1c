"""What a person may write, from YAML, keywords and the command line, and what is said where it cannot be run."""

import pytest

from tensor_optix.config import ConfigError, RunConfig, apply_overrides, from_mapping, load_config, read_yaml


def yaml_file(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


class TestNumbers:
    @pytest.mark.parametrize("text", ["3e-4", "3E-4", "3.0e-4", "0.0003", "+3e-4", ".3e-3", "3.e-4"])
    def test_every_way_to_write_a_number_is_one(self, tmp_path, text):
        path = yaml_file(tmp_path, f"env: CartPole-v1\nhyperparams: {{learning_rate: {text}}}\n")
        assert load_config(path).hyperparams == {"learning_rate": pytest.approx(3e-4)}
        value = apply_overrides({}, [f"a={text}"])["a"]
        assert isinstance(value, float)
        assert value == pytest.approx(3e-4)

    @pytest.mark.parametrize("text", ["1e6", "1000000", "1.0e+6"])
    def test_whole_numbers_in_scientific_notation_become_integers(self, tmp_path, text):
        steps = load_config(yaml_file(tmp_path, f"env: CartPole-v1\ntotal_steps: {text}\n")).total_steps
        assert steps == 1_000_000
        assert isinstance(steps, int)

    @pytest.mark.parametrize("text", ["e-4", "3e-4x", "CartPole-v1", "v1e3"])
    def test_words_stay_words(self, text):
        assert apply_overrides({}, [f"a={text}"])["a"] == text


class TestOverrides:
    def test_put_in_place_and_leave_the_original_alone(self):
        values = {"env": "CartPole-v1", "config": {"n_envs": 4}}
        changed = apply_overrides(values, ["config.n_envs=8", "config.hidden_sizes=[32, 32]", "a.b.c=true", "d="])
        assert changed == {
            "env": "CartPole-v1",
            "config": {"n_envs": 8, "hidden_sizes": [32, 32]},
            "a": {"b": {"c": True}},
            "d": None,
        }
        assert values == {"env": "CartPole-v1", "config": {"n_envs": 4}}

    def test_the_last_one_wins_and_a_value_may_hold_an_equals_sign(self):
        assert apply_overrides({}, ["a=1", "a=b=c"]) == {"a": "b=c"}

    @pytest.mark.parametrize(
        ("override", "said"),
        [
            ("stop", "override 'stop' is not key=value"),
            ("=3", "override '=3' is not key=value"),
            ("a=[1, 2", r"override 'a=\[1, 2': "),
            ("env.name=3", "env is not a mapping"),
        ],
    )
    def test_bad_ones_are_named(self, override, said):
        with pytest.raises(ConfigError, match=said) as caught:
            apply_overrides({"env": "CartPole-v1"}, [override])
        assert "\n" not in str(caught.value)


class TestFiles:
    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("a: [1, 2", "is not YAML"),
            ("- 1\n- 2\n", "must hold a mapping of settings, got list"),
            ("", "must hold a mapping of settings, got NoneType"),
            ("a: !!python/object/apply:os.getcwd []", "is not YAML"),
        ],
    )
    def test_what_is_no_mapping_in_yaml_is_refused(self, tmp_path, text, said):
        with pytest.raises(ConfigError, match=said) as caught:
            read_yaml(yaml_file(tmp_path, text))
        assert "\n" not in str(caught.value)
        assert "run.yaml" in str(caught.value)

    def test_unreadable_ones_are_refused(self, tmp_path):
        with pytest.raises(ConfigError, match=r"cannot read .*missing\.yaml: No such file"):
            read_yaml(tmp_path / "missing.yaml")
        with pytest.raises(ConfigError, match="cannot read"):
            read_yaml(tmp_path)
        (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
        with pytest.raises(ConfigError, match="is not YAML"):
            read_yaml(tmp_path / "binary.yaml")

    def test_overrides_go_over_the_file(self, tmp_path):
        path = yaml_file(tmp_path, "env: CartPole-v1\nseeds: 4\nhyperparams: {gamma: 0.9}\n")
        run = load_config(path, ["seeds=[3, 5]", "hyperparams.gamma=0.5"])
        assert (run.seed_list(), run.hyperparams) == ([3, 5], {"gamma": 0.5})


class TestRunConfig:
    def test_a_round_trip_through_plain_data(self):
        run = RunConfig("CartPole-v1", seeds=[4, 2], tune=["gamma"], variants=[{"gamma": 0.5}], target_score=7)
        assert from_mapping(run.to_dict()) == run

    def test_a_number_of_seeds_counts_from_zero(self):
        assert RunConfig("CartPole-v1", seeds=3).seed_list() == [0, 1, 2]

    @pytest.mark.parametrize(
        ("given", "meant"), [("hyperparam", "hyperparams"), ("total_step", "total_steps"), ("seed", "seeds")]
    )
    def test_unknown_settings_are_refused_with_the_nearest(self, given, meant):
        with pytest.raises(ConfigError, match=f"unknown setting '{given}'; did you mean '{meant}'[?] known: algorithm"):
            from_mapping({"env": "CartPole-v1", given: 1})

    def test_nothing_near_gives_no_hint(self):
        with pytest.raises(ConfigError, match="unknown setting 'zzzz'; known: "):
            from_mapping({"env": "CartPole-v1", "zzzz": 1})

    def test_no_environment(self):
        with pytest.raises(ConfigError, match="no environment given"):
            from_mapping({})

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("env", ""),
            ("env", 3),
            ("seeds", 0),
            ("seeds", -1),
            ("seeds", []),
            ("seeds", [1, 1]),
            ("seeds", 2.5),
            ("seeds", True),
            ("seeds", "three"),
            ("seeds", [2**32]),
            ("seeds", [-1]),
            ("total_steps", 0),
            ("total_steps", 1.5),
            ("total_steps", True),
            ("eval_every", "often"),
            ("eval_episodes", -3),
            ("eval_max_steps", 0),
            ("final_episodes", None),
            ("final_episodes", 0),
            ("config", [1]),
            ("hyperparams", 3e-4),
            ("hyperparams", {"gamma": "0.9"}),
            ("hyperparams", {"gamma": float("nan")}),
            ("hyperparams", {"gamma": True}),
            ("variants", {"gamma": 0.9}),
            ("variants", [3]),
            ("variants", [{"gamma": None}]),
            ("search_space", [0, 1]),
            ("autonomy", "on"),
            ("target_score", "high"),
            ("target_score", float("inf")),
            ("stop", 1),
            ("stop", "no"),
            ("tune", "gamma"),
            ("tune", [1]),
        ],
    )
    def test_wrong_values_are_refused_in_one_sentence(self, name, value):
        with pytest.raises(ConfigError) as caught:
            from_mapping({"env": "CartPole-v1", name: value})
        said = str(caught.value)
        assert "\n" not in said
        assert ("gamma" if name in ("hyperparams", "variants") and "gamma" in str(value) else name) in said
