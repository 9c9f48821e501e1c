"""The checkpoint registry: the best comes back whatever was saved after it, damaged, moved, or cut off while saving."""

import errno
import json
import logging
import os
import random
import shutil

import numpy as np
import pytest

from tensor_optix.core.base_agent import BaseAgent
from tensor_optix.core.types import EvalMetrics, HyperparamSet
from tensor_optix.loop import checkpoint_files, durable
from tensor_optix.loop.checkpoint_registry import CheckpointRegistry
from tensor_optix.loop.durable import RunDirError
from tensor_optix.loop.run_lock import RunLock


class ArrayAgent(BaseAgent):
    """Weights are one array; `form` says how it is written below the path it is given."""

    def __init__(self, value=0.0, form="file"):
        self.weights = np.full(3, value)
        self.params = {}
        self.form = form
        self.calls = []

    def act(self, observation):
        return 0

    def learn(self, episode_data):
        return None

    def get_hyperparams(self):
        return HyperparamSet(self.params)

    def set_hyperparams(self, hyperparams):
        self.calls.append("set_hyperparams")
        self.params = hyperparams.params

    def save_weights(self, path):
        if self.form == "file":
            with open(path, "wb") as file:
                np.save(file, self.weights, allow_pickle=False)
        elif self.form == "prefix":
            np.save(f"{path}-0.npy", self.weights[:1], allow_pickle=False)
            np.save(f"{path}-1.npy", self.weights[1:], allow_pickle=False)
        elif self.form == "directory":
            os.makedirs(f"{path}/deep")
            np.save(f"{path}/deep/w.npy", self.weights, allow_pickle=False)

    def load_weights(self, path):
        self.calls.append("load_weights")
        self.weights = self.read(path)

    def read(self, path):
        if self.form == "prefix":
            return np.concatenate([np.load(f"{path}-{i}.npy", allow_pickle=False) for i in range(2)])
        if self.form == "nothing":
            return np.zeros(3)
        return np.load(path if self.form == "file" else f"{path}/deep/w.npy", allow_pickle=False)


class AveragingAgent(ArrayAgent):
    def average_weights(self, paths):
        self.calls.append("average_weights")
        self.weights = np.mean([self.read(path) for path in paths], axis=0)


def save(registry, score, agent=None, metrics=None, **params):
    """A snapshot whose weights are `score` and whose hyperparameters say so too."""
    agent = ArrayAgent(score) if agent is None else agent
    evaluated = EvalMetrics(score, {} if metrics is None else metrics, episode_id=7, timestamp=5.0)
    return registry.save(agent, evaluated, HyperparamSet({"from": score, **params}, episode_id=6, timestamp=4.0))


def scores(registry):
    return [snapshot.eval_metrics.primary_score for snapshot in registry.snapshots]


def loaded(registry):
    """The weight that `load_best` brings, and that its snapshot and hyperparameters agree with."""
    agent = ArrayAgent(-12345.0)
    snapshot = registry.load_best(agent)
    if snapshot is None:
        assert agent.calls == []
        return None
    np.testing.assert_array_equal(agent.weights, np.full(3, snapshot.eval_metrics.primary_score))
    assert agent.params == snapshot.hyperparams.params == {"from": agent.weights[0]}
    return agent.weights[0]


def everything(path):
    """Content of every file below `path` but for the lock's, and every directory."""
    return {
        entry.relative_to(path).as_posix(): entry.read_bytes() if entry.is_file() else None
        for entry in path.rglob("*")
        if entry.name != ".lock"
    }


@pytest.fixture
def registry(tmp_path):
    return CheckpointRegistry(tmp_path / "snapshots")


# ---- saving --------------------------------------------------------------------------------------------------------


