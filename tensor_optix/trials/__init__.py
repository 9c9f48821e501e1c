"""Searches over independent trials with Optuna: what `TrialOrchestrator` and `tune` are made of."""
