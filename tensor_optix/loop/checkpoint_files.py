"""One checkpoint as a directory: any pytree, stored by Orbax, with a record of its leaves and a checksum of every file.

<step>/checkpoint.json    step, meta, and path, dtype and shape of every leaf
<step>/state/             the arrays, an Orbax checkpoint keyed by leaf path
<step>/SHA256SUMS         of all the files above; `sha256sum -c SHA256SUMS` checks it by hand
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tensor_optix.loop.durable import failure, json_bytes

RECORD_NAME = "checkpoint.json"
SUMS_NAME = "SHA256SUMS"
ARRAYS_NAME = "state"
_SHOWN = 5  # leaves or files named in one message
_PYTHON_NUMBERS: dict[str, Callable[[str], Any]] = {
    "bool": lambda text: bool(int(text)),
    "int": int,
    "float": float.fromhex,
}

# What is known of a leaf without its data: {"kind", "dtype", "shape"} for arrays, "impl" too for typed keys,
# {"kind", "value"} for Python numbers (exact, as text).
LeafSpec = dict[str, Any]


class MisfitError(ValueError):
    """A checkpoint whose leaves, shapes or dtypes are not those of the run that wants it."""


def flatten(state: Any) -> tuple[dict[str, LeafSpec], dict[str, np.ndarray]]:
    """Leaf specs by path, and the arrays that hold data, on the host (views of them where that is possible).

    Raises:
      TypeError: a leaf that is no array, typed key, int, float or bool.
      ValueError: an array of which this process holds only a part.
    """
    specs: dict[str, LeafSpec] = {}
    arrays: dict[str, np.ndarray] = {}
    for path, leaf in _leaves(state):
        spec = specs[path] = leaf_spec(path, leaf)
        if spec["kind"] in ("array", "key"):
            data = _on_host(path, leaf)
            if data.size:  # Orbax refuses empty arrays; their spec says all there is to know
                arrays[path] = data
    return specs, arrays


def leaf_spec(path: str, leaf: Any) -> LeafSpec:
    """The spec of one leaf, or of a `jax.ShapeDtypeStruct` in its place."""
    if isinstance(leaf, int):
        return {"kind": "bool" if isinstance(leaf, bool) else "int", "value": str(int(leaf))}
    if isinstance(leaf, float) and not isinstance(leaf, np.generic):
        return {"kind": "float", "value": leaf.hex()}
    if isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct, np.ndarray, np.generic)):
        spec = {"dtype": str(leaf.dtype), "shape": list(leaf.shape)}
        if _is_key(leaf):
            impl = str(jax.random.key_impl(leaf)) if isinstance(leaf, jax.Array) else None
            return {"kind": "key", **spec, "impl": impl}
        if any(jax.dtypes.issubdtype(leaf.dtype, family) for family in (np.number, np.bool_)):
            return {"kind": "array", **spec}
    dtype = f" of dtype {leaf.dtype}" if hasattr(leaf, "dtype") else ""
    raise TypeError(
        f"{path} is a {type(leaf).__name__}{dtype}, which a checkpoint cannot hold; "
        "a state is made of numeric arrays, typed PRNG keys, ints, floats and bools."
    )


def write(directory: Path, record: dict[str, Any], specs: dict[str, LeafSpec], arrays: dict[str, np.ndarray]) -> None:
    """Fills the empty `directory` with a checkpoint. Nothing is synced. Raises whatever Orbax or the system raise."""
    if arrays:
        _orbax_save(directory / ARRAYS_NAME, arrays)
    (directory / RECORD_NAME).write_bytes(json_bytes({**record, "leaves": specs}))
    (directory / SUMS_NAME).write_bytes(checksums(directory).encode())


def read_record(directory: Path) -> dict[str, Any]:
    """The record written by `write`, `leaves` included. Call `damage` first."""
    return json.loads((directory / RECORD_NAME).read_bytes())


def read(directory: Path, specs: dict[str, LeafSpec], template: Any) -> Any:
    """The state in `directory`, in the structure, array types and shardings of `template`.

    Args:
      specs: `read_record(directory)["leaves"]`.
      template: a state, or the same with `jax.ShapeDtypeStruct` leaves. Its values are not used.

    Raises:
      MisfitError: the template has other leaves, shapes or dtypes; the message names them.
      RunDirError: Orbax cannot read the arrays.
    """
    check_fits(specs, template)
    stored = [path for path, spec in specs.items() if "shape" in spec and 0 not in spec["shape"]]
    try:
        arrays = _orbax_restore(directory / ARRAYS_NAME, stored) if stored else {}
    except MemoryError:
        raise
    except Exception as error:
        raise failure("read the arrays", directory, error) from error
    leaves = [_revive(specs[path], arrays.get(path), like) for path, like in _leaves(template)]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def check_fits(saved: dict[str, LeafSpec], template: Any) -> None:
    """Raises MisfitError naming the first leaves in which `template` differs from what was saved."""
    wanted = {path: leaf_spec(path, leaf) for path, leaf in _leaves(template)}
    problems = []
    for path in sorted(saved.keys() | wanted.keys()):
        if path not in wanted:
            problems.append(f"{path} was saved ({_in_words(saved[path])}) but the run has no such leaf")
        elif path not in saved:
            problems.append(f"{path} ({_in_words(wanted[path])}) was not saved")
        elif _in_words(saved[path]) != _in_words(wanted[path]):
            problems.append(f"{path} was saved as {_in_words(saved[path])}, the run has {_in_words(wanted[path])}")
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise MisfitError(
            f"The checkpoint does not fit this run: {'; '.join(problems[:_SHOWN])}{more}. "
            "Resume with the configuration the run was started with."
        )


def checksums(directory: Path) -> str:
    """The text of SHA256SUMS for what is in `directory` now: one `<digest>  <relative path>` per line, sorted.

    Hidden files are left out: a checkpoint has none, and file managers and network file systems add them.
    """
    lines = []
    for path in _files(directory):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        lines.append(f"{digest}  {path.relative_to(directory).as_posix()}\n")
    return "".join(lines)


def damage(directory: Path) -> str | None:
    """What is wrong with the files of the checkpoint in `directory`; None if every byte is as it was written."""
    try:
        recorded = (directory / SUMS_NAME).read_bytes()
        actual = checksums(directory).encode()
    except OSError as error:
        return f"{os.path.basename(error.filename or SUMS_NAME)} cannot be read ({error.strerror})"
    if recorded == actual:
        return None
    expected = set(recorded.splitlines())
    present = set(actual.splitlines())
    names = sorted({line.partition(b"  ")[2].decode(errors="replace") for line in expected ^ present})
    return f"checksum mismatch in {', '.join(names[:_SHOWN]) or SUMS_NAME}"


def _files(directory: Path) -> Iterator[Path]:
    found = []
    for folder, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    yield from sorted(path for path in found if path != directory / SUMS_NAME)


def _leaves(state: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        yield f"state{jax.tree_util.keystr(path)}", leaf


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _in_words(spec: LeafSpec) -> str:
    return f"{spec['dtype']}{spec['shape']}" if "shape" in spec else f"a Python {spec['kind']}"


def _on_host(path: str, leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array):
        if not leaf.is_fully_addressable:
            raise ValueError(f"{path} is spread over several processes; gather it before saving.")
        if _is_key(leaf):
            leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def _revive(spec: LeafSpec, data: np.ndarray | None, like: Any) -> Any:
    """The leaf that `spec` and `data` describe, of the array type and sharding of `like`."""
    kind = spec["kind"]
    if kind in _PYTHON_NUMBERS:
        return _PYTHON_NUMBERS[kind](spec["value"])
    if kind == "key":
        return _revive_key(spec, data, _committed_sharding(like))
    if data is None:
        data = np.empty(spec["shape"], like.dtype)
    if isinstance(like, np.ndarray):
        return data
    if isinstance(like, np.generic):
        return data[()]
    # A weakly typed scalar stays one, or the resumed run would compile anew. (JAX cannot make a weakly typed array of
    # higher rank from data: such a leaf comes back strongly typed.)
    weak = like.ndim == 0 and like.weak_type
    return jax.device_put(_weak_scalar(data) if weak else data, _committed_sharding(like))


def _revive_key(spec: LeafSpec, data: np.ndarray | None, sharding: Any) -> jax.Array:
    if data is None:
        one = jax.random.key_data(jax.random.key(0, impl=spec["impl"]))
        data = np.empty((*spec["shape"], *one.shape), one.dtype)
    return jax.device_put(jax.random.wrap_key_data(jax.numpy.asarray(data), impl=spec["impl"]), sharding)


def _committed_sharding(like: Any) -> Any:
    """Where the template's array was put on purpose; None if that was left to JAX, as compiled programs then expect."""
    sharding = getattr(like, "sharding", None)
    return sharding if getattr(like, "committed", True) else None


def _weak_scalar(data: np.ndarray) -> Any:
    """`data` as JAX makes it of a Python number; unchanged where that would be another dtype."""
    scalar = jax.numpy.asarray(data.item())
    return scalar if scalar.dtype == data.dtype else data


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Orbax logs a traceback in each of its threads before it raises; the exception says enough."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _checkpointer() -> Any:
    """Orbax's synchronous checkpointer. In a multi-process run only the calling process takes part."""
    import orbax.checkpoint as ocp

    if jax.process_count() == 1:
        return ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"tensor_optix_{me}"
    )
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone)


def _orbax_save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    import orbax.checkpoint as ocp

    with _quiet_orbax(), _checkpointer() as checkpointer:
        checkpointer.save(path.absolute(), args=ocp.args.PyTreeSave(arrays))


def _orbax_restore(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    import orbax.checkpoint as ocp

    as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
    with _quiet_orbax(), _checkpointer() as checkpointer:
        return checkpointer.restore(path.absolute(), args=ocp.args.PyTreeRestore(restore_args=as_numpy))
