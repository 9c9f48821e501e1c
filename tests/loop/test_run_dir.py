"""A run's directory: what goes in comes out bit for bit, and nothing that is not a run's is touched."""

import json
import logging
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from tensor_optix.core.types import EvalMetrics, StopReason
from tensor_optix.loop import run_dir as run_dir_module
from tensor_optix.loop.run_dir import NoCheckpointError, RunDir, RunDirError


@struct.dataclass
class Inner:
    weights: dict
    key: jax.Array
    steps: int
    rate: float
    done: bool
    label: str = struct.field(pytree_node=False, default="static")


def make_state(seed: int = 0) -> Inner:
    rng = np.random.default_rng(seed)
    return Inner(
        weights={
            "float32": jnp.asarray(rng.normal(size=(3, 4)).astype(np.float32)),
            "bfloat16": jnp.asarray(rng.normal(size=5), jnp.bfloat16),
            "uint8": jnp.asarray(rng.integers(0, 256, 7), jnp.uint8),
            "bool": jnp.asarray(rng.random(9) < 0.5),
            "odd bits": jnp.asarray(np.array([np.nan, -0.0, np.inf, 1e-45], np.float32)),
            "empty": jnp.zeros((0, 3), jnp.int32),
            "a/b": (jnp.int32(seed), [jnp.float32(1.5)]),
            "..": np.arange(6, dtype=np.int64).reshape(2, 3)[:, ::2],
            "scalar": np.float64(np.pi),
            "none": None,
        },
        key=jax.random.split(jax.random.key(seed), 3),
        steps=2**70 + seed,
        rate=float("nan"),
        done=True,
    )


def bits(leaf) -> bytes:
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return repr(leaf).encode() if isinstance(leaf, (int, float)) else np.asarray(leaf).tobytes()


def assert_same(left, right) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert type(a) is type(b)
        assert getattr(a, "dtype", None) == getattr(b, "dtype", None)
        assert bits(a) == bits(b)


@pytest.fixture
def run(tmp_path):
    with RunDir.create(tmp_path / "run", {"seeds": [0, 1]}) as opened:
        yield opened


# ---- opening -------------------------------------------------------------------------------------------------------


def test_create_writes_a_manifest_that_open_and_read_find(tmp_path):
    config = {"rate": np.float32(0.5), "reason": StopReason.TARGET, "bad": float("-inf")}
    with RunDir.create(tmp_path / "a" / "b", {"config": config}) as run:
        run.update_manifest(status="finished")
    with RunDir.open(tmp_path / "a" / "b") as run:
        assert run.manifest["config"] == {"rate": 0.5, "reason": 2, "bad": "-Infinity"}
    manifest = RunDir.read(tmp_path / "a" / "b").manifest
    assert manifest["status"] == "finished"
    assert manifest["versions"]["jax"] == jax.__version__
    assert str(tmp_path) not in json.dumps(manifest)


def test_a_moved_run_opens(run, tmp_path):
    run.save_checkpoint(1, {"x": jnp.arange(3)}, {})
    run.close()
    os.rename(run.path, tmp_path / "moved")
    with RunDir.open(tmp_path / "moved") as moved:
        assert moved.load_checkpoint({"x": jnp.zeros(3, jnp.int32)}).step == 1


def test_bad_manifests_are_refused(tmp_path):
    with pytest.raises(ValueError, match="format_version"):
        RunDir.create(tmp_path / "run", {"format_version": 3})
    with pytest.raises(TypeError, match=r"manifest\['env'\]\[1\] is a object"):
        RunDir.create(tmp_path / "run", {"env": [1, object()]})
    with pytest.raises(ValueError, match="keep"):
        RunDir.create(tmp_path / "run", {}, keep=0)
    assert not (tmp_path / "run").exists()


def test_another_run_is_refused_unless_overwritten(run):
    run.save_checkpoint(3, {"x": 1}, {})
    run.append_events([{"a": 1}])
    run.save_policy({"w": np.ones(2)}, {})
    run.save_result({"score": 1.0}, {"curve": np.ones(3)})
    run.close()
    (run.path / "notes.txt").write_text("mine")
    (run.path / "checkpoints" / "notes.txt").write_text("mine too")
    with pytest.raises(RunDirError, match=r"another run \(status: running\); resume it, ask for overwrite, or choose"):
        RunDir.create(run.path, {})
    with RunDir.create(run.path, {"second": True}, overwrite=True) as second:
        assert second.checkpoint_steps() == []
        assert second.read_events() == []
    left = sorted(p.relative_to(run.path).as_posix() for p in run.path.rglob("*") if p.is_file())
    assert left == [".lock", "checkpoints/notes.txt", "manifest.json", "notes.txt"]
    assert "seeds" not in RunDir.read(run.path).manifest


