"""Environments in processes of their own: one that dies or hangs is killed and replaced, the others go on."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import runpy
import select
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tensor_optix.pipeline import worker
from tensor_optix.pipeline.crew import Beginning, Failure, Transition, alike

_START_S = 60.0  # seconds at least for a process to start and to make its environments
_PATIENCE_S = 5.0  # seconds for all processes together to end by themselves


class ProcessCrew:
    """A crew in `n_workers` processes (one for each environment by default).

    An environment whose answer takes longer than `step_timeout_s`, or whose process dies, gives a Failure; its process
    is replaced by a fresh one, and with it all environments that shared it (see `replaced`).

    Raises:
      RuntimeError: an environment cannot be made; no process is left.
    """

    def __init__(
        self, env_fns: Sequence[Callable[[], Any]], step_timeout_s: float, n_workers: int | None = None
    ) -> None:
        self.num_envs = len(env_fns)
        self.replaced: list[int] = []
        self.closed = False
        self._timeout_s = step_timeout_s
        shares = np.array_split(np.arange(self.num_envs), min(n_workers or self.num_envs, self.num_envs))
        self._shares = [share.tolist() for share in shares]
        self._place = {i: (w, k) for w, share in enumerate(self._shares) for k, i in enumerate(share)}
        self._env_fns = list(env_fns)
        self._workers: list[_Worker] = []
        try:
            for w in range(len(self._shares)):
                self._workers.append(self._hired(w))
            spaces = [pair for each in self._workers for pair in each.ready()]
            self.single_observation_space, self.single_action_space = alike(spaces)
        except Lost as lost:
            self._kill_all()
            raise RuntimeError(f"an environment cannot be made in a process of its own: {lost}") from None
        except BaseException:
            self._kill_all()
            raise

    @property
    def processes(self) -> list[Any]:
        """The processes, none of them after `close`."""
        return [] if self.closed else [each.process for each in self._workers]

    def step(self, requests: Sequence[tuple[int, Any]]) -> list[Transition | Failure]:
        """Requests are (environment, action)."""
        return self._exchange([(i, "step", action) for i, action in requests])

    def reset(self, requests: Sequence[tuple[int, int | None, dict[str, Any] | None]]) -> list[Beginning | Failure]:
        """Requests are (environment, seed, generators to put back before)."""
        return self._exchange([(i, "reset", (seed, generators)) for i, seed, generators in requests])

    def close(self) -> None:
        """End the processes, by force if they do not end on request; may be called again."""
        if not self.closed:
            for each in self._workers:
                each.end()
            deadline = time.monotonic() + _PATIENCE_S
            for each in self._workers:
                each.process.join(max(0.0, deadline - time.monotonic()))
        self._kill_all()

    def _exchange(self, requests: Sequence[tuple[int, str, Any]]) -> list[Any]:
        shared: dict[int, list[int]] = {}  # worker -> its requests, as numbers in `requests`
        for number, (i, _, _) in enumerate(requests):
            shared.setdefault(self._place[i][0], []).append(number)
        outcomes: list[Any] = [None] * len(requests)
        try:
            for w, numbers in shared.items():
                self._workers[w].send([(self._place[requests[n][0]][1], *requests[n][1:]) for n in numbers])
            sent_at = time.monotonic()
            for w, numbers in shared.items():
                self._gather(w, numbers, requests, outcomes, sent_at)
        except BaseException:
            # Answers are under way that nobody will read: these processes are replaced when they are next asked.
            for w in shared:
                self._workers[w].kill()
            raise
        return outcomes

    def _gather(
        self, w: int, numbers: list[int], requests: Sequence[tuple[int, str, Any]], outcomes: list[Any], sent_at: float
    ) -> None:
        """The answers of one worker, in the order of its requests."""
        for k, number in enumerate(numbers):
            try:
                answer = self._workers[w].answer(sent_at if k == 0 else time.monotonic())
                outcomes[number] = Failure(answer) if isinstance(answer, str) else answer
            except Lost as lost:
                outcomes[number] = Failure(str(lost))
                for other in numbers[k + 1 :]:
                    outcomes[other] = Failure(f"lost with environment {requests[number][0]}", own=False)
                self._workers[w].kill()
                self._workers[w] = self._hired(w)
                self.replaced += self._shares[w]
                return

    def _hired(self, w: int) -> _Worker:
        return _Worker([self._env_fns[i] for i in self._shares[w]], self._timeout_s, f"tensor_optix-{w}")

    def _kill_all(self) -> None:
        for each in self._workers:
            each.kill()
        self.closed = True


class Lost(Exception):
    """A process that is of no more use; the message says why."""


class _Worker:
    """One process and the pipe to it. What its environments are asked is answered in order."""

    def __init__(self, env_fns: Sequence[Callable[[], Any]], timeout_s: float, name: str) -> None:
        from gymnasium.vector.utils import CloudpickleWrapper

        # JAX runs threads, and a forked copy of a process with threads may hang: processes are started afresh.
        known = multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("forkserver" if "forkserver" in known else "spawn")
        self._timeout_s = timeout_s
        self._is_ready = False
        self._pipe, theirs = context.Pipe()
        request = {worker.REQUEST: (theirs, [CloudpickleWrapper(fn) for fn in env_fns])}
        arguments = (worker.__file__, request, worker.RUN_NAME)
        self.process = context.Process(target=runpy.run_path, args=arguments, name=name, daemon=True)
        try:
            self.process.start()
        except BaseException as error:
            self._pipe.close()
            if isinstance(error, Exception) and not isinstance(error, OSError | RuntimeError):
                raise TypeError(f"an environment's function cannot be sent to another process: {error}") from error
            raise
        finally:
            theirs.close()
        self._poller = None
        if hasattr(select, "poll"):  # several times as fast as the pipe's own poll
            self._poller = select.poll()
            self._poller.register(self._pipe.fileno(), select.POLLIN)

    def send(self, message: Any) -> None:
        """A process that is dead shows when its answer is asked for."""
        with contextlib.suppress(OSError):
            self._pipe.send(message)

    def ready(self) -> list[tuple[Any, Any]]:
        """The spaces of its environments, when they are made. Raises Lost."""
        start_s = max(_START_S, self._timeout_s)
        spaces = self._receive(start_s, time.monotonic() + start_s)
        if isinstance(spaces, str):
            raise Lost(spaces)
        self._is_ready = True
        return spaces

    def answer(self, asked_at: float) -> Any:
        """The next answer, to what was asked at `asked_at` (seconds of the monotonic clock). Raises Lost."""
        if not self._is_ready:
            self.ready()
            asked_at = time.monotonic()
        return self._receive(self._timeout_s, asked_at + self._timeout_s)

    def end(self) -> None:
        """Ask the process to end; one that is still starting has nothing to put in order, and is killed."""
        if self._is_ready:
            self.send(None)
        else:
            self.kill()

    def kill(self) -> None:
        """End the process at once; may be called again."""
        if not self._pipe.closed:
            self.process.kill()
            self.process.join()
            self._pipe.close()

    def _receive(self, timeout_s: float, deadline: float) -> Any:
        if self._pipe.closed:
            raise Lost("the process was ended while it worked")
        try:
            if self._has_answer(max(0.0, deadline - time.monotonic())):
                return self._pipe.recv()
        except (EOFError, OSError):
            self.process.join(1.0)
            raise Lost(self._death()) from None
        except Exception as error:
            raise Lost(f"the answer of its process cannot be read: {worker.describe(error)}") from error
        raise Lost(f"TimeoutError: no answer within {timeout_s:g} s")

    def _has_answer(self, seconds: float) -> bool:
        if self._poller is None:
            return self._pipe.poll(seconds)
        return bool(self._poller.poll(math.ceil(seconds * 1000)))

    def _death(self) -> str:
        code = f"exit code {self.process.exitcode}"
        if self._is_ready:
            return f"its process ended unexpectedly ({code})"
        return (
            f"its process ended while starting ({code}, see above); a script that uses processes must keep its code "
            'under `if __name__ == "__main__":`'
        )
