"""How the backend is started. Each case is a process of its own: a backend starts once."""

import json
import os
import subprocess
import sys

import pytest

from tensor_optix.loop import runtime

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
OURS = ("NPROC", "JAX_NUM_CPU_DEVICES", "XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")
SHOW = """
import json, os, warnings
from tensor_optix.loop import runtime
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", runtime.BackendStartedWarning)
    first = runtime.start(CACHE)
    again = runtime.start("/elsewhere")
import jax
said = [str(w.message) for w in caught if w.category is runtime.BackendStartedWarning]
print(json.dumps(vars(first) | {"same": again is first, "nproc": os.environ.get("NPROC"), "said": said,
    "flags": os.environ.get("XLA_FLAGS"),
    "devices": jax.local_device_count(), "may_deadlock": first.may_deadlock, "facts": runtime.examine(first)}))
"""


def run(code, **environment):
    kept = {name: value for name, value in os.environ.items() if name not in OURS}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=kept | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def started(before="", cache="None", **environment):
    return run(before + SHOW.replace("CACHE", cache), **environment)


def test_importing_every_module_starts_nothing():
    code = """
import importlib, json, os, pkgutil
before = dict(os.environ)
import tensor_optix, jax
for module in pkgutil.walk_packages(tensor_optix.__path__, "tensor_optix."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from jax._src import xla_bridge
print(json.dumps([xla_bridge.backends_are_initialized(), jax.config.jax_num_cpu_devices,
    jax.config.jax_compilation_cache_dir, "NPROC" in os.environ]))
"""
    assert run(code) == [False, -1, None, False]


def test_checking_an_environment_prepares_the_backend():
    """README's first steps: what is checked computes."""
    check = """
import jax
import jax.numpy as jnp
from tensor_optix import check_environment
from tensor_optix.envs.spaces import Box, Discrete

class Walk:
    default_params = None
    observation_space = lambda self, params: Box(-9.0, 9.0, (1,))
    action_space = lambda self, params: Discrete(2)
    reset_env = lambda self, key, params: (jnp.zeros(1), jnp.zeros(1))
    is_truncated = lambda self, state, params: jnp.abs(state[0]) > 3.0

    def step_env(self, key, state, action, params):
        state = state + jnp.where(action == 1, 1.0, -1.0)
        return state, state, state[0], jnp.bool_(False), {}

check_environment(Walk())
"""
    seen = started(before=check)
    assert seen["said"] == []
    assert not seen["may_deadlock"]


def test_by_itself_it_uses_every_core_and_a_large_pool():
    seen = started()
    assert (seen["devices"], seen["n_devices"], seen["n_cores"]) == (CORES, CORES, CORES)
    assert seen["pool_threads"] == max(runtime.MIN_POOL_THREADS, CORES)
    assert seen["nproc"] is None  # set for the moment of the start only
    assert seen["started_by_us"]
    assert seen["cache_dir"] is None
    assert seen["same"]  # a second start changes nothing
    assert seen["said"] == []
    assert seen["facts"]["problems"] == []


IS_ONE_KERNEL = """
import jax.numpy as jnp
def loop(x):
    return jax.lax.fori_loop(0, 1000, lambda i, x: jnp.tanh((x[:, None] * x[None]).sum(0)) + x * i, x)
text = jax.jit(loop).lower(jnp.ones((8, 8))).compile().as_text()
print(json.dumps(vars(first) | {"flags": os.environ.get("XLA_FLAGS"), "one_kernel": "xla_cpu_small_call" in text}))
"""


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, True),
        ({"XLA_FLAGS": "--xla_cpu_enable_fast_math=false"}, True),
        ({"XLA_FLAGS": "--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=1"}, True),
        ({"XLA_FLAGS": "--xla_backend_extra_options=xla_cpu_disable_slp_vectorizer=true"}, False),
    ],
)
def test_small_loops_become_one_kernel_and_the_flags_are_as_before(flags, expected):
    seen = run(SHOW.replace("CACHE", "None") + IS_ONE_KERNEL, **flags)
    assert seen["small_loops"] is expected  # False: the user's own extra options win
    assert seen["one_kernel"] is ("byte_threshold=1" not in flags.get("XLA_FLAGS", "") and expected)
    assert seen["flags"] == flags.get("XLA_FLAGS")


