"""A study made or opened: what it searches for is recorded in it, and another search is refused."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import optuna
from optuna.pruners import BasePruner
from optuna.storages import BaseStorage
from optuna.study import Study

from tensor_optix.trials.facts import difference
from tensor_optix.trials.sampler import SeededTPE

FACTS = "tensor_optix"  # user attribute of a study: what its trials have in common


def open_study(
    storage: BaseStorage,
    study_name: str | None,
    *,
    direction: Literal["maximize", "minimize"],
    seed: int,
    n_startup_trials: int,
    pruner: BasePruner,
    facts: Mapping[str, Any],
) -> Study:
    """The study of that name, or a new one.

    Args:
      facts: JSON values that the scores of all its trials depend on.

    Raises:
      ValueError: the study is there and was begun with another direction or other facts.
    """
    sampler = SeededTPE(seed, n_startup_trials)
    study = optuna.create_study(
        storage=storage,
        study_name=study_name,
        direction=direction,
        sampler=sampler,
        pruner=pruner,
        load_if_exists=study_name is not None,
    )
    begun: Mapping[str, Any] = study.user_attrs.get(FACTS, {})
    asked = json.loads(json.dumps({"direction": direction, **facts}))
    found = {"direction": study.direction.name.lower(), **begun}
    for name, value in asked.items():
        differs = difference(name, found[name], value) if name in found else None
        if differs is not None:
            raise ValueError(
                f"the study {study.study_name!r} was begun with {differs}: its trials cannot be compared with new "
                "ones; ask for the same, or give another study_name"
            )
    if not begun:
        study.set_user_attr(FACTS, asked)
    return study


@contextlib.contextmanager
def talking(verbosity: int | None) -> Iterator[None]:
    """What Optuna logs meanwhile: warnings, or a level of its `logging`."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING if verbosity is None else verbosity)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