def test_a_snapshot_says_what_was_saved(registry, tmp_path):
    metrics = {"loss": np.float32(0.1), "n": np.int64(3), "a": np.ones(2), "bad": float("nan"), "far": [-np.inf]}
    params = {"rate": np.float32(0.1), "bound": float("inf"), "sizes": (64, 64), "name": "x"}
    evaluated = EvalMetrics(np.float32(1.1), metrics, np.int64(9), timestamp=5.0)
    snapshot = registry.save(ArrayAgent(), evaluated, HyperparamSet(params, 8, 4.0))
    assert snapshot.eval_metrics.primary_score == float(np.float32(1.1))
    assert snapshot.eval_metrics.timestamp == 5.0
    assert snapshot.eval_metrics.metrics.pop("bad") != 0  # NaN, which equals nothing
    assert snapshot.eval_metrics.metrics == {"loss": float(np.float32(0.1)), "n": 3, "a": [1.0, 1.0], "far": [-np.inf]}
    again = HyperparamSet({"rate": float(np.float32(0.1)), "bound": float("inf"), "sizes": [64, 64], "name": "x"}, 8, 4)
    assert snapshot.hyperparams == again
    assert snapshot.episode_id == snapshot.eval_metrics.episode_id == 9
    directory = tmp_path / "snapshots" / f"snapshot_{snapshot.snapshot_id}"
    assert snapshot.weights_path == str(directory / "weights")
    assert sorted(os.listdir(directory)) == ["SHA256SUMS", "metadata.json", "weights"]
    record = json.loads((directory / "metadata.json").read_bytes(), parse_constant=pytest.fail)
    assert record["snapshot_id"] == snapshot.snapshot_id
    assert record["metrics"]["bad"] == "NaN"
    assert str(tmp_path) not in json.dumps(record)


@pytest.mark.parametrize("form", ["file", "prefix", "directory", "nothing"])
def test_agents_write_what_they_like(registry, form):
    saved = registry.save(ArrayAgent(0.0, form), EvalMetrics(1.0, {}, 0), HyperparamSet({}))
    agent = ArrayAgent(5.0, form)
    assert registry.load_best(agent) == saved
    np.testing.assert_array_equal(agent.weights, np.zeros(3))


def test_the_directory_is_made_by_the_first_save(tmp_path):
    registry = CheckpointRegistry(str(tmp_path / "a" / "b"))
    assert (registry.snapshots, registry.best, registry.newest, loaded(registry)) == ([], None, None, None)
    assert not (tmp_path / "a").exists()
    save(registry, 1.0)
    assert scores(registry) == [1.0]


def test_metrics_without_a_json_form_are_named_and_left_out(registry, caplog):
    class Stubborn:
        dtype = "none"

        def __array__(self, *_, **__):
            raise RuntimeError("no array of me")

    endless = []
    endless.append(endless)
    with caplog.at_level(logging.WARNING):
        for score in (1.0, 2.0):
            snapshot = save(
                registry, score, metrics={"ok": 1, "odd": object(), "stubborn": Stubborn(), "endless": endless}
            )
    assert snapshot.eval_metrics.metrics == {"ok": 1}
    assert [text.split("'")[1] for text in caplog.messages] == ["odd", "stubborn", "endless"]
    assert scores(registry) == [2.0, 1.0]


def test_a_hyperparameter_without_a_json_form_is_refused(registry):
    with pytest.raises(TypeError, match=r"hyperparams.params\['space'\] is a object"):
        save(registry, 1.0, space=object())
    assert registry.snapshots == []


def test_ids_are_random_without_touching_a_seeded_generator(registry):
    random.seed(0)
    np.random.seed(0)
    before = random.getstate(), np.random.get_state()[1].tolist()
    ids = [save(registry, 1.0).snapshot_id for _ in range(2)]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    random.seed(0)
    np.random.seed(0)
    ids += [save(registry, 1.0).snapshot_id for _ in range(2)]
    assert len(set(ids)) == 4
    assert all(len(i) == 8 and set(i) <= set("0123456789abcdef") for i in ids)


def test_an_id_in_use_is_not_drawn_again(registry, monkeypatch):
    drawn = iter(["0a0a0a0a", "0a0a0a0a", "1b1b1b1b"])
    monkeypatch.setattr("tensor_optix.loop.checkpoint_registry.secrets.token_hex", lambda n: next(drawn))
    assert [save(registry, s).snapshot_id for s in (1.0, 2.0)] == ["0a0a0a0a", "1b1b1b1b"]
    assert scores(registry) == [2.0, 1.0]


# ---- which one -----------------------------------------------------------------------------------------------------


def test_the_best_comes_back_after_later_saves(registry):
    for score in (10.0, 100.0, 50.0, -3.0):
        save(registry, score)
    assert loaded(registry) == 100.0
    assert scores(registry) == [100.0, 50.0, 10.0, -3.0]
    assert registry.newest.eval_metrics.primary_score == -3.0


