"""Blocks of transitions from a crew of environments, whatever fails on the way, and a state that can be put back."""

from __future__ import annotations

import logging
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tensor_optix.pipeline.acting import Choose
from tensor_optix.pipeline.conversion import check_observation_space
from tensor_optix.pipeline.crew import Crew, Failure
from tensor_optix.pipeline.rows import Rows, positive
from tensor_optix.pipeline.tape import Tape, actions_of, kept, same_bits
from tensor_optix.pipeline.worker import put_space_generators, space_generators

_FAULTS_KEPT = 20
_OWN_FRAMES = 2  # of a traceback: the crew's, and the call of the environment
_FRAMES = 3  # of the others that are told

_log = logging.getLogger(__name__)


class Collector:
    """Steps the environments of a crew side by side until each has its block of `window_size` rows.

    One that failed is reset and steps on when the others are done, so that all blocks have the same length. The
    failed step is no row; the row before it, if it is in the block, is the last of its episode and truncated. The first
    failure is logged.
    """

    def __init__(
        self,
        make_crew: Callable[[], Crew],
        n_envs: int,
        window_size: int,
        seed: int | None,
        max_faults_in_a_row: int,
        max_replay: int,
        name: str,
    ) -> None:
        self._make_crew = make_crew
        self._crew: Crew | None = None
        self._action_space: Any = None  # the crew's; stays when that is closed
        self._n, self._window_size, self._seed = n_envs, window_size, seed
        self._max_faults = positive("max_faults_in_a_row", max_faults_in_a_row)
        self._max_replay = positive("max_replay", max_replay)
        self._name = name  # of environment i, as a format string
        self._faults: deque[str] = deque(maxlen=_FAULTS_KEPT)
        self._n_faults = 0
        self._was_told = False  # of the first fault
        # One entry for each environment in all lists below.
        self._in_a_row = [0] * n_envs  # faults since the newest successful step
        self._replacements = [0] * n_envs
        self._seeds = [None if seed is None else seed + i for i in range(n_envs)]  # for the next reset
        self._obs: list[Any] = [None] * n_envs  # what it shows now
        self._due = [True] * n_envs  # it must be reset before it steps
        self._begins = [False] * n_envs  # its next row is the first of its episode
        self._lost = [False] * n_envs  # rows of its open episode were thrown away
        self._tapes: list[Any] = [None] * n_envs  # the open episode's Tape, None if there is none

    @property
    def crew(self) -> Crew:
        """The environments; made at the first look."""
        if self._crew is None:
            self._crew = self._make_crew()
            self._action_space = self._crew.single_action_space
        return self._crew

    @property
    def faults(self) -> list[str]:
        """The newest faults, oldest first."""
        return list(self._faults)

    @property
    def n_faults(self) -> int:
        """Faults so far."""
        return self._n_faults

    def setup(self) -> None:
        """Make the environments if need be, and begin a fresh episode in each."""
        check_observation_space(self.crew.single_observation_space)
        self._due = [True] * self._n
        self._begin(range(self._n), None)

    def close(self) -> None:
        """Close what was made here; may be called again."""
        crew, self._crew = self._crew, None
        if crew is not None:
            crew.close()

    def window(self, choose: Choose) -> tuple[list[Rows], int, int]:
        """(a block for each environment, steps it took, transitions that were lost)."""
        blocks = [Rows() for _ in range(self._n)]
        try:
            return self._filled(blocks, choose)
        except BaseException:  # an interrupt, an error of the agent: the rows so far are lost
            self._lost = [lost or bool(len(block)) for lost, block in zip(self._lost, blocks, strict=True)]
            raise

    def _filled(self, blocks: list[Rows], choose: Choose) -> tuple[list[Rows], int, int]:
        n_steps = dropped = 0
        while live := [i for i, block in enumerate(blocks) if len(block) < self._window_size]:
            rounds = self._window_size - max(len(blocks[i]) for i in live)
            for _ in range(rounds):
                dropped += self._step(blocks, live, choose)
            n_steps += rounds
        return blocks, n_steps, dropped

    def _step(self, blocks: list[Rows], live: list[int], choose: Choose) -> int:
        """A step of all live environments; how many of them failed."""
        if True in self._due:
            self._begin(live, blocks)
        # Outside of any try: an error of the agent is not the environment's, and must be seen.
        chosen = choose(self._obs, live, self._begins)
        sent = [kept(action) for _, action in chosen]
        outcomes = self.crew.step([(i, action) for i, (_, action) in zip(live, chosen, strict=True)])
        dropped = 0
        for i, (recorded, _), action, outcome in zip(live, chosen, sent, outcomes, strict=True):
            if isinstance(outcome, Failure):
                dropped += 1
                self._end(i, blocks)
                self._count(i, "step", outcome)
                continue
            next_obs, reward, terminated, truncated, info = outcome
            begins = self._begins[i]
            if self._lost[i] and not begins:
                blocks[i].tails.append(len(blocks[i]))
            self._lost[i] = False
            blocks[i].add(self._obs[i], recorded, reward, terminated, truncated, info, next_obs, begins)
            self._tapes[i].add(action)
            self._obs[i], self._begins[i], self._in_a_row[i] = next_obs, False, 0
            # A reset that is due waits for the next step: what the window ends with is the terminal observation.
            self._due[i] = terminated or truncated
        if self.crew.replaced:
            self._admit_replaced(blocks)
        return dropped

    def _begin(self, which: Sequence[int], blocks: list[Rows] | None) -> None:
        """Reset those that are due, as often as it takes."""
        while due := [i for i in which if self._due[i]]:
            outcomes = self.crew.reset([(i, self._seeds[i], None) for i in due])
            for i, outcome in zip(due, outcomes, strict=True):
                if isinstance(outcome, Failure):
                    self._count(i, "reset", outcome)
                    continue
                self._obs[i], generators = outcome
                self._tapes[i] = Tape(self._seeds[i], generators, self._max_replay)
                self._seeds[i], self._due[i], self._begins[i] = None, False, True
            self._admit_replaced(blocks)

    def _end(self, i: int, blocks: list[Rows] | None) -> None:
        """The episode of environment i is over, though the environment did not say so."""
        self._due[i], self._tapes[i] = True, None
        if blocks is not None:
            blocks[i].cut()

    def _admit_replaced(self, blocks: list[Rows] | None) -> None:
        """Fresh environments have no episode yet, and seeds of their own."""
        for i in self.crew.replaced:
            self._end(i, blocks)
            self._replacements[i] += 1
            if self._seed is not None:
                words = np.random.SeedSequence([self._seed + i, self._replacements[i]]).generate_state(1)
                self._seeds[i] = int(words[0])
        self.crew.replaced.clear()

    def _count(self, i: int, where: str, failure: Failure) -> None:
        """Record a fault; RuntimeError if it was one too many."""
        if not failure.own:
            return
        self._n_faults += 1
        self._in_a_row[i] += 1
        text = f"{where}: {failure.text}"
        name = self._name.format(i)
        self._faults.append(text if name == self._name else f"{name}: {text}")  # the only one needs no number
        if not self._was_told:
            self._was_told = True
            _log.warning(
                "%s failed: %s%s; the transition is dropped, its episode cut and the environment reset; "
                "further failures are only counted (n_faults, faults)",
                name,
                text,
                _place(failure.error),
            )
        if self._in_a_row[i] >= self._max_faults:
            raise RuntimeError(
                f"{name} failed {self._in_a_row[i]} times without a successful step, at last in {text}"
            ) from failure.error

    def state(self) -> dict[str, Any]:
        """JSON-able values and arrays."""
        return {
            "seed": self._seed,
            "n_faults": self._n_faults,
            "faults": self.faults,
            "action_space": space_generators(self._action_space),
            "environments": [self._state_of(i) for i in range(self._n)],
        }

    def _state_of(self, i: int) -> dict[str, Any]:
        tape = self._tapes[i]
        return {
            "faults_in_a_row": self._in_a_row[i],
            "replacements": self._replacements[i],
            "seed": self._seeds[i],
            "obs": None if self._obs[i] is None else np.array(self._obs[i]),
            "due": self._due[i],
            "begins": self._begins[i],
            "lost": self._lost[i],
            "tape": None if tape is None else tape.state(self._action_space),
        }

    def load(self, state: dict[str, Any]) -> list[str]:
        """Put back what `state` gave, with the episodes that were open; a sentence for each that could not be."""
        saved = state["environments"]
        if len(saved) != self._n:
            raise ValueError(f"the saved state is of {len(saved)} environments, but this pipeline has {self._n}")
        check_observation_space(self.crew.single_observation_space)
        problems = self._play_again([each["tape"] for each in saved])
        for i, each in enumerate(saved):
            self._in_a_row[i], self._replacements[i] = int(each["faults_in_a_row"]), int(each["replacements"])
            self._seeds[i] = each["seed"]
            if each["tape"] is None and each["obs"] is not None:
                problems[i] = "the state was saved while it had no episode"
            elif each["tape"] is not None and i not in problems:
                shown = np.asarray(each["obs"], getattr(self._obs[i], "dtype", None))
                if self._due[i] != each["due"] or not same_bits(self._obs[i], shown):
                    problems[i] = "its reset and its actions, done again, led to another observation"
            self._begins[i], self._lost[i] = bool(each["begins"]), bool(each["lost"])
            if i in problems:
                self._end(i, None)
        self._seed, self._n_faults = state["seed"], int(state["n_faults"])
        self._faults = deque(state["faults"], maxlen=_FAULTS_KEPT)
        if state["action_space"]:
            put_space_generators(self._action_space, state["action_space"])
        return [f"{self._name.format(i)} begins a fresh episode: {problems[i]}" for i in sorted(problems)]

    def _play_again(self, tapes: Sequence[dict[str, Any] | None]) -> dict[int, str]:
        """Reset and step all environments side by side as the tapes say; environment -> why that did not work."""
        problems: dict[int, str] = {}
        actions: dict[int, list[Any]] = {}
        self._due = [True] * self._n
        for i, tape in enumerate(tapes):
            found = None if tape is None else actions_of(tape, self._action_space)
            if found is not None:
                actions[i] = found
            elif tape is not None:
                problems[i] = f"its episode has more than {self._max_replay} steps (max_replay), or unusual actions"
        self._reset_as(tapes, sorted(actions), problems)
        for t in range(max(map(len, actions.values()), default=0)):
            live = [i for i, own in actions.items() if i not in problems and t < len(own)]
            outcomes = self.crew.step([(i, kept(actions[i][t])) for i in live])
            for i, outcome in zip(live, outcomes, strict=True):
                if isinstance(outcome, Failure):
                    problems[i] = f"a step done again failed ({outcome.text})"
                    continue
                self._tapes[i].add(actions[i][t])
                self._obs[i], self._due[i] = outcome[0], outcome[2] or outcome[3]
                if self._due[i] and t + 1 < len(actions[i]):
                    problems[i] = "its actions, done again, ended the episode too early"
            self._forget_replaced(problems)
        return problems

    def _reset_as(self, tapes: Sequence[Any], which: Sequence[int], problems: dict[int, str]) -> None:
        outcomes = self.crew.reset([(i, tapes[i]["seed"], tapes[i]["generators"]) for i in which])
        for i, outcome in zip(which, outcomes, strict=True):
            if isinstance(outcome, Failure):
                problems[i] = f"a reset done again failed ({outcome.text})"
            else:
                self._obs[i], self._due[i] = outcome[0], False
                self._tapes[i] = Tape(tapes[i]["seed"], tapes[i]["generators"], self._max_replay)
        self._forget_replaced(problems)

    def _forget_replaced(self, problems: dict[int, str]) -> None:
        for i in self.crew.replaced:
            problems.setdefault(i, "the process it shares with another environment was replaced")
        self.crew.replaced.clear()


def _place(error: Exception | None) -> str:
    """Where an exception was raised, innermost first; nothing is known of one in another process."""
    frames = traceback.extract_tb(error.__traceback__) if error is not None else []
    frames = frames[_OWN_FRAMES:][-_FRAMES:]
    return f" ({' < '.join(f'{f.filename}:{f.lineno} in {f.name}' for f in reversed(frames))})" if frames else ""