@pytest.mark.parametrize("content", ["thesis.tex", "manifest.json"])
def test_a_directory_that_is_no_run_is_refused_even_with_overwrite(tmp_path, content):
    (tmp_path / content).write_text("[]")
    for overwrite in (False, True):
        with pytest.raises(RunDirError, match="choose another path"):
            RunDir.create(tmp_path, {}, overwrite=overwrite)
    assert [p.name for p in tmp_path.iterdir()] == [content]


def test_what_is_no_run_does_not_open(tmp_path):
    with pytest.raises(RunDirError, match="no such directory"):
        RunDir.open(tmp_path / "missing")
    with pytest.raises(RunDirError, match=r"manifest\.json is missing"):
        RunDir.read(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(RunDirError, match="is a file"):
        RunDir.create(tmp_path / "file", {})
    with pytest.raises(RunDirError, match="a part of the path is a file"):
        RunDir.create(tmp_path / "file" / "run", {})
    assert not (tmp_path / ".lock").exists()


def test_a_newer_format_is_refused(run):
    run.close()
    manifest = {**run.manifest, "format_version": 99}
    (run.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunDirError, match="format version 99"):
        RunDir.open(run.path)


@pytest.mark.parametrize("name", ["checkpoints", "policy", "events.jsonl", ".lock"])
def test_links_out_of_the_directory_are_refused(tmp_path, name):
    RunDir.create(tmp_path / "run", {}).close()
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "run" / "checkpoints").rmdir()
    (tmp_path / "run" / ".lock").unlink()
    (tmp_path / "run" / name).symlink_to(outside)
    for opening in (RunDir.open, lambda path: RunDir.create(path, {}, overwrite=True)):
        with pytest.raises(RunDirError):
            opening(tmp_path / "run")
    assert list(outside.iterdir()) == []


def test_a_second_writer_in_the_same_process_is_refused(run):
    with pytest.raises(RunDirError, match=f"being written by process {os.getpid()} on .*; stop that process first"):
        RunDir.open(run.path)
    with pytest.raises(RunDirError, match="being written"):
        RunDir.create(run.path, {}, overwrite=True)
    run.close()
    RunDir.open(run.path).close()


def test_readers_and_closed_runs_do_not_write(run):
    reader = RunDir.read(run.path)
    run.close()
    for closed in (reader, run):
        for write in (
            lambda r: r.save_checkpoint(1, {}, {}),
            lambda r: r.append_events([{}]),
            lambda r: r.truncate_events(0),
            lambda r: r.update_manifest(a=1),
            lambda r: r.save_policy({}, {}),
            lambda r: r.save_result({}, {}),
        ):
            with pytest.raises(RunDirError, match="closed or open for reading only"):
                write(closed)


def test_leftovers_of_a_killed_writer_go_at_opening(run):
    run.close()
    leftovers = [run.path / "checkpoints" / ".tmp-run-7", run.path / ".tmp-run-manifest.json"]
    leftovers[0].mkdir()
    (leftovers[0] / "half").touch()
    leftovers[1].touch()
    RunDir.read(run.path)
    assert all(path.exists() for path in leftovers)
    RunDir.open(run.path).close()
    assert not any(path.exists() for path in leftovers)


# ---- events --------------------------------------------------------------------------------------------------------


