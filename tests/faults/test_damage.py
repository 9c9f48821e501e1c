"""Every file of a checkpoint truncated, emptied, flipped in one bit, removed: always found, and one save is lost."""

import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.loop.checkpoint_files import damage
from tensor_optix.loop.run_dir import NoCheckpointError, RunDir


def state_at(step: int) -> dict:
    return {"w": jnp.arange(300, dtype=jnp.float32) * step, "key": jax.random.key(step), "n": step, "rate": 0.5}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def halve(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    position = np.random.default_rng(len(data)).integers(8 * len(data))
    data[position // 8] ^= 1 << position % 8
    path.write_bytes(data)


def flip_case(path: Path) -> None:
    """The one flip that a lenient comparison of checksums or names would forgive."""
    data = bytearray(path.read_bytes())
    letter = next((i for i, byte in enumerate(data) if chr(byte).isalpha()), 0)
    data[letter] ^= 0x20
    path.write_bytes(data)


def drop_a_line(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))


FAULTS: list[Callable[[Path], None]] = [truncate, halve, empty, flip_a_bit, flip_case, drop_a_line, Path.unlink]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("damage") / "run"
    with RunDir.create(path, {}) as run:
        for step in (1, 2):
            run.save_checkpoint(step, state_at(step), {"step": step})
    return path


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_each_damaged_file_is_found_and_one_save_is_lost(original, tmp_path, fault):
    newest = original / "checkpoints" / "2"
    names = [path.relative_to(newest) for path in newest.rglob("*") if path.is_file()]
    assert len(names) > 5
    for name in names:
        path = tmp_path / "run"
        shutil.copytree(original, path)
        fault(path / "checkpoints" / "2" / name)
        with RunDir.open(path) as run:
            loaded = run.load_checkpoint(state_at(0))
        assert loaded.step == 1, f"{fault.__name__} of {name} was not found"
        assert loaded.skipped[0].startswith("checkpoint 2: ")
        assert len(loaded.skipped) == 1
        assert name.name == "SHA256SUMS" or name.name in loaded.skipped[0]
        assert loaded.state["n"] == 1
        np.testing.assert_array_equal(loaded.state["w"], state_at(1)["w"])
        shutil.rmtree(path)


@pytest.mark.parametrize("stride", [17, pytest.param(1, marks=pytest.mark.slow)])
def test_one_flipped_bit_in_any_byte_of_any_file_is_found(original, tmp_path, stride):
    path = tmp_path / "checkpoint"
    shutil.copytree(original / "checkpoints" / "2", path)
    assert damage(path) is None
    for file in [file for file in path.rglob("*") if file.is_file()]:
        whole = file.read_bytes()
        for position in range(0, len(whole), stride):
            flipped = bytes([whole[position] ^ 1 << position % 8])
            file.write_bytes(whole[:position] + flipped + whole[position + 1 :])
            assert damage(path), f"byte {position} of {file}"
        file.write_bytes(whole)
    assert damage(path) is None


def test_two_checkpoints_exchanged_or_mixed_are_found(original, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(original, path)
    shutil.rmtree(path / "checkpoints" / "2" / "state")
    shutil.copytree(path / "checkpoints" / "1" / "state", path / "checkpoints" / "2" / "state")
    assert RunDir.read(path).load_checkpoint(state_at(0)).step == 1


def test_when_all_are_damaged_the_error_names_each(original, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(original, path)
    for step in ("1", "2"):
        empty(path / "checkpoints" / step / "checkpoint.json")
    with pytest.raises(NoCheckpointError, match=r"damaged: checkpoint 2: .*checkpoint\.json; checkpoint 1: "):
        RunDir.read(path).load_checkpoint(state_at(0))