def test_of_equals_the_newest_is_best(registry, monkeypatch):
    monkeypatch.setattr("tensor_optix.loop.checkpoint_registry.time.time", lambda: 1.0)  # a clock that stands still
    ids = [save(registry, 1.0).snapshot_id for _ in range(6)]
    assert [snapshot.snapshot_id for snapshot in registry.snapshots] == ids[::-1]
    assert registry.best.snapshot_id == registry.newest.snapshot_id == ids[-1]


def test_a_clock_that_goes_back_does_not_change_the_order(registry, monkeypatch):
    clock = iter([3.0, 2.0, 1.0])
    monkeypatch.setattr("tensor_optix.loop.checkpoint_registry.time.time", lambda: next(clock))
    ids = [save(registry, 1.0).snapshot_id for _ in range(3)]
    assert CheckpointRegistry(registry.path).newest.snapshot_id == ids[-1]


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_scores_are_never_best(registry, score):
    save(registry, score, agent=ArrayAgent())
    assert registry.best is None
    assert loaded(registry) is None
    assert registry.load_ensemble(AveragingAgent()) == []
    save(registry, -1.0)
    save(registry, score, agent=ArrayAgent())
    assert loaded(registry) == -1.0
    assert [np.isfinite(s) for s in scores(registry)] == [True, False, False]
    assert str(registry.newest.eval_metrics.primary_score) == str(score)


@pytest.mark.parametrize(
    ("most", "kept"),
    [(2, [100.0, 50.0]), (3, [100.0, 50.0, 5.0]), (1, [100.0]), (9, [100.0, 50.0, 5.0])],
)
def test_pruning_leaves_the_best_and_the_newest(tmp_path, most, kept):
    registry = CheckpointRegistry(tmp_path, max_snapshots=most)
    for score in (100.0, 5.0, 50.0):
        save(registry, score)
    assert scores(registry) == kept
    assert loaded(registry) == 100.0
    assert len(everything(tmp_path)) == 4 * len(kept)  # each a directory with three files


def test_the_oldest_goes_first(tmp_path):
    registry = CheckpointRegistry(tmp_path, max_snapshots=4)
    for score in (1.0, 9.0, 4.0, 3.0):
        save(registry, score)
    for score, kept in [(2.0, [9.0, 4.0, 3.0, 2.0]), (5.0, [9.0, 5.0, 3.0, 2.0]), (10.0, [10.0, 5.0, 3.0, 2.0])]:
        save(registry, score)
        assert scores(registry) == kept


def test_a_single_place_is_for_the_best(tmp_path):
    registry = CheckpointRegistry(tmp_path, max_snapshots=1)
    for score, kept in [(float("nan"), None), (1.0, 1.0), (3.0, 3.0), (2.0, 3.0), (float("nan"), 3.0)]:
        save(registry, score, agent=ArrayAgent(score))
        assert loaded(registry) == kept
        assert len(registry.snapshots) == 1


def test_a_smaller_limit_holds_from_the_next_save_on(tmp_path):
    for score in (5.0, 4.0, 3.0, 2.0):
        save(CheckpointRegistry(tmp_path), score)
    registry = CheckpointRegistry(tmp_path, max_snapshots=2)
    assert len(registry.snapshots) == 4
    save(registry, 1.0)
    assert scores(registry) == [5.0, 1.0]


def test_without_a_place_there_is_no_registry(tmp_path):
    with pytest.raises(ValueError, match=r"max_snapshots .* got 0"):
        CheckpointRegistry(tmp_path, max_snapshots=0)


# ---- another process, another place --------------------------------------------------------------------------------


def test_a_reopened_registry_sees_the_same(registry):
    for score in (2.0, float("nan"), 3.0, 1.0):
        save(registry, score, agent=ArrayAgent(score), metrics={"a": 1.5})
    again = CheckpointRegistry(registry.path)
    assert repr(again.snapshots) == repr(registry.snapshots)
    assert (again.best, again.newest) == (registry.best, registry.newest)
    assert loaded(again) == 3.0