def test_events_are_valid_json_whatever_the_numbers(run):
    rows = [{"score": np.float32("nan"), "best": -np.inf, "n": np.int64(3), "list": jnp.arange(2)}, {"ok": np.True_}]
    rows += [{"half": jnp.bfloat16(1.5), "scores": EvalMetrics(1.0, {"x": np.ones(1)}, 3, timestamp=0.0)}]
    run.append_events(rows)
    run.append_events([])
    text = (run.path / "events.jsonl").read_text()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    parsed = [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
    assert parsed == [{"score": "NaN", "best": "-Infinity", "n": 3, "list": [0, 1]}, {"ok": True}, parsed[2]]
    metrics = {"primary_score": 1.0, "metrics": {"x": [1.0]}, "episode_id": 3, "timestamp": 0.0}
    assert parsed[2] == {"half": 1.5, "scores": metrics}
    assert run.read_events() == parsed
    with pytest.raises(TypeError, match="is a object"):
        run.append_events([{"x": object()}])
    assert run.events_offset == len(text)


def test_a_torn_last_line_is_left_out_and_then_cut(run):
    run.append_events([{"n": 1}])
    run.close()
    with (run.path / "events.jsonl").open("a") as file:
        file.write('{"n": 2, "to')
    assert RunDir.read(run.path).read_events() == [{"n": 1}]
    with RunDir.open(run.path) as again:
        again.append_events([{"n": 3}])
        assert again.read_events() == [{"n": 1}, {"n": 3}]


@pytest.mark.parametrize(("offset", "left"), [(0, []), (8, [1]), (12, [1]), (16, [1, 2]), (99, [1, 2, 3])])
def test_truncation_keeps_whole_lines_below_the_offset(run, offset, left):
    run.append_events([{"n": 1}, {"n": 2}, {"n": 3}])  # 9 bytes each
    run.truncate_events(offset + offset // 8)
    run.append_events([{"n": 4}])
    assert [row["n"] for row in run.read_events()] == [*left, 4]


def test_a_line_longer_than_the_read_block_is_found_whole(run):
    run.append_events([{"n": 1}, {"text": "x" * 200_000}])
    run.close()
    with RunDir.open(run.path) as again:
        assert len(again.read_events()) == 2
        size = os.path.getsize(run.path / "events.jsonl")
        assert again.events_offset == size
        again.truncate_events(size - 1)
        assert again.read_events() == [{"n": 1}]


def test_a_damaged_line_is_named(run):
    (run.path / "events.jsonl").write_text('{"n": 1}\n{"n" 2}\n{"n": 3}\n')
    with pytest.raises(RunDirError, match=r"Line 2 of .* is not a JSON object"):
        run.read_events()


# ---- checkpoints ---------------------------------------------------------------------------------------------------


def test_a_state_comes_back_bit_for_bit(run):
    state = make_state(1)
    run.append_events([{"n": 1}])
    run.save_checkpoint(5, state, {"episodes": np.int32(4), "best": float("nan")})
    loaded = run.load_checkpoint(make_state(2))
    assert_same(loaded.state, state)
    assert (loaded.step, loaded.skipped, loaded.events_offset) == (5, [], 9)
    assert loaded.meta == {"episodes": 4, "best": "NaN"}
    assert str(jax.random.key_impl(loaded.state.key)) == "threefry2x32"


def test_an_abstract_template_is_enough(run):
    state = jax.tree.map(jnp.asarray, {"w": np.ones((2, 3), np.float32), "n": np.int32(3)})
    state["key"] = jax.random.key(7, impl="rbg")
    run.save_checkpoint(0, state, {})
    loaded = run.load_checkpoint(jax.eval_shape(lambda: state)).state
    assert_same(loaded, state)
    assert str(jax.random.key_impl(loaded["key"])) == "rbg"


@pytest.mark.parametrize("state", [{}, None, 3, {"empty": np.zeros(0)}, (jnp.arange(2),)])
def test_small_states(run, state):
    run.save_checkpoint(0, state, {})
    assert_same(run.load_checkpoint(state).state, state)


def test_resuming_does_not_compile_anew(run):
    traces = []

    @jax.jit
    def window(state):
        traces.append(None)
        return jax.tree.map(lambda x: x + x.dtype.type(1), state)

    state = {"weak": jnp.asarray(1.0), "strong": jnp.float32(1.0), "placed": jax.device_put(1, jax.devices()[0])}
    window(state)
    compiled = window._cache_size()
    run.save_checkpoint(1, state, {})
    window(run.load_checkpoint(state).state)
    assert len(traces) == 1
    assert window._cache_size() == compiled


def test_saving_leaves_buffers_free_to_be_donated(run):
    advance = jax.jit(lambda x: x + np.float32(1), donate_argnums=0)
    x = advance(jnp.zeros(1000, jnp.float32))
    before = x.unsafe_buffer_pointer()
    run.save_checkpoint(1, {"x": x}, {})
    assert advance(x).unsafe_buffer_pointer() == before
    assert np.all(run.load_checkpoint({"x": x}).state["x"] == 1)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            {"w": np.zeros((3, 5), np.float32)},
            r"state\['w'\] was saved as float32\[3, 4\], the run has float32\[3, 5\]",
        ),
        ({"w": np.zeros((3, 4), np.int32)}, r"state\['w'\] was saved as float32\[3, 4\], the run has int32\[3, 4\]"),
        ({"v": np.zeros((3, 4), np.float32)}, r"state\['v'\] .* was not saved; state\['w'\] was saved .* no such leaf"),
        ({"w": 1.0}, r"was saved as float32\[3, 4\], the run has a Python float"),
        ({"w": jax.eval_shape(lambda: jax.random.key(0))}, r"the run has key<fry>\[\]"),
    ],
)
def test_a_misfit_is_named(run, template, message):
    run.save_checkpoint(1, {"w": jnp.zeros((3, 4), jnp.float32)}, {})
    with pytest.raises(ValueError, match=message):
        run.load_checkpoint(template)


