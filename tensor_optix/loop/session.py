"""The host's side of a compiled run: lay members out over devices, compile, run chunk after chunk.

A session knows nothing of files or displays; `train` wraps one in both.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tensor_optix.core import autonomy
from tensor_optix.core.autonomy import NO_LIMIT
from tensor_optix.core.types import Event, StopReason
from tensor_optix.loop.compiled import MEMBERS, Member, Program, make_mesh, sharded_chunk, sharded_final, sharded_init
from tensor_optix.loop.events import ChunkReport
from tensor_optix.loop.meeting import Copies, Meeting, compiled_meeting, groups_of
from tensor_optix.loop.packing import Packed, pack
from tensor_optix.loop.runtime import compile_program

CHUNK_SECONDS = 0.5  # how long the host leaves the device alone
MAX_CHUNK = 256  # windows; sizes the report buffers
EMPTY = -1  # a lane that only fills a block


@dataclass(frozen=True)
class MemberSpec:
    """What tells one member from another."""

    seed: int
    variant: int
    hyper: dict[str, float]


@dataclass(frozen=True)
class Layout:
    """How members lie on devices: lanes = devices * blocks per device * block."""

    n_devices: int
    block: int
    lanes: int

    @classmethod
    def of(cls, n_members: int, n_devices: int, block: int) -> Layout:
        n_devices = max(1, min(n_devices, n_members))
        block = max(1, min(block, -(-n_members // n_devices)))
        stride = n_devices * block
        return cls(n_devices, block, -(-n_members // stride) * stride)

    def load(self, active: np.ndarray) -> int:
        """Blocks that the busiest device still has to run; active is [lanes] bool."""
        return int(active.reshape(self.n_devices, -1, self.block).any(axis=2).sum(axis=1).max())

    def packed(self, active: np.ndarray) -> np.ndarray | None:
        """An order of the lanes that spreads the survivors evenly, or None if that would not save a block."""
        rows = -(-int(active.sum()) // (self.n_devices * self.block))
        if rows >= self.load(active):
            return None
        survivors_first = np.argsort(~active, kind="stable")
        # Rank r goes to device (r // block) % n_devices: blocks are dealt out like cards.
        lanes = np.arange(self.lanes).reshape(-1, self.n_devices, self.block).transpose(1, 0, 2).reshape(-1)
        return survivors_first[lanes]


def default_block(platform: str) -> int:
    """Members that run under one vmap: figures in benchmarks/RESULTS.md."""
    return 1 if platform == "cpu" else 64


class Session:
    """One compiled run of several members. `step()` until `done`, then `final()`."""

    def __init__(
        self,
        program: Program,
        members: Sequence[MemberSpec],
        *,
        devices: Sequence[Any],
        block: int,
        max_windows: int = NO_LIMIT,
        target_score: float = float("inf"),
        final_episodes: int = 100,
        meeting: Meeting | None = None,
        chunk_windows: int = MAX_CHUNK,
    ) -> None:
        """chunk_windows: the most of one chunk, where somebody wants to look sooner."""
        self.program = program
        self.specs = list(members)
        self.max_windows = max_windows
        self.target_score = target_score
        self.layout = Layout.of(len(self.specs), len(devices), block)
        mesh = make_mesh(list(devices[: self.layout.n_devices]))
        self._sharding = NamedSharding(mesh, P(MEMBERS))
        self._init = sharded_init(program, mesh)
        self._chunk = sharded_chunk(program, mesh, self.layout.block, MAX_CHUNK)
        self._final = sharded_final(program, mesh, final_episodes)
        self._compiled: dict[str, Future[Any]] = {}
        self._pool = ThreadPoolExecutor(2, "compile")
        lanes = np.full(self.layout.lanes, EMPTY)
        lanes[: len(self.specs)] = np.arange(len(self.specs))
        self.member_ids = self._dealt(lanes)
        self.windows = np.zeros(len(self.specs), np.int64)
        self.stop_reasons = np.full(len(self.specs), StopReason.RUNNING)
        self.run_s = 0.0
        self.compile_s = 0.0
        self._most_windows = max(1, min(chunk_windows, MAX_CHUNK))
        self._seconds_per_window: float | None = None
        self._members: Packed | None = None
        self._meeting = meeting
        self._groups: Any = None  # what the meeting keeps of each
        self.copies: list[Copies] = []  # since the caller last emptied it
        if meeting is not None:
            self._meet = compiled_meeting(meeting, program, mesh)
            waits = ~np.tile(np.asarray(meeting.starts), len(self.specs) // meeting.size)
            self.stop_reasons[waits] = StopReason.UNSPAWNED
            self._met = np.zeros(len(self.specs) // meeting.size, np.int64)  # windows of each group when it last met
        self._everywhere = NamedSharding(mesh, P())

    # -- compile and start -------------------------------------------------------------------------------

    def compile(self) -> None:
        """Trace and compile every program; the final evaluation goes on compiling in the background."""
        started = time.perf_counter()
        args = self._init_args()
        shapes = jax.eval_shape(self._init, *args)
        members = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=self._sharding), shapes)
        platform = jax.default_backend()
        programs: list[tuple[str, Any, tuple[Any, ...]]] = [
            ("init", self._init, args),  # compiles while the chunk is being traced
            ("chunk", self._chunk, (members, jax.ShapeDtypeStruct((), jnp.int32))),
            ("final", self._final, (members,)),
        ]
        if self._meeting is not None:
            lanes = jax.ShapeDtypeStruct((len(self.specs),), jnp.int32)
            programs.append(("meet", self._meet, (members, jax.eval_shape(self._fresh_groups), lanes)))
        for name, function, arguments in programs:
            lowered = function.lower(*arguments)
            self._compiled[name] = self._pool.submit(compile_program, lowered, platform, runs_once=name == "init")
        self._compiled["chunk"].result()
        self._compiled["init"].result()
        self.compile_s += time.perf_counter() - started

    def start(self) -> None:
        """Fresh members."""
        if self._meeting is not None:
            self._groups = jax.device_put(self._fresh_groups(), self._everywhere)
        self._members = self._program("init")(*self._init_args())

    def _program(self, name: str) -> Any:
        if name not in self._compiled:
            self.compile()
        started = time.perf_counter()
        compiled = self._compiled[name].result()
        self.compile_s += time.perf_counter() - started
        return compiled

    def _init_args(self) -> tuple[Any, ...]:
        specs = [self.specs[max(i, 0)] for i in self.member_ids]
        given = self._given_hyper()
        starts = np.ones(len(self.specs), bool)
        if self._meeting is not None:
            starts = np.tile(np.asarray(self._meeting.starts), len(self.specs) // self._meeting.size)
            if self._groups is not None:
                given = jax.device_get(self._meeting.first(self._groups, given))
        hyper = {name: values[np.maximum(self.member_ids, 0)] for name, values in given.items()}
        args = (
            np.asarray([spec.seed for spec in specs], np.uint32),
            np.asarray([spec.variant for spec in specs], np.uint32),
            hyper,
            np.full(self.layout.lanes, self.max_windows, np.int32),
            np.full(self.layout.lanes, self.target_score, np.float32),
            (self.member_ids != EMPTY) & starts[np.maximum(self.member_ids, 0)],
        )
        return tuple(jax.device_put(args, self._sharding))

    def _given_hyper(self) -> dict[str, np.ndarray]:
        """Name -> [M] float32, in member order."""
        return {name: np.asarray([spec.hyper[name] for spec in self.specs], np.float32) for name in self.specs[0].hyper}

    def _fresh_groups(self) -> Any:
        assert self._meeting is not None
        shape = (-1, self._meeting.size)
        first = self.specs[:: self._meeting.size]
        seeds = np.asarray([spec.seed for spec in first], np.uint32)
        variants = np.asarray([spec.variant for spec in first], np.uint32)
        given = {name: x.reshape(shape) for name, x in self._given_hyper().items()}
        return groups_of(self._meeting, seeds, variants, given)

    # -- run ---------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        return bool((self.stop_reasons != StopReason.RUNNING).all())

    def step(self) -> ChunkReport:
        """Run one chunk of about CHUNK_SECONDS and say what happened."""
        chunk = self._program("chunk")
        n_windows = self._next_chunk()
        if self._meeting is not None:
            if self._until_meeting() == 0:
                self._hold_meeting(None)  # what an earlier end of the budget left undone
            n_windows = min(n_windows, self._until_meeting())
        started = time.perf_counter()
        self._members, reports = chunk(self._members, jnp.int32(n_windows))
        reports = jax.device_get(reports).unpack()
        elapsed = time.perf_counter() - started
        self.run_s += elapsed
        self._seconds_per_window = elapsed / n_windows
        report = self._chunk_report(reports, n_windows)
        self._account(report)
        if self._meeting is not None and self._until_meeting() == 0:
            self._hold_meeting(report)
        self._pack()
        return report

    def final(self) -> tuple[Any, Any]:
        """Best policy of every member, in member order, and its fresh episodes, on the host."""
        policies, episodes = jax.device_get(self._program("final")(self._members))
        order = self._lane_of()
        return jax.tree.map(lambda x: x[order], (policies, episodes))

    def _next_chunk(self) -> int:
        if self._seconds_per_window is None:
            return 1
        return int(np.clip(CHUNK_SECONDS / max(self._seconds_per_window, 1e-6), 1, self._most_windows))

    # -- meetings ----------------------------------------------------------------------------------------

    def _until_meeting(self) -> int:
        """Windows; 0: it is time for one."""
        assert self._meeting is not None
        interval = self.program.brain.scheduler.base_interval
        return self._meeting.wait(self.windows, self.stop_reasons, self._met, interval)

    def _hold_meeting(self, report: ChunkReport | None) -> None:
        """Let the members of each group meet, once. `report`, of the last windows, is told who stops or goes on."""
        assert self._meeting is not None
        by_group = self.windows.reshape(-1, self._meeting.size)
        lanes = jax.device_put(self._lane_of().astype(np.int32), self._everywhere)
        program = self._program("meet")
        started = time.perf_counter()
        self._members, self._groups, told = program(self._members, self._groups, lanes)
        told = jax.device_get(told)
        self.run_s += time.perf_counter() - started
        self._met = by_group.sum(axis=1)
        self.copies += self._meeting.copies(told.parents.astype(np.int64), self.windows, self.stop_reasons)
        before, self.stop_reasons = self.stop_reasons, told.stop_reason.astype(np.int64)
        if report is not None:
            _correct(report, before[report.member_ids], self.stop_reasons[report.member_ids])

    def _lane_of(self) -> np.ndarray:
        """[M] the lane of each member."""
        return np.argsort(np.where(self.member_ids == EMPTY, NO_LIMIT, self.member_ids))[: len(self.specs)]

    def _chunk_report(self, reports: Any, n_windows: int) -> ChunkReport:
        used = self.member_ids != EMPTY
        ids = self.member_ids[used]

        def cut(x: np.ndarray) -> np.ndarray:
            return np.array(x[:n_windows, used])

        named = {name: cut(getattr(reports, name)) for name in _COLUMNS}
        return ChunkReport(
            first_window=self.windows[ids],
            hyperparams={name: cut(x) for name, x in reports.hyperparams.items()},
            losses={name: cut(x) for name, x in reports.losses.items()},
            member_ids=ids,
            **named,
        )

    def _account(self, report: ChunkReport) -> None:
        self.windows[report.member_ids] += report.active.sum(axis=0)
        self.stop_reasons[report.member_ids] = np.maximum(
            self.stop_reasons[report.member_ids], report.stop_reason.max(axis=0)
        )

    def _pack(self) -> None:
        running = np.append(self.stop_reasons == StopReason.RUNNING, False)  # the appended one is EMPTY
        order = self.layout.packed(running[self.member_ids])
        if order is None or self.done:
            return
        self.member_ids = self.member_ids[order]
        self._put(jax.tree.map(lambda x: x[order], self._host_members()))

    # -- state -------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything needed to go on exactly, in member order, on the host; independent of devices and blocks."""
        lane_of = self._lane_of()
        members = jax.tree.map(lambda x: x[lane_of], self._host_members())
        state = {"members": members, "windows": self.windows.copy(), "stop_reasons": self.stop_reasons.copy()}
        if self._groups is not None:
            state["groups"] = jax.tree.map(lambda x: np.asarray(_key_data(x)), self._groups)
            state["met"] = self._met.copy()
        return state

    def learners(self) -> Any:
        """Every member's learner, leading axis [M] in member order, in NumPy."""
        lane_of = self._lane_of()
        return jax.tree.map(lambda x: x[lane_of], self._host_members().learner)

    def template(self) -> dict[str, Any]:
        """Shapes and dtypes of `state()`, without running anything."""
        packed = jax.eval_shape(self._init, *self._init_args())
        shapes = jax.eval_shape(lambda packed: jax.tree.map(_key_data, packed.unpack()), packed)
        count = len(self.specs)
        members = jax.tree.map(lambda s: jax.ShapeDtypeStruct((count, *s.shape[1:]), s.dtype), shapes)
        counters = jax.ShapeDtypeStruct((count,), np.int64)
        shapes = {"members": members, "windows": counters, "stop_reasons": counters}
        if self._meeting is not None:
            make = self._fresh_groups
            shapes["groups"] = jax.eval_shape(lambda: jax.tree.map(_key_data, make()))
            shapes["met"] = jax.ShapeDtypeStruct(self._met.shape, np.int64)
        return shapes

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state()` returned; a larger budget lets members run on that only the budget had stopped."""
        self.windows = np.array(state["windows"], np.int64)
        reasons = np.array(state["stop_reasons"], np.int64)
        self.stop_reasons = np.where(reasons == StopReason.INTERRUPTED, StopReason.RUNNING, reasons)
        lanes = np.maximum(self.member_ids, 0)
        members = jax.tree.map(lambda x: np.asarray(x)[lanes], state["members"])
        brain = members.brain
        more = self.max_windows - int(brain.max_windows.max())
        if more > 0:
            self.stop_reasons[self.stop_reasons == StopReason.BUDGET] = StopReason.RUNNING
            brain = autonomy.extend(brain, brain.max_windows + np.int32(more))
        brain = brain.replace(done=brain.done | (self.member_ids == EMPTY))
        self._put(members.replace(brain=brain))
        if self._meeting is not None:
            groups = jax.tree.map(_wrap_key, state["groups"], jax.eval_shape(self._fresh_groups))
            self._groups = jax.device_put(groups, self._everywhere)
            self._met = np.array(state["met"], np.int64)
        self._pack()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _host_members(self) -> Member:
        """Members [lanes] in NumPy, typed keys as their data."""
        assert self._members is not None, "start() or load() comes first"
        return jax.tree.map(lambda x: np.asarray(_key_data(x)), self._members).unpack()

    def _put(self, host: Member) -> None:
        template = jax.eval_shape(self._init, *self._init_args())
        wrapped = jax.tree.map(_wrap_key, pack(host, (self.layout.lanes,)), template)
        self._members = jax.device_put(wrapped, self._sharding)

    def _dealt(self, lanes: np.ndarray) -> np.ndarray:
        order = np.arange(self.layout.lanes).reshape(-1, self.layout.n_devices, self.layout.block)
        return lanes[order.transpose(1, 0, 2).reshape(-1)]


_COLUMNS = (
    "active",
    "evaluated",
    "score",
    "train_return",
    "train_episodes",
    "state",
    "interval",
    "events",
    "stop_reason",
)


def _correct(report: ChunkReport, before: np.ndarray, after: np.ndarray) -> None:
    """Write into the rows of a chunk what a meeting has made of stop reasons [M] afterwards."""
    for m in np.flatnonzero(before != after):
        rows = np.flatnonzero(report.active[:, m])
        if not rows.size:
            continue
        report.stop_reason[rows[-1], m] = after[m]
        if after[m] == StopReason.RUNNING:
            report.events[rows[-1], m] &= ~int(Event.STOPPED)
        elif before[m] == StopReason.RUNNING:
            report.events[rows[-1], m] |= int(Event.DORMANT | Event.STOPPED)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _key_data(x: Any) -> Any:
    return jax.random.key_data(x) if _is_key(x) else x


def _wrap_key(x: Any, like: Any) -> Any:
    """Key data back as typed keys; runs are made of keys of the default implementation."""
    return jax.random.wrap_key_data(jnp.asarray(x)) if _is_key(like) else x