def test_two_registries_share_a_directory(registry):
    other = CheckpointRegistry(registry.path, max_snapshots=2)
    save(registry, 1.0)
    save(other, 3.0)
    save(registry, 2.0)
    assert scores(registry) == scores(other) == [3.0, 2.0, 1.0]
    save(other, 0.0)  # its limit removes what the first one saved
    assert scores(registry) == scores(other) == [3.0, 0.0]
    assert (loaded(registry), loaded(other)) == (3.0, 3.0)


def test_a_moved_directory_loads(registry, tmp_path):
    for score in (2.0, 1.0):
        save(registry, score)
    os.rename(registry.path, tmp_path / "moved")
    moved = CheckpointRegistry(tmp_path / "moved")
    assert loaded(moved) == 2.0
    assert moved.best.weights_path.startswith(str(tmp_path / "moved"))


def test_a_change_of_the_working_directory_does_no_harm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    registry = CheckpointRegistry("here")
    save(registry, 1.0)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert loaded(registry) == 1.0


def test_what_a_killed_process_left_goes_at_the_next_opening(registry):
    save(registry, 1.0)
    left = registry.path / f"{durable.TEMPORARY}snapshot_00000000"
    (left / "weights").mkdir(parents=True)
    lock = RunLock.acquire(registry.path)
    CheckpointRegistry(registry.path)
    assert left.exists()  # someone is saving: it may be theirs
    lock.release()
    CheckpointRegistry(registry.path)
    assert not left.exists()
    assert loaded(registry) == 1.0


def test_what_is_not_a_snapshot_is_left_alone(registry, tmp_path):
    whole = save(registry, 1.0)
    directory = registry.path / f"snapshot_{whole.snapshot_id}"
    shutil.copytree(directory, registry.path / "snapshot_ABCDEF01")
    shutil.copytree(directory, registry.path / "snapshot_abc")
    (registry.path / "snapshot_01234567").symlink_to(directory)
    (registry.path / "notes.txt").write_text("mine")
    registry.max_snapshots = 1
    save(registry, 2.0)
    assert scores(registry) == [2.0]
    names = {entry.name for entry in registry.path.iterdir()} - {".lock", f"snapshot_{registry.best.snapshot_id}"}
    assert names == {"snapshot_ABCDEF01", "snapshot_abc", "snapshot_01234567", "notes.txt"}


def test_a_renamed_or_foreign_snapshot_is_passed_over_but_not_removed(registry, caplog):
    save(registry, 1.0)
    moved = save(registry, 9.0).snapshot_id
    os.rename(registry.path / f"snapshot_{moved}", registry.path / "snapshot_01234567")
    with caplog.at_level(logging.WARNING):
        assert loaded(registry) == 1.0
    assert f"it is snapshot {moved} under another name" in caplog.text
    save(registry, 0.0)
    assert (registry.path / "snapshot_01234567").is_dir()


def test_a_link_is_no_snapshot(registry, tmp_path):
    name = f"snapshot_{save(registry, 1.0).snapshot_id}"
    os.rename(registry.path / name, tmp_path / name)
    (registry.path / name).symlink_to(tmp_path / name)
    assert registry.snapshots == []


def test_a_reader_follows_a_writer_that_removes_snapshots(registry, monkeypatch, caplog):
    def look_late(directory):
        if scores(registry) == [2.0, 1.0]:
            writer = CheckpointRegistry(registry.path, max_snapshots=1)
            save(writer, 3.0)
        return damage(directory)

    for score in (1.0, 2.0):
        save(registry, score)
    damage = checkpoint_files.damage
    reader = CheckpointRegistry(registry.path)
    monkeypatch.setattr(checkpoint_files, "damage", look_late)
    assert loaded(reader) == 3.0
    assert caplog.messages == []


# ---- loading -------------------------------------------------------------------------------------------------------


def test_hyperparameters_come_after_the_weights_and_are_a_copy(registry):
    save(registry, 1.0, nested={"layers": [64]})
    agent = ArrayAgent()
    snapshot = registry.load_best(agent)
    assert agent.calls == ["load_weights", "set_hyperparams"]
    assert snapshot.hyperparams.episode_id == 6
    agent.params["from"] = -1.0
    agent.params["nested"]["layers"].append(32)
    assert snapshot.hyperparams.params == {"from": 1.0, "nested": {"layers": [64]}}
    assert registry.best.hyperparams.params == snapshot.hyperparams.params


