"""Whole runs on gymnax environments with the presets. Ten seeds each."""

import numpy as np
import pytest

from tensor_optix.core.types import StopReason
from tensor_optix.training import train

pytestmark = pytest.mark.slow
SEEDS = 10


@pytest.mark.timeout(900)
def test_cartpole_converges_to_the_optimum_in_every_seed():
    result = train("CartPole-v1", seeds=SEEDS, total_steps=1_000_000, progress=False)
    assert [m.stop_reason for m in result.members] == [StopReason.CONVERGED] * SEEDS, str(result)
    assert all(m.returns.shape == (100,) for m in result.members)
    assert np.min(result.scores) >= 475, result.scores


@pytest.mark.timeout(900)
def test_pendulum_swings_up_within_100k_steps():
    result = train("Pendulum-v1", seeds=SEEDS, total_steps=100_000, stop=False, progress=False)
    assert result.iqm >= -200, result.scores
    assert all(m.returns.shape == (100,) for m in result.members)
    assert all(m.env_steps <= 100_000 + 2048 for m in result.members)
