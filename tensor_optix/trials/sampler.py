"""Optuna's TPE sampler with a generator of its own for every trial, so that a resumed study goes on as it would have.

A sampler that is seeded once begins anew with each process: resumed, it would propose its first trials again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial

N_EI_CANDIDATES = 24  # points at which the ratio of the two densities is compared


class SeededTPE(BaseSampler):
    """Tree-structured Parzen estimator (Bergstra et al., 2011), multivariate; trial n draws from (seed, n).

    Args:
        seed: of the search.
        n_startup_trials: drawn at random before the densities are fitted.
    """

    def __init__(self, seed: int, n_startup_trials: int) -> None:
        self._seed, self._n_startup = seed, n_startup_trials
        self._current: tuple[int, TPESampler] | None = None  # trial number, its sampler

    def _of(self, trial: FrozenTrial) -> TPESampler:
        if self._current is None or self._current[0] != trial.number:
            seed = int(np.random.SeedSequence([self._seed, trial.number]).generate_state(1)[0])
            sampler = TPESampler(
                n_startup_trials=self._n_startup,
                n_ei_candidates=N_EI_CANDIDATES,
                seed=seed,
                multivariate=True,
                group=False,
                constant_liar=True,  # trials that run side by side should not all try the same
            )
            self._current = trial.number, sampler
        return self._current[1]

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._of(trial).sample_relative(study, trial, dict(search_space))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)