def test_a_long_list_of_misfits_is_cut(run):
    run.save_checkpoint(1, {f"w{i}": 0 for i in range(9)}, {})
    with pytest.raises(ValueError, match="; and 4 more"):
        run.load_checkpoint({})


@pytest.mark.parametrize("leaf", ["text", np.array(["a"]), np.array([None]), 1j, np.datetime64("2020-01-01")])
def test_leaves_without_a_safe_form_are_refused(run, leaf):
    with pytest.raises(TypeError, match=r"state\['a'\]\[0\] is a .* cannot hold"):
        run.save_checkpoint(1, {"a": [leaf]}, {})
    with pytest.raises(TypeError, match=r"meta\['x'\]"):
        run.save_checkpoint(1, {}, {"x": object()})
    assert run.checkpoint_steps() == []


def test_the_newest_two_are_kept(run):
    for step in (1, 2, 10):
        run.save_checkpoint(step, {"x": step}, {})
    assert run.checkpoint_steps() == [2, 10]
    assert run.load_checkpoint({"x": 0}).state == {"x": 10}


def test_steps_do_not_go_back(run):
    run.save_checkpoint(10, {"x": 1}, {})
    run.save_checkpoint(10, {"x": 2}, {})  # the same step is replaced
    assert run.load_checkpoint({"x": 0}).state == {"x": 2}
    for step in (9, -1, True, 2.5):
        with pytest.raises(ValueError, match="step"):
            run.save_checkpoint(step, {"x": 1}, {})


def test_damaged_checkpoints_go_once_a_newer_save_is_durable(run, caplog):
    for step in (5, 10):
        run.save_checkpoint(step, {"x": jnp.int32(step)}, {})
    next((run.path / "checkpoints" / "10").rglob("manifest.ocdbt")).write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        loaded = run.load_checkpoint({"x": jnp.int32(0)})
    assert loaded.step == 5
    assert "Went back to checkpoint 5" in caplog.text
    assert run.checkpoint_steps() == [5, 10]
    run.save_checkpoint(7, {"x": jnp.int32(7)}, {})
    assert run.checkpoint_steps() == [5, 7]


def test_a_renamed_checkpoint_is_not_believed(run):
    run.save_checkpoint(5, {"x": 1}, {})
    os.rename(run.path / "checkpoints" / "5", run.path / "checkpoints" / "50")
    with pytest.raises(NoCheckpointError, match="checkpoint 50: it is checkpoint 5 under another name"):
        run.load_checkpoint({"x": 0})


def test_without_a_checkpoint_the_error_says_so(run):
    with pytest.raises(NoCheckpointError, match="no checkpoint"):
        run.load_checkpoint({})


def test_hidden_files_do_not_invalidate_a_checkpoint(run):
    run.save_checkpoint(5, {"x": 1}, {})
    (run.path / "checkpoints" / "5" / ".DS_Store").touch()
    assert run.load_checkpoint({"x": 0}).skipped == []


def test_a_reader_follows_a_writer_that_retires_checkpoints(run, monkeypatch):
    for step in (1, 2):
        run.save_checkpoint(step, {"x": step}, {})
    reader, looks = RunDir.read(run.path), []

    def look_late(directory):
        looks.append(directory.name)
        if len(looks) == 1:
            for step in (3, 4):
                run.save_checkpoint(step, {"x": step}, {})
        return real(directory)

    real = run_dir_module.checkpoint_files.damage
    monkeypatch.setattr(run_dir_module.checkpoint_files, "damage", look_late)
    loaded = reader.load_checkpoint({"x": 0})
    assert (loaded.step, loaded.skipped, looks) == (4, [], ["2", "1", "4"])


