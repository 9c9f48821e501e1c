"""Start-up of JAX's backend, in the one place that may touch it.

Four settings must be made before the backend starts and cannot be changed afterwards, so `start()` runs at first use
(never at import), leaves whatever the user has set alone, and warns with the remedy when it comes too late:

- *The thread pool.* XLA's CPU client runs programs and their parts on one pool, sized by the number of cores. On two
  cores some vmapped training programs wait for ever right after compilation (jax 0.10): every thread of the pool waits
  for work that only another thread of the same pool could do. A larger pool ends it, at the same speed. XLA reads the
  size from the variable NPROC once, when the client starts.
- *CPU devices.* XLA keeps one core busy with one program. Members are spread over several CPU devices instead.
- *Small loops.* XLA's CPU runtime schedules every operation of a loop. Loops that touch little memory can be compiled
  into one kernel instead (`xla_cpu_small_while_loop_byte_threshold`, 1 kB by default): collecting with a few
  environments then takes a third of the time. The limit is part of XLA_FLAGS, which is also read once. So is leave to
  give a kernel several results, which makes fewer kernels to compile.
- *The compilation cache*, so that a second start does not compile again (the command line turns it on).
"""

from __future__ import annotations

import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIN_POOL_THREADS = 8

# In bytes that a loop's body touches: above some 100 kB one kernel is no longer faster. (Kernels of several results,
# xla_cpu_use_multi_output_fusion, are faster still for many members, but XLA aborts on some programs with them.)
_EXTRA_OPTIONS = "--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=100000"


class BackendStartedWarning(UserWarning):
    """The backend was up before tensor_optix could prepare it."""


@dataclass(frozen=True)
class Runtime:
    """What the backend looks like after `start()`."""

    platform: str  # "cpu", "gpu", "tpu"
    n_devices: int  # local devices that members are spread over
    n_cores: int
    pool_threads: int | None  # None: not known, the backend was started elsewhere
    cache_dir: str | None
    started_by_us: bool
    small_loops: bool = False  # loops that touch little memory become one kernel

    @property
    def may_deadlock(self) -> bool:
        """True when the CPU client's thread pool is too small to be safe."""
        return self.platform == "cpu" and (self.pool_threads or self.n_cores) < 4


_runtime: Runtime | None = None


def start(cache_dir: str | Path | None = None) -> Runtime:
    """Prepare and start the backend; later calls return the first one's result.

    cache_dir: a compilation cache, unless the user has configured one. Warns (`BackendStartedWarning`) if the backend
    was already up with a thread pool that may deadlock.
    """
    global _runtime
    if _runtime is None:
        _runtime = _start(cache_dir)
    return _runtime


