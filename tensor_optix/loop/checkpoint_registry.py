"""The snapshots of a host-driven agent: the best of them, the newest, and a few in between.

snapshot_<id>/weights*        whatever the agent wrote: a file, several that begin so, a directory, or nothing
snapshot_<id>/metadata.json   what it scored, the hyperparameters it was trained with, its place in the order of saves
snapshot_<id>/SHA256SUMS      of all the files above; `sha256sum -c SHA256SUMS` checks it by hand

There is no list besides the directories, so none can contradict them. No path is stored: the whole may be moved.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
import math
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tensor_optix.core.base_agent import BaseAgent
from tensor_optix.core.types import EvalMetrics, HyperparamSet, PolicySnapshot
from tensor_optix.loop import checkpoint_files, durable
from tensor_optix.loop.durable import RunDirError, failure, json_bytes
from tensor_optix.loop.run_lock import RunLock

_METADATA, _WEIGHTS, _PREFIX = "metadata.json", "weights", "snapshot_"
_NAME = re.compile(f"{_PREFIX}([0-9a-f]{{8}})")
_NON_FINITE = ("NaN", "Infinity", "-Infinity")  # what `durable.plain` makes of them

logger = logging.getLogger(__name__)


class CheckpointRegistry:
    """Saves an agent's weights with their score, and brings the best of them back.

    Every look reads the directory anew, so several registries, also of several processes, see the same. Saving
    holds a lock: a second process that saves at the same instant gets a RunDirError. A snapshot found damaged is
    logged once, passed over from then on, and removed after the next save.

    Args:
      checkpoint_dir: where the snapshots lie; made (parents too) by the first save.
      max_snapshots: how many are left after a save, at least 1 (ValueError). The best and the newest always stay; of
        the others the oldest go first. With 1 only the best stays: a save that does not beat it does not last.
    """

    def __init__(self, checkpoint_dir: str | os.PathLike[str], max_snapshots: int = 10) -> None:
        if max_snapshots < 1:
            raise ValueError(f"max_snapshots is the number of snapshots to leave: got {max_snapshots}, expected >= 1.")
        self.path = Path(checkpoint_dir).absolute()
        self.max_snapshots = max_snapshots
        self.protected: set[str] = set()  # ids that are not removed to make room
        self._broken: dict[str, str] = {}  # id -> what is wrong with it
        self._unsaved_metrics: set[str] = set()  # named in the log already
        with contextlib.suppress(OSError, RunDirError):  # someone is saving right now, or we may not write
            if any(durable.temporaries(self.path)):
                with self._writing():
                    pass

    @property
    def snapshots(self) -> list[PolicySnapshot]:
        """All, best score first, of equal scores the newest first; those of a non-finite score come last."""
        newest_first = [snapshot for _, snapshot in reversed(self._scan())]
        return sorted(newest_first, key=lambda s: -s.eval_metrics.primary_score if _is_finite(s) else math.inf)

    @property
    def best(self) -> PolicySnapshot | None:
        """The highest finite score, the newest of equals; None if there is none. Weights are not verified here."""
        return next(filter(_is_finite, self.snapshots), None)

    @property
    def newest(self) -> PolicySnapshot | None:
        """The one saved last, whatever its score."""
        entries = self._scan()
        return entries[-1][1] if entries else None

    @property
    def sequence(self) -> int:
        """The place of the newest snapshot in the order of saves, from 1; 0 if there is none."""
        entries = self._scan()
        return entries[-1][0] if entries else 0

    def drop_after(self, sequence: int) -> None:
        """Removes what was saved later: a resumed run goes another way than the one that made it."""
        newer = [snapshot for place, snapshot in self._scan() if place > sequence]
        if newer:
            with self._writing():
                for snapshot in newer:
                    durable.retire_directory(self._directory(snapshot.snapshot_id))

    def save(self, agent: BaseAgent, eval_metrics: EvalMetrics, hyperparams: HyperparamSet) -> PolicySnapshot:
        """Saves the agent's weights; durable on return. Then removes what is beyond `max_snapshots`.

        What comes back, now and later, is what JSON made of the metrics and hyperparameters: tuples become lists,
        NumPy scalars Python numbers. A metric that JSON cannot hold is left out, and named in the log once.

        Raises:
          RunDirError: it cannot be written, or another process is saving. Older snapshots stand, nothing is left over.
          TypeError: a hyperparameter that JSON cannot hold; the message names it.
          Exception: what `agent.save_weights` raises, unless that is an OSError. Older snapshots stand as well.
        """
        record = {
            "episode_id": int(eval_metrics.episode_id),
            "timestamp": time.time(),
            "primary_score": float(eval_metrics.primary_score),
            "evaluated_at": float(eval_metrics.timestamp),
            "metrics": self._storable(eval_metrics.metrics),
            "hyperparams": durable.plain(hyperparams, "hyperparams"),
        }
        with self._writing():
            final = self._directory(secrets.token_hex(4))
            while os.path.lexists(final):
                final = self._directory(secrets.token_hex(4))
            record["snapshot_id"] = _id_of(final)
            record["sequence"] = 1 + max((sequence for sequence, _ in self._scan()), default=0)
            staging = final.with_name(f"{durable.TEMPORARY}{final.name}")
            try:
                staging.mkdir()
                agent.save_weights(str(staging / _WEIGHTS))
                (staging / _METADATA).write_bytes(json_bytes(record))
                (staging / checkpoint_files.SUMS_NAME).write_bytes(checkpoint_files.checksums(staging).encode())
                durable.publish_directory(staging, final)
                _, snapshot = _read(final)
            except Exception:
                durable.retire_directory(final)  # it bears its name already if only the last flush failed
                raise
            finally:
                durable.discard(staging)
            self._prune()
        return snapshot

    def load_best(self, agent: BaseAgent) -> PolicySnapshot | None:
        """Puts the best undamaged snapshot into the agent: weights, then hyperparameters. None if there is none."""
        best = self._best_whole()
        if best is not None:
            _put(agent, best)
        return best

    def load(self, agent: BaseAgent, snapshot_id: str) -> PolicySnapshot:
        """Puts the given snapshot into the agent: weights, then hyperparameters.

        Raises:
          ValueError: there is no such snapshot; the message names those there are.
          RunDirError: it is damaged.
        """
        known = {snapshot.snapshot_id: snapshot for snapshot in self.snapshots}
        snapshot = known.get(snapshot_id)
        if snapshot is not None and self._is_whole(snapshot):
            _put(agent, snapshot)
            return snapshot
        if snapshot_id in self._broken:
            raise RunDirError(f"Snapshot {snapshot_id} at '{self.path}' is damaged: {self._broken[snapshot_id]}.")
        there = ", ".join(known) or "none"
        raise ValueError(f"There is no snapshot {snapshot_id!r} at '{self.path}'; the known ones are: {there}.")

    def load_ensemble(self, agent: BaseAgent, top_k: int = 3, score_band: float = 0.1) -> list[PolicySnapshot]:
        """Puts the mean of the best few snapshots into the agent, then the best one's hyperparameters.

        Averaged are at most `top_k` (at least 1), whose score is at most `score_band` (0 to 1) times the range of the
        kept scores below the best: the same ones for scores a * score + b, a > 0. If that leaves one only, or the
        agent has no `average_weights`, this is `load_best`. Returns what went in, best first; empty if there is none.
        Raises ValueError for a bad `top_k` or `score_band`.
        """
        if top_k < 1:
            raise ValueError(f"top_k is the number of snapshots to average: got {top_k}, expected at least 1.")
        if not 0.0 <= score_band <= 1.0:
            raise ValueError(f"score_band is a fraction of the range of scores: got {score_band}, expected 0 to 1.")
        members = self._near_best(top_k, score_band)
        if len(members) > 1:
            with contextlib.suppress(NotImplementedError):
                agent.average_weights([member.weights_path for member in members])
                agent.set_hyperparams(copy.deepcopy(members[0].hyperparams))
                return members
        best = self.load_best(agent)
        return [] if best is None else [best]

    def _near_best(self, top_k: int, score_band: float) -> list[PolicySnapshot]:
        while True:
            ranked = [snapshot for snapshot in self.snapshots if _is_finite(snapshot)]
            halves = [snapshot.eval_metrics.primary_score / 2 for snapshot in ranked]  # their difference is finite
            width = score_band * (halves[0] - halves[-1]) if halves else 0.0
            near = [s for s, half in zip(ranked, halves, strict=True) if halves[0] - half <= width][:top_k]
            if not [s for s in near if not self._is_whole(s)]:  # a damaged one is not among those of the next turn
                return near

    def _best_whole(self) -> PolicySnapshot | None:
        best = self.best
        while best is not None and not self._is_whole(best):
            best = self.best
        return best

    def _is_whole(self, snapshot: PolicySnapshot) -> bool:
        """True if every byte is as it was written; otherwise the snapshot is passed over from now on."""
        directory = self._directory(snapshot.snapshot_id)
        problem = checkpoint_files.damage(directory)
        if problem is not None:
            self._pass_over(directory, problem)
        return problem is None

    def _pass_over(self, directory: Path, problem: str) -> None:
        if directory.exists():  # else another registry removed it while we looked
            self._broken[_id_of(directory)] = problem
            logger.warning("Snapshot %s at '%s' is damaged: %s.", _id_of(directory), self.path, problem)

    def _directory(self, snapshot_id: str) -> Path:
        """For ids made by `save` or found by `_scan`; what a caller passes in never becomes a path."""
        return self.path / f"{_PREFIX}{snapshot_id}"

    def _scan(self) -> list[tuple[int, PolicySnapshot]]:
        """Sequence number and snapshot, oldest first. Raises RunDirError if the directory cannot be listed."""
        try:
            directories = [entry for entry in self.path.iterdir() if _NAME.fullmatch(entry.name)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise failure("list the snapshots", self.path, error) from error
        entries = []
        for directory in directories:
            if _id_of(directory) in self._broken or directory.is_symlink():
                continue
            try:
                entries.append(_read(directory))
            except (OSError, ValueError, KeyError, TypeError) as error:
                self._pass_over(directory, f"{_METADATA} cannot be used ({type(error).__name__}: {error})")
        # A clock may stand still or go back; it only orders what two processes numbered alike.
        return sorted(entries, key=lambda entry: (entry[0], entry[1].timestamp, entry[1].snapshot_id))

    def _storable(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for name, value in metrics.items():
            try:
                kept[str(name)] = json.loads(json_bytes(value))
            except Exception as error:  # a stray object's conversion may raise anything; no metric is worth the weights
                if str(name) not in self._unsaved_metrics:
                    self._unsaved_metrics.add(str(name))
                    logger.warning("Metric '%s' is left out of the snapshots at '%s': %s", name, self.path, error)
        return kept

    def _prune(self) -> None:
        if len(self._scan()) > self.max_snapshots:
            best = self._best_whole()  # verified: a damaged one must not push whole ones out
            kept = [snapshot.snapshot_id for _, snapshot in self._scan()]
            protected = [*([best.snapshot_id] if best else []), *kept[-1:]][: self.max_snapshots]
            spare = [snapshot_id for snapshot_id in kept if snapshot_id not in {*protected, *self.protected}]
            for snapshot_id in spare[: max(0, len(kept) - self.max_snapshots)]:
                durable.retire_directory(self._directory(snapshot_id))
        for directory in map(self._directory, self._broken):
            # A snapshot of another version of this package is none of ours to remove: its checksums are right.
            if directory.exists() and checkpoint_files.damage(directory) is not None:
                durable.retire_directory(directory)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Holds the lock of the directory, makes it if missing, removes leftovers. OSErrors become RunDirErrors."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = RunLock.acquire(self.path)
            try:
                for leftover in durable.temporaries(self.path):
                    durable.discard(leftover)
                yield
            finally:
                lock.release()
        except OSError as error:
            raise failure("save a snapshot", self.path, error) from error


def _put(agent: BaseAgent, snapshot: PolicySnapshot) -> None:
    agent.load_weights(snapshot.weights_path)
    agent.set_hyperparams(copy.deepcopy(snapshot.hyperparams))  # the agent may change its own, lists in it too


def _is_finite(snapshot: PolicySnapshot) -> bool:
    return math.isfinite(snapshot.eval_metrics.primary_score)


def _id_of(directory: Path) -> str:
    return directory.name.removeprefix(_PREFIX)


def _read(directory: Path) -> tuple[int, PolicySnapshot]:
    """Sequence number and snapshot, metadata verified. Raises OSError, ValueError, KeyError, TypeError."""
    data = (directory / _METADATA).read_bytes()
    line = f"{hashlib.sha256(data).hexdigest()}  {_METADATA}"
    if line.encode() not in (directory / checkpoint_files.SUMS_NAME).read_bytes().splitlines():
        raise ValueError("checksum mismatch")
    record = _with_non_finite(json.loads(data))
    if record["snapshot_id"] != _id_of(directory):
        raise ValueError(f"it is snapshot {record['snapshot_id']} under another name")
    score, episode = float(record["primary_score"]), int(record["episode_id"])
    return int(record["sequence"]), PolicySnapshot(
        snapshot_id=record["snapshot_id"],
        eval_metrics=EvalMetrics(score, record["metrics"], episode, float(record["evaluated_at"])),
        hyperparams=HyperparamSet(**record["hyperparams"]),
        weights_path=str(directory / _WEIGHTS),
        episode_id=episode,
        timestamp=float(record["timestamp"]),
    )


def _with_non_finite(value: Any) -> Any:
    """`value` with the names of NaN and the infinities turned back into floats."""
    if isinstance(value, dict):
        return {key: _with_non_finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_non_finite(item) for item in value]
    return float(value) if isinstance(value, str) and value in _NON_FINITE else value
