"""Runs a search in a process that a test kills: trial_runner.py STORAGE N_TRIALS N_JOBS PIPELINE [SEED]."""

import sys

from tensor_optix.orchestrator import TrialOrchestrator
from tests.trials import parts


def main(storage, n_trials, n_jobs, pipeline, seed="0"):
    search = TrialOrchestrator(
        parts.agent,
        getattr(parts, pipeline),
        parts.SPACE,
        n_trials=int(n_trials),
        n_jobs=int(n_jobs),
        trial_episodes=12,
        n_startup_trials=100,
        seed=int(seed),
        storage=storage,
        study_name="s",
        callbacks=[lambda study, trial: print(trial.number, trial.state.name, flush=True)],
    )
    search.run()
    print("best", search.best_score, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