def default_cache_dir() -> Path:
    """Where the command line keeps compiled programs: $XDG_CACHE_HOME or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tensor_optix" / "xla"


def compiler_options(platform: str, runs_once: bool = False) -> dict[str, Any]:
    """Options for compiling a training program, or one that is run only once and should be compiled quickly.

    On a CPU the parts of one member's program are too small to be worth handing between threads: run in order, a window
    of PPO takes 0.6 to 0.7 of the time. Cores are kept busy by members on several devices instead. Level 2 of LLVM
    compiles an eighth faster than level 3, and no program was found that runs slower for it.
    """
    if platform != "cpu":
        return {}
    options = {
        "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
        "xla_cpu_multi_thread_eigen": False,
        "xla_backend_optimization_level": 2,
    }
    return options | {"xla_cpu_use_fusion_emitters": False} if runs_once else options


def compile_program(lowered: Any, platform: str, runs_once: bool = False, tiny: bool = False) -> Any:
    """Compile what `jax.jit(f).lower(...)` returned with `compiler_options`, less those this XLA does not know.

    runs_once: for a program that is called once. tiny: for one that computes a few scalars.
    """
    import jax

    options = compiler_options(platform, runs_once or tiny)
    if tiny and options:  # scalars only: what the optimiser would gain is less than a call costs
        options["xla_backend_optimization_level"] = 0
    while True:
        try:
            return lowered.compile(options)
        except jax.errors.JaxRuntimeError as error:
            unknown = [name for name in options if f"'{name}'" in str(error)]
            if "No such compile option" not in str(error) or not unknown:
                raise
            options = {name: value for name, value in options.items() if name not in unknown}


def _start(cache_dir: str | Path | None) -> Runtime:
    import jax

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    if cache_dir is not None and _setting("jax_compilation_cache_dir") is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    late = _backend_is_up()
    pool: int | None = None
    small_loops = "xla_cpu_small_while_loop" in os.environ.get("XLA_FLAGS", "")
    if not late:
        if not _devices_chosen_by_user():
            jax.config.update("jax_num_cpu_devices", cores)
        pool, small_loops = _start_backend(cores)
    elif (asked := os.environ.get("NPROC", "")).isdigit():
        pool = int(asked)  # most likely set before the process started
    runtime = Runtime(
        platform=jax.default_backend(),
        n_devices=jax.local_device_count(),
        n_cores=cores,
        pool_threads=pool,
        cache_dir=_setting("jax_compilation_cache_dir"),
        started_by_us=not late,
        small_loops=small_loops,
    )
    if runtime.may_deadlock:
        warnings.warn(
            f"JAX's CPU backend runs on a pool of {pool or cores} threads, "
            + ("set by NPROC" if pool else "started before tensor_optix")
            + ": XLA can deadlock on training programs with fewer than 4. Call tensor_optix.start_runtime() before the "
            "first JAX computation, or set the environment variable NPROC=8 before starting Python.",
            BackendStartedWarning,
            stacklevel=4,
        )
    elif late and runtime.platform == "cpu" and runtime.n_devices < cores:
        warnings.warn(
            f"JAX's CPU backend was started before tensor_optix with {runtime.n_devices} device(s) on {cores} cores: "
            "members will use only part of the machine. Call tensor_optix.start_runtime() before the first JAX "
            "computation.",
            BackendStartedWarning,
            stacklevel=4,
        )
    return runtime


def _backend_is_up() -> bool:
    bridge = sys.modules.get("jax._src.xla_bridge")
    return bool(bridge is not None and bridge.backends_are_initialized())


def _setting(name: str) -> Any:
    import jax

    return getattr(jax.config, name)


def _devices_chosen_by_user() -> bool:
    return _setting("jax_num_cpu_devices") != -1 or "xla_force_host_platform_device_count" in os.environ.get(
        "XLA_FLAGS", ""
    )


def _start_backend(cores: int) -> tuple[int, bool]:
    """Start the backend with NPROC and XLA_FLAGS extended for just that moment.

    Returns the pool's size and whether small loops become one kernel. What the user has set stays as it is.
    """
    import jax

    asked, flags = os.environ.get("NPROC"), os.environ.get("XLA_FLAGS", "")
    pool = max(MIN_POOL_THREADS, cores) if asked is None else int(asked) if asked.isdigit() else cores
    own_extra_options = "xla_backend_extra_options" in flags
    before = {name: os.environ.get(name) for name in ("NPROC", "XLA_FLAGS")}
    if asked is None:
        os.environ["NPROC"] = str(pool)
    if not own_extra_options:
        os.environ["XLA_FLAGS"] = f"{flags} {_EXTRA_OPTIONS}".strip()
    try:
        jax.devices()
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
    return pool, not own_extra_options or "xla_cpu_small_while_loop" in flags


def examine(runtime: Runtime) -> dict[str, Any]:
    """Versions, devices and caches as plain JSON values, and in `problems` what is wrong with them, with the remedy."""
    import importlib.metadata
    import platform

    def version(package: str) -> str:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    facts: dict[str, Any] = {"tensor_optix": version("tensor-optix"), "python": platform.python_version()}
    facts |= {name: version(name) for name in _CORE_PACKAGES}
    facts["extras"] = ", ".join(name for name in _EXTRA_PACKAGES if version(name) != "not installed") or "none"
    facts |= {
        "platform": runtime.platform,
        "devices": runtime.n_devices,
        "cores": runtime.n_cores,
        "pool_threads": runtime.pool_threads,
        "small_loops": runtime.small_loops,
        "compilation_cache": runtime.cache_dir or "off",
    }
    problems = [
        f"{name} is not installed: pip install {name}" for name in _CORE_PACKAGES if facts[name] == "not installed"
    ]
    if runtime.may_deadlock:
        problems.append(
            f"the CPU backend has a pool of {runtime.pool_threads or runtime.n_cores} threads and may deadlock: unset "
            "NPROC or set NPROC=8"
        )
    if runtime.platform == "cpu" and runtime.n_devices < runtime.n_cores:
        problems.append(
            f"{runtime.n_devices} CPU device(s) on {runtime.n_cores} cores: members use part of the machine; unset "
            "JAX_NUM_CPU_DEVICES and the device count in XLA_FLAGS"
        )
    if "tensorflow" in str(facts["extras"]).split(", ") and version("tf-keras") == "not installed":
        problems.append(
            'distrax cannot be imported beside TensorFlow without tf-keras: pip install "tensor-optix[tensorflow]"'
        )
    if runtime.cache_dir is not None and not _writable(Path(runtime.cache_dir)):
        problems.append(f"the compilation cache {runtime.cache_dir} cannot be written: choose another with --cache-dir")
    facts["problems"] = problems
    return facts


_CORE_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "chex",
    "distrax",
    "numpy",
    "gymnax",
    "gymnasium",
    "orbax-checkpoint",
)
_EXTRA_PACKAGES = ("torch", "tensorflow", "optuna", "matplotlib", "onnx", "wandb", "tensorboard")


def _writable(path: Path) -> bool:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path.is_dir() and os.access(path, os.W_OK)
