"""Disk full, file too large, read-only: one clear sentence, old checkpoints intact, and training may go on."""

import contextlib
import errno
import os
import re
import resource
import subprocess
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.loop import durable
from tensor_optix.loop.run_dir import RunDir, RunDirError

SMALL = {"w": jnp.arange(10)}
# Random, so that compression does not make it fit.
LARGE = {"w": jnp.asarray(np.random.default_rng(0).integers(0, 256, 3_000_000), jnp.uint8)}


@contextlib.contextmanager
def mounted(path: Path, options: str):
    """A small file system of its own at `path`; skips where this user may not mount."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if done.returncode:
        pytest.skip("mounting is not permitted")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@contextlib.contextmanager
def file_size_limit(size: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def assert_intact(path: Path, step: int) -> None:
    """The checkpoint `step` is the newest to be seen, and loads."""
    reader = RunDir.read(path)
    assert reader.checkpoint_steps()[-1] == step
    loaded = reader.load_checkpoint(SMALL)
    assert (loaded.step, loaded.skipped) == (step, [])


def assert_tidy(path: Path) -> None:
    assert not list(path.rglob(f"{durable.TEMPORARY}*"))


def test_a_full_disk_costs_a_save_and_no_more(tmp_path):
    with mounted(tmp_path / "disk", "size=1m") as disk, RunDir.create(disk / "run", {}) as run:
        run.save_checkpoint(1, SMALL)
        with pytest.raises(RunDirError, match=r"Could not save checkpoint 2 .*: the disk is full; free some space"):
            run.save_checkpoint(2, LARGE)
        assert_intact(run.path, 1)
        assert_tidy(run.path)
        run.save_checkpoint(3, SMALL)
        assert_intact(run.path, 3)


def test_a_full_disk_spoils_nothing_else(tmp_path):
    with mounted(tmp_path / "disk", "size=1m") as disk, RunDir.create(disk / "run", {"a": 1}) as run:
        run.save_policy({"w": np.ones(3)}, {"n": 1})
        run.save_result({"n": 1}, {})
        run.append_events([{"n": 1}])
        with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(1000))
        with pytest.raises(RunDirError, match="disk is full"):
            run.save_policy({"w": np.ones(100_000)}, {"n": 2})
        with pytest.raises(RunDirError, match="disk is full"):
            run.save_result({"n": 2}, {"c": np.ones(100_000)})
        with pytest.raises(RunDirError, match="disk is full"):
            run.update_manifest(a="x" * 100_000)
        with pytest.raises(RunDirError, match="disk is full"):
            RunDir.create(disk / "other", {})
        with pytest.warns(RuntimeWarning, match="No space left on device.*training goes on"):
            run.append_events([{"text": "x" * 100_000}, {"n": 2}])
        assert run.manifest["a"] == 1
        (disk / "filler").unlink()
        run.append_events([{"n": 3}])
        assert run.read_events() == [{"n": 1}, {"n": 3}]
        again = RunDir.read(run.path)
        assert (again.manifest["a"], again.manifest["events_dropped"]) == (1, 2)
        assert again.load_policy()[1] == again.load_result()[0] == {"n": 1}
        RunDir.create(disk / "other", {}).close()


def test_a_file_size_limit_costs_a_save_and_no_more(tmp_path):
    with RunDir.create(tmp_path / "run", {}) as run:
        run.save_checkpoint(1, SMALL)
        with file_size_limit(1_000_000), pytest.raises(RunDirError, match="ulimit -f"):
            run.save_checkpoint(2, LARGE)
        assert_intact(run.path, 1)
        assert_tidy(run.path)
        run.save_checkpoint(3, SMALL)
        assert_intact(run.path, 3)


def test_a_read_only_file_system_is_named(tmp_path):
    with mounted(tmp_path / "disk", "size=1m") as disk:
        with RunDir.create(disk / "run", {}) as run:
            run.save_checkpoint(1, SMALL)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(RunDirError, match=r"the file system is read-only; choose another path"):
            RunDir.open(disk / "run")
        with pytest.raises(RunDirError, match="read-only"):
            RunDir.create(disk / "new", {})
        assert_intact(disk / "run", 1)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("open", errno.ENOSPC),
        ("mkdir", errno.EDQUOT),
        ("fsync", errno.EIO),
        ("rename", errno.EROFS),
        ("unlink", errno.EIO),
        ("rmdir", errno.EACCES),
    ],
)
def test_any_failing_call_leaves_the_old_checkpoint(tmp_path, monkeypatch, name, code):
    """The first, second, third ... call of a save fails, until a save makes no more calls than that."""
    with RunDir.create(tmp_path / "run", {}) as run:
        for step in (1, 2):
            run.save_checkpoint(step, SMALL)
        for fatal in range(1, 200):
            step = run.checkpoint_steps()[-1]
            with monkeypatch.context() as patch:
                failing = FailingAt(getattr(os, name), fatal, code)
                patch.setattr(os, name, failing)
                error = error_of(lambda newest=step: run.save_checkpoint(newest + 1, SMALL))
            # If only the last flush of names failed the new checkpoint stands, whole; otherwise the old one does.
            stands = run.checkpoint_steps()[-1]
            assert stands == step + 1 or (error is not None and stands == step)
            assert_intact(run.path, stands)
            assert error is None or re.fullmatch(r"Could not save checkpoint \d+ at '.*': [^.]*\.", error)
            if failing.count < fatal:
                break
        assert fatal > 1, f"a save does not call os.{name}: this shows nothing"
        run.save_checkpoint(run.checkpoint_steps()[-1] + 1, SMALL)
        assert_tidy(run.path)


def error_of(save) -> str | None:
    try:
        save()
    except RunDirError as error:
        return str(error)
    return None


class FailingAt:
    """Does what `call` does, except that call number `fatal` raises."""

    def __init__(self, call, fatal: int, code: int) -> None:
        self.call, self.fatal, self.code, self.count = call, fatal, code, 0

    def __call__(self, *args, **kwargs):
        self.count += 1
        if self.count == self.fatal:
            raise OSError(self.code, os.strerror(self.code))
        return self.call(*args, **kwargs)


def test_an_outage_of_the_event_log_is_warned_about_once(tmp_path, monkeypatch):
    with RunDir.create(tmp_path / "run", {}) as run:
        run.append_events([{"n": 0}])
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", short_then_full(os.write))
            with pytest.warns(RuntimeWarning, match="training goes on"):
                run.append_events([{"n": 1}])
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                run.append_events([{"n": 2}])
                run.append_events([{"n": 3}])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run.append_events([{"n": 4}])
        assert run.read_events() == [{"n": 0}, {"n": 4}]
        assert (run.path / "events.jsonl").read_text() == '{"n": 0}\n{"n": 4}\n'
        assert run.manifest["events_dropped"] == 3
    with RunDir.open(tmp_path / "run") as run:
        monkeypatch.setattr(os, "write", short_then_full(os.write))
        with pytest.warns(RuntimeWarning, match="training goes on"):
            run.append_events([{"n": 5}])
        monkeypatch.undo()
    assert RunDir.read(tmp_path / "run").manifest["events_dropped"] == 4


def short_then_full(write):
    """A disk that takes three more bytes of every line."""

    def wrapper(descriptor, data):
        if len(data) < 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data[:3])

    return wrapper