_ON_TWO_DEVICES = """
import sys, jax, numpy as np, jax.numpy as jnp
from tensor_optix.loop.run_dir import RunDir
assert not any(name.split(".")[0] in ("orbax", "safetensors", "tensorstore") for name in sys.modules), "slow import"
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("m",))
split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("m"))
whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
on_second = jax.sharding.SingleDeviceSharding(jax.devices()[1])
def state(n):
    x, k = jnp.arange(8, dtype=jnp.float32).reshape(4, 2) + n, jax.random.split(jax.random.key(n), 4)
    s = {"x": jax.device_put(x, split), "k": jax.device_put(k, split), "r": jax.device_put(x, whole)}
    return {**s, "second": jax.device_put(x, on_second), "free": x}
with RunDir.create(sys.argv[1], {}) as run:
    saved, template = state(1), state(2)
    run.save_checkpoint(0, saved, {})
    loaded = run.load_checkpoint(template).state
    flipped = run.load_checkpoint({**template, "x": jax.device_put(template["x"], whole)}).state
for name, leaf in loaded.items():
    assert leaf.sharding == template[name].sharding and leaf.committed == template[name].committed, name
    assert (leaf == saved[name]).all(), name
assert flipped["x"].sharding == whole and (flipped["x"] == saved["x"]).all()
"""


def test_sharded_arrays_return_to_the_templates_devices(tmp_path):
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu", "NPROC": "8"}
    command = [sys.executable, "-c", _ON_TWO_DEVICES, str(tmp_path / "run")]
    done = subprocess.run(command, env={**os.environ, **flags}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# ---- policy and result ---------------------------------------------------------------------------------------------


def test_a_policy_comes_back(run):
    grid = np.arange(6, dtype=np.float32).reshape(2, 3)
    arrays = {"c": grid, "f": np.asfortranarray(grid), "cut": grid[:, ::2], "scalar": np.float32(2.0)}
    arrays |= {"empty": np.zeros((0, 3), np.int32), "jax": jnp.ones(2, jnp.uint8)}
    run.save_policy(arrays, {"layers": [64, 64], "bound": float("inf")})
    loaded, meta = RunDir.read(run.path).load_policy()
    assert meta == {"layers": [64, 64], "bound": "Infinity"}
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], np.asarray(array), strict=True)
    described = json.loads((run.path / "policy" / "policy.json").read_text())
    assert described["arrays"]["f"] == {"dtype": "float32", "shape": [2, 3]}


def test_policy_errors(run):
    with pytest.raises(RunDirError, match="no policy"):
        run.load_policy()
    with pytest.raises(TypeError, match="'w' has dtype bfloat16; convert it to float32"):
        run.save_policy({"w": jnp.ones(2, jnp.bfloat16)}, {})


def test_every_flipped_bit_of_a_policy_is_harmless_or_found(run):
    arrays, meta = {"w": np.arange(4, dtype=np.float32)}, {"n": 1}
    run.save_policy(arrays, meta)
    path = run.path / "policy" / "policy.safetensors"
    whole = path.read_bytes()
    found = 0
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :])
        try:
            loaded, description = run.load_policy()
        except RunDirError:
            found += 1
        else:
            np.testing.assert_array_equal(loaded["w"], arrays["w"], strict=True)
            assert description == meta
    assert found >= 0.9 * len(whole)
    path.write_bytes(b"")
    with pytest.raises(RunDirError, match="damaged"):
        run.load_policy()


def test_a_result_comes_back(run):
    with pytest.raises(RunDirError, match="no result"):
        run.load_result()
    curves = {"score": np.array([[1.0, np.nan]]), "reason": np.array(["target"]), "file": np.arange(3)}
    run.save_result({"iqm": np.float32(1.5), "worst": float("nan")}, curves)
    result, loaded = RunDir.read(run.path).load_result()
    assert result == {"iqm": 1.5, "worst": "NaN"}
    for name, curve in curves.items():
        np.testing.assert_array_equal(loaded[name], curve, strict=True)
    with pytest.raises(TypeError, match="'bad' has dtype object"):
        run.save_result({}, {"bad": np.array([None])})
    (run.path / "curves.npz").write_bytes(b"PK")
    with pytest.raises(RunDirError, match="damaged"):
        run.load_result()