def test_what_the_user_has_set_is_left_alone(tmp_path):
    own = str(tmp_path / "own")
    seen = started(cache='"/other"', NPROC="5", JAX_NUM_CPU_DEVICES="1", JAX_COMPILATION_CACHE_DIR=own)
    assert (seen["nproc"], seen["pool_threads"], seen["devices"], seen["cache_dir"]) == ("5", 5, 1, own)
    assert seen["said"] == []


def test_a_device_count_in_the_flags_is_left_alone(tmp_path):
    cache = str(tmp_path / "cache")
    seen = started(cache=repr(cache), XLA_FLAGS="--xla_force_host_platform_device_count=3")
    assert (seen["devices"], seen["cache_dir"]) == (3, cache)


def test_a_small_pool_started_before_us_is_warned_of_with_the_remedy():
    seen = started("import jax; jax.devices()\n", NPROC="2")
    assert not seen["started_by_us"]
    assert seen["may_deadlock"]
    assert len(seen["said"]) == 1
    for part in ("a pool of 2 threads", "deadlock", "tensor_optix.start_runtime()", "NPROC=8 before starting Python"):
        assert part in seen["said"][0]
    assert any("may deadlock: unset NPROC or set NPROC=8" in problem for problem in seen["facts"]["problems"])


@pytest.mark.skipif(CORES < 2, reason="one core is one device anyway")
def test_too_few_devices_started_before_us_are_warned_of():
    seen = started("import jax; jax.devices()\n", NPROC="8")
    assert (seen["devices"], seen["may_deadlock"]) == (1, False)
    assert len(seen["said"]) == 1
    assert f"1 device(s) on {CORES} cores" in seen["said"][0]
    assert "tensor_optix.start_runtime()" in seen["said"][0]


def test_the_users_own_small_pool_is_warned_of():
    seen = started(NPROC="2")
    assert (seen["pool_threads"], seen["started_by_us"], len(seen["said"])) == (2, True, 1)
    assert "a pool of 2 threads, set by NPROC" in seen["said"][0]


@pytest.mark.parametrize(
    ("platform", "cores", "pool", "expected"),
    [
        ("cpu", 2, None, True),
        ("cpu", 2, 8, False),
        ("cpu", 16, None, False),
        ("cpu", 16, 3, True),
        ("gpu", 2, 2, False),
    ],
)
def test_what_may_deadlock(platform, cores, pool, expected):
    assert runtime.Runtime(platform, 1, cores, pool, None, False).may_deadlock is expected


def test_a_cache_that_cannot_be_written_is_a_problem(tmp_path):
    def problems(cache):
        return runtime.examine(runtime.Runtime("cpu", 2, 2, 8, str(cache), True))["problems"]

    assert problems(tmp_path / "not" / "made" / "yet") == []
    (tmp_path / "file").write_text("")
    (said,) = problems(tmp_path / "file" / "cache")
    assert "cannot be written: choose another with --cache-dir" in said


def test_the_default_cache_follows_the_users_directories(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert runtime.default_cache_dir() == tmp_path / "tensor_optix" / "xla"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert runtime.default_cache_dir() == tmp_path / "home" / ".cache" / "tensor_optix" / "xla"


@pytest.mark.parametrize("runs_once", [True, False])
def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch, runs_once):
    import jax

    known = runtime.compiler_options("cpu", runs_once)
    asked = {"xla_of_another_version": 1} | known | {"xla_cpu_of_another_version": True}
    monkeypatch.setattr(runtime, "compiler_options", lambda *_: asked)
    compiled = runtime.compile_program(jax.jit(lambda x: x + 1).lower(1.0), "cpu", runs_once)
    assert compiled(1.0) == 2.0


def test_other_errors_of_the_compiler_are_not_hidden():
    import jax

    class Broken:
        def compile(self, options):
            raise jax.errors.JaxRuntimeError("INTERNAL: 'xla_cpu_scheduler_type' is broken")

    with pytest.raises(jax.errors.JaxRuntimeError, match="broken"):
        runtime.compile_program(Broken(), "cpu")


def test_only_a_cpu_needs_compiler_options():
    assert runtime.compiler_options("gpu") == {}
    assert runtime.compiler_options("cpu")