def test_a_saved_snapshot_does_not_follow_the_agents_dictionary(registry):
    params = {"rate": [1.0]}
    snapshot = registry.save(ArrayAgent(), EvalMetrics(1.0, {}, 0), HyperparamSet(params))
    params["rate"][0] = 2.0
    assert snapshot.hyperparams.params == registry.best.hyperparams.params == {"rate": [1.0]}


def test_a_given_snapshot_is_loaded(registry):
    low, high = save(registry, 1.0), save(registry, 2.0)
    agent = ArrayAgent()
    assert registry.load(agent, low.snapshot_id) == low
    np.testing.assert_array_equal(agent.weights, np.ones(3))
    assert agent.params == {"from": 1.0}
    for unknown in ("00000000", "../escape", f"../{registry.path.name}/snapshot_{low.snapshot_id}", "", "."):
        with pytest.raises(ValueError, match=f"known ones are: {high.snapshot_id}, {low.snapshot_id}"):
            registry.load(agent, unknown)
    shutil.rmtree(registry.path)
    with pytest.raises(ValueError, match="known ones are: none"):
        registry.load(agent, low.snapshot_id)


def test_what_the_agent_raises_passes_through(registry):
    class Picky(ArrayAgent):
        def load_weights(self, path):
            raise KeyError("layer 3")

    for score in (1.0, 2.0):
        save(registry, score)
    for load in (registry.load_best, lambda agent: registry.load(agent, registry.best.snapshot_id)):
        agent = Picky()
        with pytest.raises(KeyError, match="layer 3"):
            load(agent)
        assert agent.calls == []  # no hyperparameters without their weights
    assert loaded(registry) == 2.0


# ---- ensembles -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("top_k", "band", "used"),
    [
        (3, 0.1, [100.0, 95.0, 90.0]),
        (2, 0.1, [100.0, 95.0]),
        (9, 0.2, [100.0, 95.0, 90.0, 85.0]),
        (9, 1.0, [100.0, 95.0, 90.0, 85.0, 0.0]),
        (1, 1.0, [100.0]),
        (3, 0.0, [100.0]),
    ],
)
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.25, -1000.0), (4.0, 64.0)])
def test_an_ensemble_is_the_mean_of_those_near_the_best(registry, top_k, band, used, scale, shift):
    for score in (85.0, 0.0, 100.0, 90.0, 95.0):
        save(registry, scale * score + shift)
    save(registry, float("nan"), agent=ArrayAgent())
    agent = AveragingAgent()
    members = registry.load_ensemble(agent, top_k=top_k, score_band=band)
    assert [member.eval_metrics.primary_score for member in members] == [scale * s + shift for s in used]
    np.testing.assert_allclose(agent.weights, np.full(3, scale * np.mean(used) + shift), rtol=1e-12)
    assert agent.params == {"from": scale * 100.0 + shift}
    assert agent.calls == ["average_weights" if len(used) > 1 else "load_weights", "set_hyperparams"]


def test_a_range_of_scores_may_exceed_the_largest_float(registry):
    for score in (-1.7e308, 1.7e308, 1.6e308):
        save(registry, score, agent=ArrayAgent())
    for band, used in [(0.0, 1), (0.1, 2), (1.0, 3)]:
        assert len(registry.load_ensemble(AveragingAgent(), score_band=band)) == used


def test_an_agent_that_cannot_average_gets_the_best(registry):
    for score in (1.0, 1.0, 2.0):
        save(registry, score)
    agent = ArrayAgent()
    members = registry.load_ensemble(agent, score_band=1.0)
    assert members == [registry.best]
    np.testing.assert_array_equal(agent.weights, np.full(3, 2.0))
    assert agent.params == {"from": 2.0}


