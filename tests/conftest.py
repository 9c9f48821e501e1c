"""The suite's strict setting: what the library's own code may not do raises here.

The backend starts through `loop.runtime`, as it does for a user: two devices and a thread pool that cannot deadlock.
Compiled programs are kept for the length of the session, because many tests run the same one. What is jitted here is
compiled as quickly as XLA can, in 40 % of the time. Command lines that tests start, and the driver in slow tests,
compile as they do for a user.
"""

import gc
import os
import tempfile
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")

from tensor_optix.loop import runtime

_CACHE_OF_ALL = "TENSOR_OPTIX_TESTS_CACHE"  # what one worker has compiled, no other compiles again
if _CACHE_OF_ALL not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="tensor-optix-xla-")
    os.environ[_CACHE_OF_ALL] = _cache.name
_FLAGS = os.environ.get("XLA_FLAGS")
_QUICKLY = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
_QUICKLY += " --xla_cpu_parallel_codegen_split_count=1"  # the other core has tests of its own
os.environ["XLA_FLAGS"] = f"{_FLAGS or ''} {_QUICKLY}"
runtime.start(cache_dir=os.environ[_CACHE_OF_ALL])
if _FLAGS is None:  # child processes are users
    del os.environ["XLA_FLAGS"]
else:
    os.environ["XLA_FLAGS"] = _FLAGS

import jax
import pytest

from tests.runs import XLA_DEFAULTS

gc.set_threshold(50_000, 20, 50)  # thousands of traced programs stay alive: going through them at each turn is slow

_MOST_MAPS = 50_000  # of the 65 530 that Linux allows by default

_compiler_options = runtime.compiler_options


def _as_for_a_user(platform: str, runs_once: bool = False) -> dict[str, object]:
    return (XLA_DEFAULTS if platform == "cpu" else {}) | _compiler_options(platform, runs_once)


def pytest_configure(config: pytest.Config) -> None:
    if config.option.markexpr != "not slow":
        runtime.compiler_options = _as_for_a_user


jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(scope="module", autouse=True)
def _room_for_programs():
    """A process may map so many pieces of memory only, and each program takes some: compiling beyond that hangs."""
    yield
    maps = Path("/proc/self/maps")  # of Linux
    if maps.exists() and maps.read_bytes().count(b"\n") > _MOST_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def checked_keys():
    """Every random key is consumed once, or the test fails."""
    with jax.debug_key_reuse(True):
        yield
