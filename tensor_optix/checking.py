"""`check_environment` as users call it: with the backend prepared, since the check computes."""

from __future__ import annotations

from typing import Any

from tensor_optix.envs import checker
from tensor_optix.loop import runtime


def check_environment(
    env: Any, params: Any = None, steps: int = 1000, raise_errors: bool = True
) -> list[checker.Problem]:
    """Say what is wrong with an environment of your own, before a compiler does.

    Args:
        env: an instance, in either form of `tensor_optix.envs.contract`, or its class.
        params: its parameters; the default ones if None.
        steps: random steps within which an episode is expected to end.
        raise_errors: raise if there is an error; otherwise only return the findings.

    Returns: the findings, errors first. Checks stop at the first stage that has errors: repair and run again.

    Raises:
        EnvironmentProblems (a ValueError): every finding, with its remedy.
    """
    runtime.start()
    return checker.check_environment(env, params, steps, raise_errors)
