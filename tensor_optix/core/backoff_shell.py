"""BackoffScheduler: the scheduler of `backoff_scheduler.py` as a class with state, for loops on the host."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from tensor_optix.core import backoff_scheduler
from tensor_optix.core.backoff_scheduler import BackoffConfig, Verdict
from tensor_optix.core.types import LoopState

# The rule whose error rates are measured, and a loss that is too small to be one (in score units) besides.
HOST_DEFAULT = BackoffConfig(max_interval=1, min_degradation_drop=1e-4)


class BackoffScheduler:
    """Stateful face of `backoff_scheduler`, for host loops.

    Either hand every evaluation to `observe`, which does everything, or drive it by hand: `record_score`, ask
    `is_improving`, and answer with `record_improvement` or `record_non_improvement`, whose thresholds then count
    non-improvements in a row. Intervals and `n` are in windows ("episodes" in argument names), the rest in evaluations.

    Args:
        degradation_threshold: a fall must lose at least 1 - this of the rise so far. Never a share of the score itself,
            which would be meaningless for negative scores.
        min_degradation_drop: smallest fall that counts, in score units.
        confidence: as in `BackoffConfig`; so are all the others.
    """

    def __init__(
        self,
        base_interval: int = 1,
        backoff_factor: float = 2.0,
        max_interval_episodes: int = 100,
        plateau_threshold: int = 5,
        dormant_threshold: int = 20,
        degradation_threshold: float = 0.95,
        min_degradation_drop: float = 1e-4,
        min_episodes_before_dormant: int = 0,
        min_episodes_before_degradation: int = 5,
        noise_k: float = 2.0,
        score_window: int = 20,
        trend_window: int = 8,
        confidence: float = BackoffConfig.confidence,
    ) -> None:
        if not 0 <= degradation_threshold <= 1:
            raise ValueError(f"degradation_threshold is {degradation_threshold!r}: give a share in [0, 1], as 0.95")
        self.min_degradation_drop = min_degradation_drop
        self.config = BackoffConfig(
            base_interval=base_interval,
            backoff_factor=backoff_factor,
            max_interval=max_interval_episodes,
            plateau_threshold=plateau_threshold,
            dormant_threshold=dormant_threshold,
            confidence=confidence,
            trend_window=trend_window,
            min_evaluations_before_dormant=min_episodes_before_dormant,
            score_window=score_window,
            noise_k=noise_k,
            degradation_share=1 - degradation_threshold,
            min_degradation_drop=min_degradation_drop,
            min_evaluations_before_degradation=min_episodes_before_degradation,
        )
        self.state = backoff_scheduler.init(self.config)
        self._answers = 0

    def configure(self, config: BackoffConfig) -> None:
        """Take other settings; what was remembered is forgotten."""
        self.config = config
        self.state = backoff_scheduler.init(config)
        self._answers = 0

    def observe(self, score: float, valid: bool = True) -> Verdict:
        """Take one evaluation into account: the whole of the pure `observe`."""
        self.state, verdict = _observe(self.config, self.state, jnp.float32(score), jnp.bool_(valid))
        return verdict

    def record_score(self, score: float) -> None:
        """Remember one score, without a transition. A score that is not finite is ignored."""
        if math.isfinite(score):
            self.state = _remember_jit(self.config, self.state, jnp.float32(score))

    def is_improving(self) -> bool:
        """The newest `trend_window` scores rise."""
        return bool(_improving_jit(self.config, self.state))

    def is_degrading(self) -> bool:
        """The newest scores lie far below the best."""
        return int(self.state.below) > 0

    def is_converged(self, cv_threshold: float = 0.05, gap_threshold: float = 0.20, gap: float | None = None) -> bool:
        """DORMANT, or settled: plateaued, noise at most `cv_threshold` of the rise, `gap` at most `gap_threshold`."""
        if gap is not None and gap > gap_threshold:
            return False
        if self.current_state in (LoopState.DORMANT, LoopState.WATCHDOG):
            return True
        calm = float(self.state.noise) <= cv_threshold * float(self.state.best - self.state.worst)
        return bool(self.state.improved) and self.current_state == LoopState.COOLING and calm

    def check_degradation(self, score: float) -> bool:
        """Whether this one score lies below the best by more than the noise, the share and the smallest drop."""
        if not math.isfinite(score) or self.total_episodes < self.config.min_evaluations_before_degradation:
            return False
        share = self.config.degradation_share * max(self.best_score - float(self.state.worst), 0.0)
        fall = max(self.config.degradation_k * float(self.state.wander), share)
        return self.best_score - score > max(fall, self.min_degradation_drop)

    def record_improvement(self, score: float) -> None:
        """ACTIVE, base interval; `score` may raise the best."""
        self._answer(misses=0, best=max(self.best_score, score), improved=True)

    def record_non_improvement(self) -> None:
        """One more in a row: the interval grows; COOLING and DORMANT at their thresholds."""
        self._answer(misses=self.consecutive_non_improvements + 1)

    def record_degradation(self) -> None:
        """ACTIVE, base interval: what has fallen may rise again."""
        self._answer(misses=0)

    def record_restart(self, keep: float = 0.0) -> None:
        """A handled DORMANT resumes; keep: share of the interval that stays."""
        self.state = backoff_scheduler.restart(self.config, self.state, keep)

    def enter_watchdog(self) -> None:
        """From here on only degradation is looked for."""
        self.state = backoff_scheduler.enter_watchdog(self.config, self.state)

    def should_adapt(self, n: int) -> bool:
        """Whether window `n` is one after which to evaluate."""
        return n % self.current_interval == 0

    @property
    def current_state(self) -> LoopState:
        return LoopState(int(self.state.code))

    @property
    def current_interval(self) -> int:
        return int(self.state.interval)

    @property
    def consecutive_non_improvements(self) -> int:
        return int(self.state.misses)

    @property
    def best_score(self) -> float:
        """Highest smoothed or recorded score; -inf before the first."""
        return float(self.state.best)

    @property
    def total_episodes(self) -> int:
        """Evaluations so far, observed or answered by hand."""
        return max(int(self.state.evaluations), self._answers)

    def _answer(self, misses: int, best: float | None = None, improved: bool = False) -> None:
        self._answers += 1
        enough = self.total_episodes >= self.config.min_evaluations_before_dormant
        over = jnp.bool_(enough and misses >= self.config.dormant_threshold)
        count = jnp.int32(misses)
        code = backoff_scheduler.next_code(self.config, self.state.code, count, over)
        self.state = dataclasses.replace(
            self.state,
            misses=count,
            improved=self.state.improved | improved,
            best=self.state.best if best is None else jnp.float32(best),
            interval=backoff_scheduler.next_interval(self.config, self.state.interval, count, code),
            code=code,
        )


_observe = jax.jit(backoff_scheduler.observe, static_argnums=0)
_remember_jit = jax.jit(backoff_scheduler.remember, static_argnums=0)
_improving_jit = jax.jit(
    lambda config, state: backoff_scheduler.improving_now(config, state, config.trend_window, config.trend_confidence),
    static_argnums=0,
)