def test_bad_ensembles_are_refused(registry):
    save(registry, 1.0)
    for bad in ({"top_k": 0}, {"score_band": -0.1}, {"score_band": 1.1}, {"score_band": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            registry.load_ensemble(AveragingAgent(), **bad)


def test_a_damaged_member_gives_its_place_to_the_next(registry):
    snapshots = [save(registry, score) for score in (0.0, 90.0, 98.0, 99.0, 100.0)]
    for snapshot in snapshots[2::2]:  # of scores 98 and 100
        with open(snapshot.weights_path, "ab") as file:
            file.write(b"x")
    agent = AveragingAgent()
    members = registry.load_ensemble(agent, top_k=2)
    assert [member.eval_metrics.primary_score for member in members] == [99.0, 90.0]
    np.testing.assert_array_equal(agent.weights, np.full(3, 94.5))


# ---- damage --------------------------------------------------------------------------------------------------------


def damages(whole):
    """What may become of the bytes `whole`: one flipped bit anywhere, any shorter length, one byte more."""
    for position in range(len(whole)):
        yield whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :]
    yield from (whole[:length] for length in range(0, len(whole), 7))
    yield whole + b"\0"


@pytest.mark.parametrize("name", ["metadata.json", "SHA256SUMS", "weights"])
def test_no_damage_to_the_best_goes_unnoticed(registry, name, caplog):
    save(registry, 1.0)
    best = save(registry, 2.0)
    path = registry.path / f"snapshot_{best.snapshot_id}" / name
    whole = path.read_bytes()
    for damaged in damages(whole):
        path.write_bytes(damaged)
        opened = CheckpointRegistry(registry.path)
        caplog.clear()
        assert loaded(opened) == 1.0
        assert loaded(opened) == 1.0
        assert opened.best.eval_metrics.primary_score == 1.0
        assert [best.snapshot_id in message and "damaged" in message for message in caplog.messages] == [True]
    path.unlink()
    assert loaded(CheckpointRegistry(registry.path)) == 1.0
    path.write_bytes(whole)
    assert loaded(CheckpointRegistry(registry.path)) == 2.0


def test_a_damaged_score_is_not_believed(registry):
    save(registry, 1.0)
    worst = save(registry, -2.0).snapshot_id
    path = registry.path / f"snapshot_{worst}" / "metadata.json"
    path.write_bytes(path.read_bytes().replace(b'"primary_score": -2.0', b'"primary_score": 92.0'))
    opened = CheckpointRegistry(registry.path)
    assert scores(opened) == [1.0]
    assert opened.best == opened.newest


@pytest.mark.parametrize("form", ["prefix", "directory"])
def test_damage_is_found_whatever_the_form_of_the_weights(registry, form):
    registry.save(ArrayAgent(1.0, form), EvalMetrics(1.0, {}, 0), HyperparamSet({}))
    best = registry.save(ArrayAgent(2.0, form), EvalMetrics(2.0, {}, 0), HyperparamSet({}))
    for path in (registry.path / f"snapshot_{best.snapshot_id}").rglob("*.npy"):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        agent = ArrayAgent(0.0, form)
        CheckpointRegistry(registry.path).load_best(agent)
        np.testing.assert_array_equal(agent.weights, np.ones(3))
        path.write_bytes(whole)


def test_if_all_are_damaged_nothing_is_loaded(registry):
    for score in (1.0, 2.0):
        open(save(registry, score).weights_path, "wb").close()
    assert loaded(registry) is None


def test_a_damaged_snapshot_is_refused_by_name(registry):
    snapshot = save(registry, 1.0)
    open(snapshot.weights_path, "wb").close()
    for _ in range(2):
        agent = ArrayAgent()
        with pytest.raises(RunDirError, match=f"{snapshot.snapshot_id} .* is damaged: checksum mismatch in weights"):
            registry.load(agent, snapshot.snapshot_id)
        assert agent.calls == []


def test_a_damaged_best_does_not_push_whole_ones_out(tmp_path):
    registry = CheckpointRegistry(tmp_path, max_snapshots=2)
    best = save(registry, 100.0)
    save(registry, 50.0)
    open(best.weights_path, "wb").close()
    save(registry, 1.0)
    assert scores(registry) == [50.0, 1.0]
    assert not os.path.exists(best.weights_path)  # found damaged, and a newer one is durable


def test_damage_makes_room_for_whole_ones(tmp_path):
    registry = CheckpointRegistry(tmp_path, max_snapshots=5)
    snapshots = [save(registry, score) for score in (100.0, 90.0, 1.0, 2.0, 3.0)]
    for snapshot in snapshots[:2]:
        open(snapshot.weights_path, "wb").close()
    save(registry, 4.0)
    assert scores(registry) == [4.0, 3.0, 2.0, 1.0]


# ---- failing saves -------------------------------------------------------------------------------------------------


def failing_from(call, function, code):
    """`function`, but its calls raise OSError(code) from number `call` (from 0) on."""
    count = iter(range(10**9))

    def fail(*args, **kwargs):
        if next(count) >= call:
            raise OSError(code, os.strerror(code))
        return function(*args, **kwargs)

    return fail


def try_to_save(registry, score):
    """What the RunDirError says; None if there is none."""
    try:
        save(registry, score)
    except RunDirError as error:
        return str(error)


def test_a_disk_that_fills_up_at_any_flush_leaves_the_old_ones(registry, monkeypatch):
    save(registry, 1.0)
    before = everything(registry.path)
    for call in range(20):
        monkeypatch.setattr(os, "fsync", failing_from(call, os.fsync, errno.ENOSPC))
        problem = try_to_save(registry, 2.0)
        monkeypatch.undo()
        if problem is None:
            break
        assert problem.endswith("the disk is full; free some space or choose another path.")
        assert "\n" not in problem
        assert everything(registry.path) == before
        assert loaded(CheckpointRegistry(registry.path)) == 1.0
    assert call == 5  # three files and two directories are flushed
    assert loaded(registry) == 2.0


@pytest.mark.parametrize("method", ["write_bytes", "mkdir"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_no_more_leaves_the_old_ones(registry, monkeypatch, method, code):
    save(registry, 1.0)
    before = everything(registry.path)
    for call in range(2):
        failing = failing_from(call, getattr(type(registry.path), method), code)
        monkeypatch.setattr(f"pathlib.Path.{method}", failing)
        with pytest.raises(RunDirError, match=r"the disk is full|is read-only"):
            save(registry, 2.0)
        monkeypatch.undo()
        assert everything(registry.path) == before
    save(registry, 2.0)
    assert loaded(registry) == 2.0


def test_a_path_that_is_a_file_is_refused_by_save(tmp_path):
    (tmp_path / "file").write_text("mine")
    registry = CheckpointRegistry(tmp_path / "file")
    assert registry.snapshots == []
    with pytest.raises(RunDirError, match="Could not save a snapshot"):
        save(registry, 1.0)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("no graph"), RuntimeError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(errno.ENOSPC, "full"), RunDirError),
    ],
)
def test_an_agent_that_fails_halfway_leaves_the_old_ones(registry, error, expected):
    class Failing(ArrayAgent):
        def save_weights(self, path):
            super().save_weights(path)
            raise error

    save(registry, 1.0)
    before = everything(registry.path)
    with pytest.raises(expected):
        save(registry, 2.0, agent=Failing())
    assert everything(registry.path) == before
    save(registry, 3.0)  # the lock was released too
    assert loaded(registry) == 3.0


