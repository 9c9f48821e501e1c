"""The suite's strict setting: what the library's own code may not do raises here.

The backend starts through `loop.runtime`, as it does for a user: two devices and a thread pool that cannot deadlock.
Compiled programs are kept for the length of the session, because many tests run the same one.
"""

import os
import tempfile

os.environ.setdefault("MPLBACKEND", "Agg")

from tensor_optix.loop import runtime

_CACHE = tempfile.TemporaryDirectory(prefix="tensor-optix-xla-")
runtime.start(cache_dir=_CACHE.name)

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def checked_keys():
    """Every random key is consumed once, or the test fails."""
    with jax.debug_key_reuse(True):
        yield