def test_a_second_saver_is_told_of_the_first(registry):
    save(registry, 1.0)
    lock = RunLock.acquire(registry.path)
    with pytest.raises(RunDirError, match=f"being written by process {os.getpid()}"):
        save(registry, 2.0)
    assert loaded(registry) == 1.0  # reading needs no lock
    lock.release()
    save(registry, 2.0)
    assert loaded(registry) == 2.0


def test_a_protected_snapshot_is_not_removed_to_make_room(tmp_path):
    registry, agent = CheckpointRegistry(tmp_path, max_snapshots=2), ArrayAgent()
    first = registry.save(agent, EvalMetrics(1.0, {}, 0), HyperparamSet({}))
    registry.protected = {first.snapshot_id}
    for score in range(2, 9):
        registry.save(agent, EvalMetrics(float(score), {}, score), HyperparamSet({}))
    assert first.snapshot_id in {snapshot.snapshot_id for snapshot in registry.snapshots}
    registry.protected.clear()
    registry.save(agent, EvalMetrics(9.0, {}, 9), HyperparamSet({}))
    assert {snapshot.eval_metrics.primary_score for snapshot in registry.snapshots} == {9.0, 8.0}


def test_what_was_saved_after_a_place_is_dropped(tmp_path):
    registry, agent = CheckpointRegistry(tmp_path), ArrayAgent()
    assert registry.sequence == 0
    for score in (1.0, 3.0, 2.0):
        registry.save(agent, EvalMetrics(score, {}, 0), HyperparamSet({}))
    assert registry.sequence == 3
    registry.drop_after(1)
    assert [snapshot.eval_metrics.primary_score for snapshot in registry.snapshots] == [1.0]
